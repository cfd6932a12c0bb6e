"""A trial whose device is too small for a micro-batch halves it and goes on; it does not fail."""

from __future__ import annotations

import pytest
import torch
from sweeps import small

from raysweep.learn.loss import Scored
from raysweep.store.store import Store
from raysweep.trial.execute import execute


def run(sweep, store):
    _, jobs = sweep.missing(store, data=None)
    job = next(job for job in jobs.values() if job.point["mixer"] == "random/none")
    return execute(job, report=lambda event: None)


@pytest.fixture
def device(monkeypatch):
    """A device with room for passes of so many tokens; the sizes that were tried on it."""
    forward, sizes, room = Scored.forward, [], [10**6]

    def tight(scored, tokens_BL, *given):
        sizes.append(tokens_BL.numel())
        if tokens_BL.numel() > room[0]:
            raise torch.OutOfMemoryError("planted")
        return forward(scored, tokens_BL, *given)

    monkeypatch.setattr(Scored, "forward", tight)
    return room, sizes


def test_out_of_memory_is_answered_by_half_the_tokens(tmp_path, device):
    """In both stages; the numbers are those of a device with room, but for rounding."""
    room, sizes = device
    free = run(small(tmp_path), Store(tmp_path / "free"))["metrics"]
    room[0] = max(sizes) - 1
    sizes.clear()
    record = run(small(tmp_path), Store(tmp_path / "tight"))
    assert record["status"] == "done"
    assert max(sizes) > room[0] >= sizes[-1]
    for name in ("loss_1", "loss_2"):
        assert record["metrics"][name] == pytest.approx(free[name], rel=1e-4)
    assert record["metrics"]["retention"] == free["retention"]


def test_a_device_without_room_for_one_example_ends_the_trial(tmp_path, device):
    room, _ = device
    room[0] = 8
    record = run(small(tmp_path), Store(tmp_path / "store"))
    assert record["status"] == "failed"
    assert "with one example at a time" in record["error"]
