"""Shared stages on a real Ray: trained once, kept as long as they are needed, and passed on when one fails."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from sweeps import SMALL, small, write

from raysweep.api import load
from raysweep.store.store import Store

pytestmark = pytest.mark.ray

GRID = {**SMALL["grid"], "mixer": ["none/none", "none/random"], "ratio": [1.0, 2.0]}


def test_weights_go_when_no_trial_needs_them_and_come_back_when_one_does(cluster, tmp_path):
    store = Store(tmp_path / "store")
    sweep = small(tmp_path, "keep=none", grid=GRID)
    assert len(sweep.run(store=store.url).done) == 3
    records = store.stage_records()
    assert len(records) == 4 and not any(record["files"] for record in records.values())
    grown = small(tmp_path, "keep=shared", grid={**GRID, "ratio": [1.0, 2.0, 3.0]})
    assert len(grown.run(store=store.url).done) == 1
    assert sum(bool(record["files"]) for record in store.stage_records().values()) == 1
    frame = grown.trials(store=store.url).drop_duplicates("trial")
    assert frame["loss_1"].nunique() == 1, "the same seed gives the same stage again"


def test_a_full_store_slows_a_sweep_but_ends_it(cluster, tmp_path):
    grid = {**SMALL["grid"], "mixer": ["none/none", "none/random"], "seed": [0, 1]}
    sweep = small(tmp_path, "runtime.max_store=9MB", grid=grid)
    assert len(sweep.run(store=tmp_path / "store").done) == 4
    kept = [record for record in Store(tmp_path / "store").stage_records().values() if record["files"]]
    assert len(kept) <= 1


@pytest.mark.parametrize("killed", [False, True])
def test_two_sweeps_on_one_cluster_train_what_they_share_once(cluster, tmp_path, killed):
    """The second begins while the first is at work on their stage: it waits, or takes over when the first dies."""
    store = Store(tmp_path / "store")
    long = {"train": {**SMALL["train"], "a": {"epochs": 60}}, "runtime": {"max_trials": 1}}
    grids = {mixer: {**SMALL["grid"], "mixer": [mixer]} for mixer in ("none/none", "none/random")}
    other = write(tmp_path, name="other", grid=grids["none/random"], **long).rename(tmp_path / "other.yaml")
    ours = small(tmp_path, name="ours", grid=grids["none/none"], **long)
    first, second = next(iter(ours.plan().trials.values())).stages
    running = subprocess.Popen(
        [sys.executable, "-m", "raysweep.cli", "run", str(other), "--store", store.url, "--address", _address()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_for(store.files.local / ".in-flight" / first, running)
        if killed:
            running.kill()
        outcome = ours.run(store=store.url, address="auto")
        said = running.communicate(timeout=300)[1]
    finally:
        running.kill()
        running.wait()
    assert (outcome.done, outcome.failed) == ((second,), {})
    assert store.trial(second)["reused"] == ([] if killed else [first]), said
    if not killed:
        assert running.returncode == 0, said
        assert store.trial(load(other).plan().points[0].trial)["reused"] == []


def _address() -> str:
    import ray

    return ray.get_runtime_context().gcs_address


def _wait_for(path, running) -> None:
    for _ in range(3000):
        if path.exists():
            return
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.1)
    pytest.fail(f"{path} did not appear")
