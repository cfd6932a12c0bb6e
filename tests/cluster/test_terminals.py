"""Runs that share a store and nothing else, not even a Ray: what they share is trained once, and nobody hurts the other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweeps import SMALL, write

from raysweep.api import load
from raysweep.store.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

TRAIN = {**SMALL["train"], "a": {"epochs": 200}}


def _terminal(file: Path, store: str) -> subprocess.Popen:
    """A run with a Ray of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "raysweep.cli", "run", str(file), "--store", store]
    return subprocess.Popen(
        command,
        env={**environment, "OMP_NUM_THREADS": "1", "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_two_terminals_on_one_store_both_end_well_and_train_each_stage_once(
    tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    store = Store(tmp_path / "store" if place == "disk" else request.getfixturevalue("bucket"))
    runtime = {"checkpoint_every": 1, "max_failures": 0, "max_trials": 1}
    file = write(tmp_path, train=TRAIN, runtime=runtime, grid={**SMALL["grid"], "mixer": ["none/none", "none/random"]})
    runs: list[subprocess.Popen] = []
    try:
        for number in (1, 2):
            _begin(runs, file, store, alive=number)  # both are at work at one time
        said = [run.communicate(timeout=800)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert [run.returncode for run in runs] == [0, 0], said
    for trial, plan in load(file).plan().trials.items():
        assert store.trial(trial)["status"] == "done"
        for stage in plan.stages:
            ended = [store.files.read_json(f"leases/{stage}/{name}") for name in _ends(store, stage)]
            assert [one["ended"] for one in ended] == ["committed"], (stage, said)
    assert store.files.names(".in-flight") == []


def _begin(runs: list[subprocess.Popen], file: Path, store: Store, *, alive: int) -> None:
    """Begin another run, until so many give signs of life. A Ray that a busy machine did not start in time is begun again."""
    for _ in range(4):
        run = _terminal(file, store.url)
        while run.poll() is None:
            if len([name for name in store.files.names("leases/beats") if ".aside" not in name]) >= alive:
                runs.append(run)
                return
            time.sleep(0.5)
        said = run.communicate()[0]
        assert "timed out during startup" in said or "Failed to start the dashboard" in said, said
    pytest.fail(f"this machine is too busy to start a Ray: {said}")


def _ends(store: Store, stage: str) -> list[str]:
    return [name for name in store.files.names(f"leases/{stage}") if name.endswith(".end")]
