"""Processes that die in the middle: the trial goes on elsewhere, and nothing of the result changes."""

from __future__ import annotations

import threading
import time

import psutil
import pytest
from sweeps import SMALL, small

pytestmark = pytest.mark.ray

LONG = {**SMALL["train"], "epochs": 100}
ONE = {**SMALL["grid"], "mixer": ["none/none"]}
NUMBERS = ["trial", "status", "loss_1", "loss_2", "accuracy_a1", "retention", "steps_1", "steps_2"]


def kill_a_worker_once_checkpointed(store, died):
    """Wait for a checkpoint in this store, then kill a process of our own Ray that is at work on a trial."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if any(path.is_file() for path in (store / ".in-flight").rglob("*.json")):
            for process in psutil.Process().children(recursive=True):
                if any("run_warm" in word or "ImplicitFunc" in word for word in _words(process)):
                    process.kill()
                    died.append(process.pid)
                    return
        time.sleep(0.05)


def test_a_killed_worker_changes_no_number(cluster, tmp_path):
    quiet = small(tmp_path, "runtime.checkpoint_every=0.3", grid=ONE, train=LONG)
    store, died = tmp_path / "store", []
    killer = threading.Thread(target=kill_a_worker_once_checkpointed, args=(store, died), daemon=True)
    killer.start()
    outcome = quiet.run(store=store)
    killer.join(timeout=10)
    assert died, "no worker was killed: the test shows nothing"
    assert outcome.failed == {}
    frame = quiet.trials(store=store)
    assert list(frame["attempts"]) == [2]
    quiet.run(store=tmp_path / "calm")
    assert frame[NUMBERS].to_dict("records") == quiet.trials(store=tmp_path / "calm")[NUMBERS].to_dict("records")


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []
