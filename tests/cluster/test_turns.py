"""Laws of turns: a higher priority that wants room goes first, on its own cluster, and equals do not wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from heads import Head
from sweeps import SMALL, write

from raysweep.api import trials
from raysweep.cluster.turns import LOOK, Turns


def turns(others: list, *, priority: int = 0, cluster: str = "c", clock=lambda: 0.0) -> Turns:
    return Turns(sweep="ours", priority=priority, most=4, cluster=cluster, others=lambda: others, clock=clock)


def says(name: str, **more) -> dict:
    return {"sweep": name, "priority": 0, "cluster": "c", "wants": True, **more}


def test_only_higher_priority_on_the_same_cluster_goes_first():
    others = [says("equal"), says("high", priority=2), says("far", priority=9, cluster="d"), says("low", priority=-1)]
    assert turns(others).look() == ("high",)


def test_who_has_all_it_can_have_is_not_waited_for():
    other = turns([], priority=1)
    for started, running, waiting, wants in [(0, 0, 9, True), (3, 4, 9, True), (4, 4, 9, False), (1, 1, 0, False)]:
        other.has(running=running, started=started, waiting=waiting)
        assert bool(turns([other.says()]).look()) is wants


def test_a_run_that_says_nothing_of_turns_is_not_waited_for():
    assert turns([{"holder": "a trial on a laptop", "beat": 3}]).look() == ()


def test_others_are_asked_now_and_then_only():
    asked, now = [], [0.0]

    def others():
        asked.append(1)
        return []

    ours = Turns(sweep="ours", priority=0, most=1, cluster="c", others=others, clock=lambda: now[0])
    for _ in range(100):
        ours.look()
    assert len(asked) == 1
    now[0] += LOOK
    ours.look()
    assert len(asked) == 2


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_of_higher_priority_goes_first_on_one_ray_and_both_end(tmp_path, head):
    """The first has begun when the second comes: it starts nothing more until the second is done, and then goes on."""
    runs = [_run(tmp_path / "low", tmp_path / "store", head, trials=4, priority=0)]
    try:
        _wait_for_work(tmp_path / "store", runs[0])
        runs.append(_run(tmp_path / "high", tmp_path / "store", head, trials=2, priority=1))
        for run in runs:
            said = run.communicate(timeout=700)[0]
            assert run.returncode == 0, said
    finally:
        for run in runs:
            run.kill()
            run.wait()
    low, high = (trials(name, store=tmp_path / "store") for name in ("low", "high"))
    assert set(low["status"]) | set(high["status"]) == {"done"}
    assert high["finished"].max() < low["finished"].max()


def _run(folder: Path, store: Path, head: Head, *, trials: int, priority: int) -> subprocess.Popen:
    """A sweep of so many trials of one stage, begun in a process of its own."""
    folder.mkdir()
    grid = {"d_a": ["kvr"], "mixer": ["none"], "seed": [10 * priority + seed for seed in range(trials)]}
    train = {**SMALL["train"], "epochs": 40}
    file = write(folder, name=folder.name, grid=grid, train=train, runtime={"priority": priority})
    options = ["--store", str(store), "--address", head.address]
    command = [sys.executable, "-m", "raysweep.cli", "run", str(file), *options]
    environment = {**os.environ, **head.environment, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _wait_for_work(store: Path, run: subprocess.Popen) -> None:
    """Until a stage is being trained."""
    end = time.monotonic() + 300
    while not (store / ".in-flight").is_dir():
        assert run.poll() is None and time.monotonic() < end, run.communicate()[0]
        time.sleep(0.1)
