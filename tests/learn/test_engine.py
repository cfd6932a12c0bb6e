"""The engine against a plain PyTorch loop that shares no code with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plain_loop import by_engine, by_plain_loop, farthest
from transformers import AutoModelForCausalLM


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
    theirs = by_plain_loop(small, examples, settings, 50)
    ours, facts = by_engine(small, examples, settings, 50, tmp_path, **runtime)
    assert facts["zero_stage"] == runtime["zero"]
    assert min(theirs.norms) < settings.clip < max(theirs.norms)
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-3)
    assert farthest(ours.weights, theirs.weights) < 2e-4


def test_one_step_changes_every_weight_as_a_plain_loop_does(small, pairs, training, encoded, tmp_path):
    examples = encoded(pairs(8))
    settings = training(epochs=1, warmup=0.0, weight_decay=0.1)
    start = AutoModelForCausalLM.from_pretrained(small).state_dict()
    found, _ = by_engine(small, examples, settings, 1, tmp_path)
    expected = by_plain_loop(small, examples, settings, 1)
    ours, theirs = found.weights, expected.weights
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)
    assert found.norms == pytest.approx(expected.norms, rel=1e-6)
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
    theirs = by_plain_loop(small, examples, settings, 20, dtype=torch.bfloat16).weights
    pure = by_engine(small, examples, settings, 20, tmp_path / "pure", zero=zero)[0].weights
    with_masters = replace(settings, precision="bf16")
    masters = by_engine(small, examples, with_masters, 20, tmp_path / "masters", zero=zero)[0].weights
    assert {weights.dtype for weights in pure.values()} == {torch.bfloat16}
    assert share_of_weights(pure, theirs, torch.Tensor.eq) > 0.99
    lost = share_of_weights(pure, start, torch.Tensor.eq)
    kept = share_of_weights(masters, start, torch.Tensor.eq)
    assert kept < lost - 0.05


MASTERS = [
    {"zero": 3},
    {"zero": 3, "offload": "optimizer"},
    *(pytest.param({"zero": stage}, marks=pytest.mark.slow) for stage in (1, 2)),
]


@pytest.mark.parametrize("runtime", MASTERS, ids=str)
def test_bf16_is_a_plain_bf16_loop_with_float32_masters(small, pairs, training, encoded, tmp_path, runtime):
    """Each example is a micro-batch; their bfloat16 gradients are added up in float32. Some steps are clipped."""
    examples = encoded(pairs(60, longest=12))
    for steps, settings in (
        (2, training(epochs=7, precision="bf16", lr=3e-4, warmup=0.0, clip=1.4)),
        (20, training(epochs=7, precision="bf16", lr=1e-3, warmup=0.0, clip=1.4)),
    ):
        theirs = by_plain_bf16_loop(small, examples, settings, steps)
        ours, _ = by_engine(small, examples, settings, steps, tmp_path, micro_batch=1, **runtime)
        assert min(theirs.norms) < 1.4 < max(theirs.norms)
        assert {one.dtype for one in ours.masters.values()} == {torch.float32}
        assert {one.dtype for one in ours.weights.values()} == {torch.bfloat16}
        if steps == 2:
            assert ours.losses == pytest.approx(theirs.losses, rel=1e-6)
            assert ours.norms == pytest.approx(theirs.norms, rel=1e-4)
            assert farthest(ours.masters, theirs.masters) < settings.lr / 100
        assert ours.losses == pytest.approx(theirs.losses, rel=3e-4)
        assert ours.norms == pytest.approx(theirs.norms, rel=2e-3)
        assert share_of_weights(ours.masters, theirs.masters, within(settings.lr / 50)) > 0.85


def test_bf16_without_zero_is_that_loop_but_for_gradients_added_up_in_bfloat16(
    small, pairs, training, encoded, tmp_path
):
    examples = encoded(pairs(60, longest=12))
    settings = training(epochs=7, precision="bf16", lr=3e-4, warmup=0.0, clip=1.4)
    theirs = by_plain_bf16_loop(small, examples, settings, 2)
    ours, _ = by_engine(small, examples, settings, 2, tmp_path, micro_batch=1, zero=0)
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-3)
    assert share_of_weights(ours.weights, theirs.weights, torch.Tensor.eq) > 0.95


def within(distance):
    return lambda one, other: (one - other).abs() < distance


@pytest.mark.parametrize("zero", [0, 3])
def test_a_step_at_rate_0_changes_no_weight(small, pairs, training, encoded, tmp_path, zero):
    """The first of a warm-up; so nothing else has decayed the weights either."""
    settings = training(precision="bf16", lr=0.3, weight_decay=1.0, warmup=0.5)
    start = AutoModelForCausalLM.from_pretrained(small, dtype=torch.bfloat16).state_dict()
    ours, _ = by_engine(small, encoded(pairs(16)), settings, 1, tmp_path, zero=zero)
    assert farthest(ours.weights, start) == 0.0


def by_plain_bf16_loop(folder, examples, settings, steps):
    masters = {"dtype": torch.bfloat16, "masters": torch.float32, "micro_batch": 1}
    return by_plain_loop(folder, examples, settings, steps, **masters)


def share_of_weights(left, right, holds):
    """Of all weights, how many stand so to those of another model."""
    found = [holds(left[name].double(), right[name].double()).sum().item() for name in left]
    return sum(found) / sum(weights.numel() for weights in left.values())
