"""Processes that die in the middle: the trial goes on elsewhere, and nothing of the result changes."""

from __future__ import annotations

import threading
import time

import psutil
import pytest
from ray.exceptions import OutOfMemoryError
from ray.tune import Tuner
from storing import checkpoints
from sweeps import SMALL, small

from raysweep.errors import RaysweepError

pytestmark = pytest.mark.ray

LONG = {**SMALL["train"], "epochs": 50}
ONE = {**SMALL["grid"], "mixer": ["none/none"]}
NUMBERS = ["trial", "status", "loss_1", "loss_2", "accuracy_a1", "retention", "steps_1", "steps_2"]


def kill_workers_once_checkpointed(store, died, *, times):
    """As often as said: wait for a new checkpoint in this store, then kill a process of our own Ray that is at work."""
    seen: set[str] = set()
    until = time.monotonic() + 240
    while time.monotonic() < until and len(died) < times:
        new = checkpoints(store) - seen
        at_work = [one for one in psutil.Process().children(recursive=True) if one.pid not in died and _works(one)]
        if new and at_work:
            at_work[0].kill()
            psutil.wait_procs([at_work[0]], timeout=60)
            died.append(at_work[0].pid)
            seen |= checkpoints(store)
        time.sleep(0.05)


def test_a_killed_worker_changes_no_number_and_is_no_failure(cluster, tmp_path):
    """Killed twice, with no failure allowed: the trial goes on both times, and its record says so."""
    shaken = small(tmp_path, "runtime.checkpoint_every=0.3", "runtime.max_failures=0", grid=ONE, train=LONG)
    store, died = tmp_path / "store", []
    killer = threading.Thread(
        target=kill_workers_once_checkpointed, args=(store, died), kwargs={"times": 2}, daemon=True
    )
    killer.start()
    outcome = shaken.run(store=store)
    killer.join(timeout=10)
    assert len(died) == 2, "no worker was killed: the test shows nothing"
    assert outcome.failed == {}
    frame = shaken.trials(store=store)
    assert frame[["attempts", "preemptions"]].to_numpy().tolist() == [[3, 2]]
    quiet = small(tmp_path, grid=ONE, train=LONG)
    quiet.run(store=tmp_path / "calm")
    assert frame[NUMBERS].to_dict("records") == quiet.trials(store=tmp_path / "calm")[NUMBERS].to_dict("records")


def test_a_worker_that_ray_killed_for_memory_does_not_end_the_run(cluster, tmp_path, monkeypatch, caplog):
    """Tune ends with an error of its own then."""
    real, ends = Tuner.fit, iter(range(2))

    def fit(tuner):
        if next(ends, None) is None:
            return real(tuner)
        raise RuntimeError("Caught unexpected exception") from OutOfMemoryError("1 worker(s) were killed")

    monkeypatch.setattr(Tuner, "fit", fit)
    sweep = small(tmp_path)
    outcome = sweep.run(store=tmp_path / "store")
    assert (len(outcome.done), outcome.failed, outcome.stopped) == (2, {}, False)
    assert caplog.text.count("ran out of memory") == 2
    assert set(sweep.trials(store=tmp_path / "store")["status"]) == {"done"}


def test_memory_that_never_suffices_is_said(cluster, tmp_path, monkeypatch):
    def fit(tuner):
        raise RuntimeError("Caught unexpected exception") from OutOfMemoryError("1 worker(s) were killed")

    monkeypatch.setattr(Tuner, "fit", fit)
    with pytest.raises(RaysweepError, match=r"runtime\.max_trials"):
        small(tmp_path, "runtime.max_preemptions=2").run(store=tmp_path / "store")


def _works(process):
    try:
        return any("run_warm" in word or "ImplicitFunc" in word for word in process.cmdline())
    except psutil.Error:
        return False
