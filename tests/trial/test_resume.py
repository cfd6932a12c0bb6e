"""What a stage takes up when it is tried again, and what a stored stage must be to be used."""

from __future__ import annotations

import json

import pytest
from storing import checkpoints
from sweeps import SMALL, small

from raysweep.store.store import Store
from raysweep.trial.execute import execute

HITS = 8


class Lost(BaseException):
    """Ends a trial as a killed process does: nothing is written any more."""


def nothing(event):
    """Hear no report."""


def test_a_stage_that_is_resumed_has_not_forgotten_how_often_its_loss_was_low(tmp_path):
    """Every step is a hit: the stage ends after the eighth, whether or not it was interrupted after the third."""
    train = {**SMALL["train"], "epochs": 20, "a": {"epochs": 1}, "b": {"stop": {"loss": 100.0, "hits": HITS}}}
    sweep = small(
        tmp_path,
        "runtime.checkpoint_every=0.000001",
        grid={**SMALL["grid"], "mixer": ["none/none"]},
        train=train,
        evaluate={"every": {"steps": 1}},
    )
    store = Store(tmp_path / "store")
    _, jobs = sweep.missing(store, data=None)
    (job,) = jobs.values()

    def lose(event):
        if event.get("stage") == 2 and event.get("step", 0) >= 3 and checkpoints(tmp_path / "store"):
            raise Lost

    with pytest.raises(Lost):
        execute(job, report=lose)
    resumed = execute(job, report=nothing)["metrics"]
    assert (resumed["steps_2"], resumed["stopped_by_2"]) == (HITS, "loss")


def test_a_stage_that_was_trained_on_other_examples_is_not_used(tmp_path):
    """Its id is the same, and its record says that its source gave other rows then."""
    sweep = small(tmp_path, grid={**SMALL["grid"], "mixer": ["none/none", "none/random"]})
    store = Store(tmp_path / "store")
    _, jobs = sweep.missing(store, data=None)
    first, second = jobs.values()
    assert execute(first, report=nothing)["status"] == "done"
    (record,) = (tmp_path / "store" / "stages").glob("kvr-none-*/record.json")
    told = json.loads(record.read_text())
    told["data"]["set"]["digest"] = "0" * 64
    record.write_text(json.dumps(told))
    failed = execute(second, report=nothing)
    assert failed["status"] == "failed"
    assert "was trained on other examples (set, digest 000000000000)" in failed["error"]
