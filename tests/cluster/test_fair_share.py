"""Laws of turns: equals share equally, priority goes first, one alone gets all, and nothing that somebody wants is idle."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from heads import Head
from sweeps import SMALL, write

from raysweep.cluster.fair_share import FairShare, Wish, targets


def wish(asks: float | dict = 1.0, *, room: float | dict = 8.0, most: int = 8, waiting: int = 100, **more) -> Wish:
    """A sweep on a cluster of eight GPUs that wants many trials of one."""
    asks, room = ({"GPU": one} if isinstance(one, float) else one for one in (asks, room))
    return Wish(asks=asks, room=room, most=most, waiting=waiting, **more)


def given(**wishes: Wish) -> dict[str, int]:
    return targets(wishes, served={})


class Cluster:
    """Slots on virtual time, as Tune and Ray use them: every sweep asks at once, and has one trial at most that waits for
    room; who asked first gets it."""

    def __init__(self, slots: int, **sweeps: Wish) -> None:
        self.now = 0.0
        self.slots = slots
        self.turns = FairShare(lambda: self.now)
        self.wishes = {name: dataclasses.replace(one, room={"GPU": float(slots)}) for name, one in sweeps.items()}
        self.pending: list[str] = []
        self.at_work: list[str] = []
        self.history: list[str] = []

    def second(self) -> dict[str, int]:
        """Ask and start as long as that changes anything; then a second passes, and the oldest trial ends."""
        while any([*map(self._ask, self.wishes), *map(self._start, list(self.pending))]):
            pass
        counts = {name: self.at_work.count(name) for name in self.wishes}
        self.now += 1.0
        if self.at_work:
            self._change(self.at_work.pop(0), running=-1, started=-1)
        return counts

    def _ask(self, name: str) -> bool:
        wish = self.wishes[name]
        if name in self.pending or not wish.waiting or wish.running >= wish.most or self.turns.take(name, wish):
            return False
        self._change(name, running=1, waiting=-1)
        self.pending.append(name)
        return True

    def _start(self, name: str) -> bool:
        used = sum(self.wishes[other].asks["GPU"] for other in self.at_work)
        if used + self.wishes[name].asks["GPU"] > self.slots:
            return False
        self._change(name, started=1)
        for places in (self.at_work, self.history):
            places.append(name)
        self.pending.remove(name)
        return True

    def _change(self, name: str, **by: int) -> None:
        one = self.wishes[name]
        self.wishes[name] = dataclasses.replace(
            one, **{field: getattr(one, field) + more for field, more in by.items()}
        )
        self.turns.tell(name, self.wishes[name])


def test_a_sweep_alone_gets_all_that_fits():
    assert given(one=wish()) == {"one": 8}
    assert given(one=wish(most=3)) == {"one": 3}, "runtime.max_trials"
    assert FairShare().take("one", wish(running=8, waiting=1)) == (), "Tune and Ray know better what fits"


def test_equals_get_equal_shares_of_what_they_take_most_of():
    assert given(one=wish(), two=wish()) == {"one": 4, "two": 4}
    assert given(small=wish(1.0), large=wish(4.0)) == {"small": 4, "large": 1}
    gpus = wish({"GPU": 1.0, "CPU": 1.0}, room={"GPU": 8.0, "CPU": 96.0})
    cpus = wish({"CPU": 1.0}, room={"CPU": 96.0}, most=96)
    assert given(gpus=gpus, cpus=cpus) == {"gpus": 8, "cpus": 88}, "they do not stand in each other's way"


def test_what_one_cannot_use_the_others_get():
    assert given(one=wish(waiting=1), two=wish()) == {"one": 1, "two": 7}
    assert given(one=wish(waiting=0, running=0), two=wish()) == {"one": 0, "two": 8}
    assert given(large=wish(16.0), small=wish()) == {"large": 0, "small": 8}, "what never fits blocks nobody"


def test_priority_goes_first_and_the_rest_gets_what_is_left():
    assert given(low=wish(), high=wish(priority=1)) == {"low": 0, "high": 8}
    assert given(low=wish(), high=wish(priority=1, waiting=3)) == {"low": 5, "high": 3}
    assert given(low=wish(priority=-5), one=wish(), two=wish()) == {"low": 0, "one": 4, "two": 4}


def test_a_latecomer_has_its_half_once_enough_trials_have_ended():
    cluster = Cluster(8, early=wish(), late=wish(waiting=0))
    assert cluster.second() == {"early": 8, "late": 0}
    cluster.wishes["late"] = wish(waiting=100)
    seen = [cluster.second() for _ in range(12)]
    assert [one["late"] for one in seen[:6]] == [0, 1, 2, 3, 4, 4], "nothing that runs is stopped"
    assert all(one == {"early": 4, "late": 4} for one in seen[4:]), "and nothing is idle"


def test_where_only_one_fits_they_take_turns():
    cluster = Cluster(1, one=wish(most=1), two=wish(most=1))
    for _ in range(10):
        cluster.second()
    assert cluster.history in (["one", "two"] * 5, ["two", "one"] * 5)


def test_a_large_trial_is_not_starved_by_small_ones():
    cluster = Cluster(4, small=wish(most=4), large=wish(4.0, most=1))
    for _ in range(40):
        cluster.second()
    assert cluster.history.count("large") >= 3
    assert cluster.history.count("small") >= 12


def test_who_has_left_is_waited_for_no_more():
    turns = FairShare()
    turns.tell("one", wish(priority=1))
    assert turns.take("two", wish()) == ("one",)
    turns.leave("one")
    assert turns.take("two", wish()) == ()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("priority", "trials"), [(0, 10), (1, 5)])
def test_two_sweeps_on_one_ray(tmp_path, head, priority, trials):
    """Two slots: the second sweep has half of them, or with a higher priority all, while the first one waits; both end."""
    first = _run(tmp_path / "one", head, trials=trials, priority=0)
    _wait_for_work(tmp_path / "one", first)
    runs = [first, _run(tmp_path / "two", head, trials=3, priority=priority)]
    try:
        for run in runs:
            said = run.communicate(timeout=700)[0]
            assert run.returncode == 0, said
    finally:
        for run in runs:
            run.kill()
    one, two = (_spans(tmp_path / name) for name in ("one", "two"))
    assert (len(one), len(two)) == (trials, 3)
    begun = sorted(start for start, _ in two)[priority]  # by then the first has made room
    over = min(max(end for _, end in spans) for spans in (one, two))
    share = _busy(two, begun, over) / (_busy(one, begun, over) + _busy(two, begun, over))
    assert share == pytest.approx(0.5, abs=0.2) if priority == 0 else share > 0.7, (one, two)


def _run(folder: Path, head: Head, *, trials: int, priority: int) -> subprocess.Popen:
    """A sweep of so many trials of one stage, begun in a process of its own."""
    folder.mkdir()
    grid = {"d_a": ["kvr"], "mixer": ["none"], "seed": list(range(trials))}
    train = {**SMALL["train"], "epochs": 100}
    file = write(folder, name=folder.name, grid=grid, train=train, runtime={"priority": priority})
    command = [
        sys.executable,
        "-m",
        "raysweep.cli",
        "run",
        str(file),
        "--store",
        str(folder / "store"),
        "--address",
        head.address,
    ]
    environment = {**os.environ, **head.environment, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _wait_for_work(folder: Path, run: subprocess.Popen) -> None:
    """Until a stage of this sweep is being trained."""
    end = time.monotonic() + 300
    while not (folder / "store" / ".in-flight").is_dir():
        assert run.poll() is None and time.monotonic() < end, run.communicate()[0]
        time.sleep(0.1)


def _spans(folder: Path) -> list[tuple[float, float]]:
    """When each trial was at work, in seconds since 1970."""
    records = [json.loads(path.read_text()) for path in (folder / "store" / "trials").glob("*/record.json")]
    return [
        tuple(datetime.fromisoformat(record[name]).timestamp() for name in ("started", "finished"))
        for record in records
    ]


def _busy(spans: list[tuple[float, float]], begun: float, over: float) -> float:
    return sum(max(0.0, min(end, over) - max(start, begun)) for start, end in spans)
