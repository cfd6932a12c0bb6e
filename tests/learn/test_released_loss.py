"""The released code's loss and stop rule against a plain PyTorch loop of it, and against everything that is only a way to
compute them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ranks
import torch
from plain_loop import by_engine, farthest, in_this_rank
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from raysweep.learn.engine import Engine
from raysweep.learn.train import train
from raysweep.sweep.spec import Every, Runtime
from raysweep.sweep.stage import MicroBatches, StopAt, steps_per_epoch, total_steps

CUT = MicroBatches(examples=4, devices=2)  # 8 rows at a time
RULES = {"order": "sampler", "last_batch": "drop", "loss_mean": CUT, "stop_loss": CUT, "batch_size": 16}
COUNT, SEED = 30, 7  # of 30 rows 24 are read, as 16 and 8


@dataclass(frozen=True)
class Loop:
    """Of every step the mean of the micro-batches' losses, and what the stop rule compares; the weights in the end."""

    losses: list[float]
    compared: list[float]
    weights: dict[str, torch.Tensor]


def by_released_loop(folder: Path, examples, settings, *, dtype: torch.dtype) -> Loop:
    """A loader for each device, drop_last, DistributedSampler; loss ÷ accumulation, gradients averaged over devices; a step
    after every group of micro-batches and after an epoch's last one."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=settings.betas, eps=1e-8, weight_decay=0.0)
    accumulation = settings.batch_size // (CUT.examples * CUT.devices)
    rows = [
        list(torch.utils.data.DistributedSampler(examples, CUT.devices, device, seed=SEED))
        for device in range(CUT.devices)
    ]
    # The sampler evens devices out by giving rows twice; what it gives twice is in the batch that is dropped.
    reads = len(examples) // CUT.devices // CUT.examples
    per_epoch = reads // accumulation + (reads % accumulation > 0)
    total = per_epoch * settings.epochs
    schedule = get_cosine_schedule_with_warmup(optimizer, -(-total * settings.warmup // 1), total)
    losses, compared, since = [], [], []
    for _ in range(settings.epochs):
        for read in range(reads):
            of_devices = []
            for device in range(CUT.devices):
                chosen = rows[device][read * CUT.examples : (read + 1) * CUT.examples]
                loss = model(**_padded([examples[row] for row in chosen])).loss / accumulation
                (loss / CUT.devices).backward()
                of_devices.append(loss.item())
            since.append(sum(of_devices) / CUT.devices)
            if (read + 1) % accumulation == 0 or read == reads - 1:
                clip_grad_norm_(model.parameters(), settings.clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(sum(since) * accumulation / len(since))
                compared.append(since[-1])
                since = []
    return Loop(losses, compared, dict(model.state_dict()))


def _padded(examples):
    width = max(map(len, examples))
    ids, labels = torch.zeros(len(examples), width, dtype=torch.long), torch.full((len(examples), width), -100)
    for row, one in enumerate(examples):
        tokens = torch.from_numpy(one.tokens).long()
        ids[row, : len(one)] = tokens
        labels[row, : len(one)] = torch.where(torch.from_numpy(one.targets), tokens, -100)
    return {"input_ids": ids, "labels": labels}


def trained(folder, examples, settings, out, *, tokenizer=None, **runtime):
    """A stage by the engine: its outcome, and the weights that it saved."""
    total = total_steps(len(examples), settings)
    with Engine(folder, training=settings, total_steps=total, runtime=Runtime(**runtime)) as engine:
        outcome = train(
            engine, examples, training=settings, seed=SEED, tokenizer=tokenizer, probes={}, every=Every(epochs=1),
            checkpoints=None, checkpoint_every=600.0,
        )  # fmt: skip
        engine.save(out)
    return outcome, dict(AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict())


@pytest.fixture
def examples(pairs, encoded):
    """Of targets so unlike in length that a mean of means is another number."""
    return encoded([*pairs(COUNT // 2, longest=3), *pairs(COUNT - COUNT // 2, longest=40, seed=1)])


def test_a_stage_is_the_released_codes(small, examples, training, tokenizer, tmp_path):
    settings = training(epochs=4, stop=StopAt(rule="loss", loss=1e-9, hits=1), **RULES)
    theirs = by_released_loop(small, examples, settings, dtype=torch.float32)
    outcome, weights = trained(small, examples, settings, tmp_path, tokenizer=tokenizer)
    assert outcome.steps == len(theirs.losses) == 8
    assert [row["loss"] for row in outcome.curve] == pytest.approx(theirs.losses, rel=1e-4)
    assert [row["stop_loss"] for row in outcome.curve] == pytest.approx(theirs.compared, rel=1e-4)
    assert farthest(weights, theirs.weights) < 1e-4
    _, otherwise = trained(small, examples, replace(settings, loss_mean=None), tmp_path, tokenizer=tokenizer)
    assert farthest(otherwise, theirs.weights) > 1e-3, "a mean over tokens is something else"


def test_in_pure_bf16_too(small, examples, training, tokenizer, tmp_path):
    """Weights, gradients, their sum and AdamW's states in bfloat16: what differs is the order of sums."""
    settings = training(epochs=4, precision="bf16_pure", lr=1e-3, **RULES)
    theirs = by_released_loop(small, examples, settings, dtype=torch.bfloat16)
    outcome, weights = trained(small, examples, settings, tmp_path, tokenizer=tokenizer)
    assert {one.dtype for one in weights.values()} == {torch.bfloat16}
    start = dict(AutoModelForCausalLM.from_pretrained(small, dtype=torch.bfloat16).state_dict())
    assert [row["loss"] for row in outcome.curve] == pytest.approx(theirs.losses, rel=0.02)
    moved = sum((theirs.weights[name].double() - start[name].double()).norm() for name in start)
    apart = sum((theirs.weights[name].double() - weights[name].double()).norm() for name in start)
    assert apart < 0.2 * moved


@pytest.mark.parametrize(
    "runtime", [{"zero": 1, "micro_batch": 1}, {"zero": 0, "micro_batch": 3}, {"packed": True}], ids=str
)
def test_micro_batches_of_the_runtime_are_no_part_of_it(small, examples, training, tmp_path, runtime):
    settings = training(epochs=3, **RULES)
    plain, _ = by_engine(small, examples, settings, 6, tmp_path / "plain")
    cut, _ = by_engine(small, examples, settings, 6, tmp_path / "cut", **runtime)
    assert cut.losses == pytest.approx(plain.losses, rel=1e-4)
    assert cut.norms == pytest.approx(plain.norms, rel=1e-3)
    assert farthest(cut.weights, plain.weights) < 1e-4


def test_workers_are_no_part_of_it(small, examples, training, tmp_path):
    settings = training(epochs=3, **RULES)
    plain, _ = by_engine(small, examples, settings, 6, tmp_path / "plain")
    said = {"folder": small, "examples": examples, "training": settings, "steps": 6, "out": tmp_path}
    assert ranks.run(in_this_rank, {**said, "runtime": {"zero": 1}}, size=3, folder=tmp_path) == [0] * 3
    shared, _ = torch.load(tmp_path / "steps-0.pt", weights_only=False)
    assert shared.losses == pytest.approx(plain.losses, rel=1e-4)
    assert farthest(shared.weights, plain.weights) < 1e-4


def test_a_last_batch_is_as_large_as_what_is_read_whole(training):
    """Their loader drops the rest of what is read at a time, and steps with what is left of a batch."""
    settings = training(**RULES)
    assert [steps_per_epoch(count, settings) for count in (30, 24, 23, 16, 8, 5)] == [2, 2, 1, 1, 1, 1]
    assert (
        steps_per_epoch(2000, replace(settings, batch_size=128, loss_mean=MicroBatches(examples=16, devices=2))) == 16
    )
    assert steps_per_epoch(2000, replace(settings, batch_size=128, loss_mean=None)) == 15
