"""The engine against a plain PyTorch loop that shares no code with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from raysweep.learn.batches import batches_from, total_steps
from raysweep.learn.engine import Engine
from raysweep.spec import Runtime


def reference(folder, examples, settings, steps, dtype=torch.float64):
    """AdamW, Transformers' own loss and schedule, one padded batch a step; weights and losses."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=settings.betas, eps=1e-8, weight_decay=settings.weight_decay
    )
    total = total_steps(len(examples), settings)
    schedule = get_cosine_schedule_with_warmup(optimizer, -(-total * settings.warmup // 1), total)
    losses = []
    for batch, _ in zip(batches_from(0, examples, training=settings, seed=7), range(steps), strict=False):
        width = max(map(len, batch.examples))
        ids = torch.zeros(len(batch.examples), width, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(batch.examples):
            tokens = torch.from_numpy(one.tokens).long()
            ids[row, : len(one)] = tokens
            mask[row, : len(one)] = 1
            labels[row, : len(one)] = torch.where(torch.from_numpy(one.targets), tokens, -100)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {name: tensor.double() for name, tensor in model.state_dict().items()}, losses


def run(folder, examples, settings, steps, out, *, packed=False, **runtime):
    losses = []
    total = total_steps(len(examples), settings)
    with Engine(folder, training=settings, total_steps=total, runtime=Runtime(**runtime)) as engine:
        engine.packed = packed
        for batch, _ in zip(batches_from(0, examples, training=settings, seed=7), range(steps), strict=False):
            losses.append(engine.step(batch).loss_sum / batch.target_tokens)
        facts = engine.facts()
        engine.save(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    return dict(model.state_dict()), losses, facts


def farthest(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max((ours[name].double() - theirs[name]).abs().max().item() for name in ours)


@pytest.mark.parametrize(
    "runtime",
    [
        *({"zero": stage} for stage in (0, 1, 2, 3)),
        {"zero": 3, "micro_batch": 1},
        {"zero": 1, "micro_batch": 3, "offload": "optimizer"},
        {"zero": 3, "offload": "optimizer"},
        {"zero": 3, "offload": "all"},
        {"zero": 3, "packed": True, "micro_batch": 5},
    ],
    ids=str,
)
def test_fifty_steps_are_those_of_a_plain_float64_loop(small, pairs, training, encoded, tmp_path, runtime):
    examples = encoded(pairs(60))
    settings = training(epochs=7, weight_decay=0.0)
    theirs, their_losses = reference(small, examples, settings, 50)
    ours, losses, facts = run(small, examples, settings, 50, tmp_path, **runtime)
    assert facts["zero_stage"] == runtime["zero"]
    assert losses == pytest.approx(their_losses, rel=1e-4)
    assert farthest(ours, theirs) < 2e-4


def test_one_step_changes_every_weight_as_a_plain_loop_does(small, pairs, training, encoded, tmp_path):
    examples = encoded(pairs(8))
    settings = training(epochs=1, warmup=0.0, weight_decay=0.1)
    start = AutoModelForCausalLM.from_pretrained(small).state_dict()
    ours, losses, _ = run(small, examples, settings, 1, tmp_path)
    theirs, their_losses = reference(small, examples, settings, 1)
    assert losses == pytest.approx(their_losses, rel=1e-6)
    moved = [name for name in ours if not torch.equal(ours[name], start[name])]
    assert set(moved) == set(ours)
    norms = {name for name in ours if "norm" in name}
    assert max((ours[name].double() - theirs[name]).abs().max() for name in set(ours) - norms) < settings.lr / 50


@pytest.mark.parametrize("zero", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_pure_bf16_is_a_plain_bf16_loop_and_loses_what_masters_keep(small, pairs, training, encoded, tmp_path, zero):
    """METHOD's departure 5: weights, gradients and states in bfloat16; an update below a weight's precision is lost."""
    examples = encoded(pairs(40))
    settings = training(epochs=4, lr=1e-5, warmup=0.0, precision="bf16_pure")
    start = AutoModelForCausalLM.from_pretrained(small, dtype=torch.bfloat16).state_dict()
    theirs, _ = reference(small, examples, settings, 20, dtype=torch.bfloat16)
    pure, _, _ = run(small, examples, settings, 20, tmp_path / "pure", zero=zero)
    masters, *_ = run(small, examples, replace(settings, precision="bf16"), 20, tmp_path / "masters", zero=zero)
    assert {weights.dtype for weights in pure.values()} == {torch.bfloat16}
    assert share_of_weights(pure, theirs, torch.Tensor.eq) > 0.99
    lost = share_of_weights(pure, start, torch.Tensor.eq)
    kept = share_of_weights(masters, start, torch.Tensor.eq)
    assert kept < lost - 0.05


def share_of_weights(left, right, holds):
    """Of all weights, how many stand so to those of another model."""
    found = [holds(left[name].double(), right[name].double()).sum().item() for name in left]
    return sum(found) / sum(weights.numel() for weights in left.values())
