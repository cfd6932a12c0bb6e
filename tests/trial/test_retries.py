"""A bug that repeats stops the attempts of its run; another error, another run, and what is nobody's bug do not."""

from __future__ import annotations

import dataclasses

import pytest
from sweeps import small

import raysweep.trial.execute as executing
from raysweep.store import records
from raysweep.store.store import Store


@pytest.fixture
def job(tmp_path):
    """A job of a run called `first`."""
    _, jobs = small(tmp_path, grid={"d_a": ["kvr"], "mixer": ["none"]}).missing(Store(tmp_path / "store"), data=None)
    return dataclasses.replace(next(iter(jobs.values())), run="first")


def attempt(job):
    """The status of one attempt, or the error that it raised for the caller to try again."""
    try:
        return executing.execute(job, report=lambda event: None)["status"]
    except (RuntimeError, ValueError) as error:
        return type(error).__name__


@pytest.fixture
def broken(monkeypatch):
    """Let training raise these errors, one an attempt; afterwards it trains."""
    real = executing.train

    def breaks(*errors: Exception):
        left = list(errors)

        def train(*arguments, **options):
            if not left:
                return real(*arguments, **options)
            raise left.pop(0)

        monkeypatch.setattr(executing, "train", train)
        return left

    return breaks


def test_the_same_error_twice_is_not_tried_a_third_time(job, broken):
    left = broken(*(RuntimeError(f"at step {step}") for step in range(5)))
    assert [attempt(job) for _ in range(4)] == ["RuntimeError", "RuntimeError", "failed", "failed"]
    assert len(left) == 3
    record = Store(job.store).trial(job.trial)
    assert (record["attempts"], record["error"], record["repeated"]) == (2, "RuntimeError: at step 1", True)


def test_another_error_is_another_chance(job, broken):
    broken(RuntimeError("one"), ValueError("two"))
    assert [attempt(job) for _ in range(3)] == ["RuntimeError", "ValueError", "done"]


def test_a_new_run_tries_again(job, broken):
    broken(RuntimeError("one"), RuntimeError("two"))
    assert [attempt(job) for _ in range(3)] == ["RuntimeError", "RuntimeError", "failed"]
    assert attempt(dataclasses.replace(job, run="second")) == "done"


def test_an_attempt_that_was_killed_is_no_repetition(job, broken):
    broken(RuntimeError("one"), RuntimeError("two"))
    store = Store(job.store)
    assert attempt(job) == "RuntimeError"
    store.write_trial(job.trial, records.lost_trial(store.trial(job.trial)))
    assert [attempt(job), attempt(job)] == ["RuntimeError", "done"]
    record = store.trial(job.trial)
    assert (record["attempts"], record["preemptions"]) == (3, 1)
    assert record["of_run"] == {"failures": 1, "preemptions": 1}, "what a lost attempt raised is no failure"


def test_losses_have_a_bound_of_their_own(job):
    store = Store(job.store)
    job = dataclasses.replace(job, runtime=job.runtime.model_copy(update={"max_preemptions": 2}))
    for lost in range(3):
        header = executing._Trial(job, executing.connect(), lambda event: None)._header
        assert header["of_run"] == {"failures": 0, "preemptions": lost}
    assert attempt(job) == "failed"
    record = store.trial(job.trial)
    assert "lost 3 times in this run, and runtime.max_preemptions allows 2" in record["error"]
    assert attempt(dataclasses.replace(job, run="second")) == "done", "a new run begins anew"
    assert store.trial(job.trial)["preemptions"] == 3, "and the record remembers"
