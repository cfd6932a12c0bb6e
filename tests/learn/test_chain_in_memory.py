"""A stage that goes on in the weights of the one before is bit for bit the one that opens what was saved of them."""

from __future__ import annotations

from itertools import islice, product

import pytest
import ranks
import torch
from chain_in_memory import chain

from raysweep.learn.batches import batches_from


@pytest.fixture
def job(small, pairs, training, encoded, asked, tmp_path):
    examples = pairs(17, longest=12)
    batches = list(islice(batches_from(0, encoded(examples), training=training(), seed=3), 3))
    return {"folder": small, "batches": batches, "questions": asked(examples), "out": tmp_path}


def told_by(size, job, folder):
    assert ranks.run(chain, job, size=size, folder=folder) == [0] * size
    return [torch.load(folder / f"told-{rank}.pt", weights_only=False) for rank in range(size)]


def same_files(one, other):
    names = sorted(path.name for path in one.iterdir())
    assert "model.safetensors" in names and names == sorted(path.name for path in other.iterdir())
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize("size", [1, 2])
def test_the_next_stage_is_the_same_in_memory_as_from_the_disk(training, job, tmp_path, size):
    """Weights, losses, norms, and every file; the second stage has a rate, a clip and a decay of its own."""
    ways = [{"zero": stage} for stage in range(4)]
    if size == 1:
        ways += [{"zero": 1, "offload": "optimizer"}, {"zero": 3, "offload": "all"}]
    other = {"lr": 1e-3, "weight_decay": 0.1, "clip": 0.3, "warmup": 0.0}
    job["ways"] = [
        (way, training(precision=precision, warmup=0.0), training(precision=precision, **other))
        for precision, way in [*product(("fp32", "bf16"), ways), ("bf16_pure", {"zero": 3})]
    ]
    for told in told_by(size, job, tmp_path):
        for (way, first, _), one in zip(job["ways"], told, strict=True):
            assert one["ours"] == one["theirs"], (way, first.precision)
            assert len(set(one["shares"])) == 1
    for number, way in enumerate(job["ways"]):
        out = tmp_path / str(number)
        assert same_files(out / "ours", out / "theirs") and same_files(out / "ours", out / "ours-released"), way
        assert not same_files(out / "between", out / "ours")


def test_it_is_the_same_where_weights_are_asked_layer_by_layer(training, job, tmp_path):
    job |= {"ways": [({"zero": 3}, training(warmup=0.0), training())], "layer_by_layer": True}
    for (told,) in told_by(2, job, tmp_path):
        assert told["ours"] == told["theirs"]


def test_another_precision_opens_what_was_saved(training, job, tmp_path):
    job["ways"] = [({"zero": 3}, training(), training(precision="bf16"))]
    assert [told["ours"] for (told,) in told_by(1, job, tmp_path)] == [None]
