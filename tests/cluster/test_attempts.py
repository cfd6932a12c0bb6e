"""What the end of an attempt counts as: a bug, or a loss; and when a trial is not tried again."""

from __future__ import annotations

import dataclasses
import pickle
import time
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from sweeps import small

from raysweep.cluster import trainer
from raysweep.cluster.attempts import attempt, is_loss, tries
from raysweep.errors import TrialFailed
from raysweep.learn.engine import OutOfRoom
from raysweep.store import records
from raysweep.store.store import Store


@pytest.fixture
def job(tmp_path):
    """A job that one failure ends, in a run of its own."""
    _, jobs = small(tmp_path, "runtime.max_failures=0").missing(Store(tmp_path / "store"), data=None)
    return dataclasses.replace(next(iter(jobs.values())), run="first")


def raising(error):
    def fit():
        raise error

    return fit


GONE = WorkerHealthCheckFailedError("no answer", ActorDiedError())


@pytest.mark.parametrize(
    "error", [ActorDiedError(), OutOfMemoryError("killed"), WorkerGroupError("", {0: ValueError(), 1: GONE})]
)
def test_who_is_killed_is_lost_and_tried_again_however_often_bugs_may_be(job, error):
    assert is_loss(error)
    for _ in range(3):
        with pytest.raises(type(error)):
            attempt(job, raising(error))
    assert (Store(job.store).trial(job.trial) or {}).get("status") != "failed"


@pytest.mark.parametrize("error", [ValueError("bad"), WorkerGroupError("", {1: ValueError("bad")})])
def test_a_bug_counts_even_where_no_worker_could_record_it(job, error):
    assert not is_loss(error)
    summary = attempt(job, raising(error))
    assert (summary["status"], summary["error"], summary["final"]) == ("failed", "ValueError: bad", False)
    assert Store(job.store).trial(job.trial)["of_run"] == {"failures": 1, "preemptions": 0}


def test_what_one_worker_knows_to_fail_again_is_the_result_whatever_the_others_raise(job):
    """It is out of memory, and the others lose their connection to it."""
    errors = {0: RuntimeError("connection closed by peer"), 1: TrialFailed("out of memory at step 3")}
    summary = attempt(job, raising(WorkerGroupError("", errors)))
    assert (summary["status"], summary["error"], summary["final"]) == ("failed", "out of memory at step 3", True)
    assert Store(job.store).trial(job.trial)["error"] == "out of memory at step 3"


@pytest.mark.parametrize("size", [1, 2])
def test_a_rank_that_fails_ends_the_group_that_waits_for_it(job, monkeypatch, size):
    ranks = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: size)
    monkeypatch.setattr("raysweep.cluster.trainer.train.get_context", lambda: ranks)
    monkeypatch.setattr("raysweep.cluster.trainer.execute", lambda job, report: {"status": "failed", "error": "full"})
    if size == 1:
        assert trainer._run_in_worker({"job": job})["error"] == "full"
        return
    with pytest.raises(TrialFailed, match="full"):
        trainer._run_in_worker({"job": job})


def test_tune_tries_as_often_as_both_counts_and_every_halving_allow(job):
    assert tries(job) == 0 + 20 + 20 + 1


def test_a_worker_without_room_has_the_next_attempt_and_counts_as_neither_bug_nor_loss(job):
    """Whichever rank it is, whatever the others raise, and whether or not it wrote that into the record before."""
    store = Store(job.store)
    short = pickle.loads(pickle.dumps(OutOfRoom("out of memory at step 3", 512)))
    assert short.tokens == 512
    before = {"point": dict(job.point), "model": job.model.name, "stages": [], "began": time.time(), "run": job.run}
    for count, status in enumerate(["running", "failed", "running"], start=1):
        header = records.trial_header(before=store.trial(job.trial) or {}, **before)
        written = {**header, "status": status}
        if status == "failed":
            written = records.failed_trial(header, short, before=store.trial(job.trial))
        store.write_trial(job.trial, written)
        with pytest.raises(WorkerGroupError):
            attempt(job, raising(WorkerGroupError("", {0: RuntimeError("connection closed by peer"), 1: short})))
        record = store.trial(job.trial)
        assert (record["attempts"], record["preemptions"]) == (count, 0)
        assert record["of_run"] == {"failures": 0, "preemptions": 0}
        assert not records.gives_up(record, run=job.run)
    assert records.tally(store.trial(job.trial), run=job.run) == {"failures": 0, "preemptions": 0}
