"""Laws of leases: one holder a stage at a time, over any number of processes; who is dead is taken over, who sleeps is not hurt."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from raysweep.errors import BadInput
from raysweep.store import leases as leases_module
from raysweep.store.files import Files
from raysweep.store.leases import BEAT, LEASE, Leases, News, beating


class Clock:
    """An observer's own clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["disk", "bucket"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(tmp_path) if request.param == "disk" else Files(request.getfixturevalue("bucket"))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders that are on other machines: only their signs of life tell."""
    monkeypatch.setattr(leases_module, "_machine", lambda: None)


def holder(files: Files, name: str, **options) -> Leases:
    return Leases(files, holder=name, **options)


def test_a_holder_beats_several_times_within_its_lease() -> None:
    assert LEASE >= 5 * BEAT


def test_a_stage_is_held_by_one_and_the_next_number_is_the_next_holders(files: Files) -> None:
    clock = Clock()
    ours, theirs = holder(files, "ours"), holder(files, "theirs", clock=clock)
    assert ours.acquire(["a", "b"]).tokens == {"a": 1, "b": 1}
    assert ours.acquire(["a"]).tokens == {"a": 1}, "what is held is held"
    answer = theirs.acquire(["a", "c"])
    assert answer.blocked.holder.startswith("ours on ")
    assert (answer.tokens, files.names("leases/c")) == ({}, []), "all or none"
    ours.release(["a"], committed=False)
    clock.now += LEASE
    assert theirs.news() == [News("a", committed=False)]
    assert theirs.acquire(["a", "c"]).tokens == {"a": 2, "c": 1}


def test_what_was_committed_is_there_for_those_it_is_of_use_to(files: Files) -> None:
    ours, theirs = holder(files, "ours"), holder(files, "theirs", there=lambda stage: stage == "a")
    ours.acquire(["a", "b"])
    assert theirs.acquire(["a"]).blocked
    ours.release(["a", "b"], committed=True)
    assert theirs.news() == [News("a", committed=True)]
    answer = theirs.acquire(["a", "b"])
    assert (answer.there, answer.tokens) == (("a",), {"b": 2}), "b's weights are gone: it is made again"


def test_a_holder_that_gives_no_sign_of_life_is_taken_over_by_the_observers_clock(
    files: Files, elsewhere: None
) -> None:
    clock = Clock()
    ours, theirs = holder(files, "ours"), holder(files, "theirs", clock=clock)
    ours.acquire(["a"])
    assert theirs.acquire(["a"]).blocked
    for _ in range(20):
        clock.now += LEASE / 2
        ours.beat()
        assert theirs.news() == []
    clock.now += LEASE / 2
    assert theirs.news() == []
    clock.now += LEASE / 2 + 1
    assert theirs.news() == [News("a", committed=False)]
    assert theirs.acquire(["a"]).tokens == {"a": 2}
    ours.beat()
    ours.release(["a"], committed=True)
    assert holder(files, "third").acquire(["a"]).blocked.token == 2, "what a lower number says changes nothing"


def test_a_holder_that_was_seen_once_long_ago_is_not_dead(files: Files, elsewhere: None) -> None:
    clock = Clock()
    ours, theirs = holder(files, "ours"), holder(files, "theirs", clock=clock)
    ours.acquire(["a"])
    assert theirs.acquire(["a"]).blocked
    ours.beat()
    clock.now += 100 * LEASE
    assert theirs.acquire(["a"]).blocked


def test_a_place_that_can_only_overwrite_holds_no_leases() -> None:
    with pytest.raises(BadInput, match="two runs could not share it"):
        holder(Files("http://127.0.0.1:1/x"), "ours")


def test_closing_gives_all_back(files: Files) -> None:
    with beating(holder(files, "ours")) as ours:
        ours.acquire(["a", "b"])
    assert files.names("leases/beats") == []
    assert holder(files, "theirs").acquire(["a", "b"]).tokens == {"a": 2, "b": 2}


def test_a_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "BEAT", 0.01)
    files = Files(tmp_path)
    with beating(holder(files, "ours")) as ours:
        ours.acquire(["a"])
        end = time.monotonic() + 20
        while json.loads(files.read_bytes(f"leases/beats/{ours._id}"))["beat"] < 5:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_others_say_what_they_say_as_long_as_they_live(files: Files) -> None:
    clock = Clock()
    ours = holder(files, "ours", says=lambda: {"priority": 3})
    theirs = holder(files, "theirs", clock=clock)
    ours.acquire(["a"])
    assert [one["priority"] for one in theirs.others()] == [3]
    clock.now += LEASE + 1
    assert theirs.others() == []


def test_a_damaged_lease_is_that_of_a_holder_who_must_give_a_sign_of_life(files: Files, elsewhere: None) -> None:
    clock = Clock()
    files.write_bytes("leases/a/1", b"\x00torn")
    theirs = holder(files, "theirs", clock=clock)
    assert theirs.acquire(["a"]).blocked
    clock.now += LEASE + 1
    assert theirs.news() == [News("a", committed=False)]
    assert theirs.acquire(["a"]).tokens == {"a": 2}


def _race(url: str, racer: int) -> list[tuple[str, int]]:
    """The stages that one of many processes gets while it keeps all it has."""
    leases = holder(Files(url), f"racer {racer}")
    won = []
    for number in range(10):
        tokens = leases.acquire([f"s{number}"]).tokens
        won += tokens.items()
    time.sleep(3.0)  # nobody's process is gone while others look
    return won


def test_of_many_processes_on_one_disk_one_holds_each_stage(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        won = sum(pool.map(_race, [str(tmp_path)] * 4, range(4)), [])
    assert sorted(won) == sorted((f"s{number}", 1) for number in range(10))


def test_of_two_clusters_on_one_bucket_one_holds_each_stage(bucket: str) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        won = sum(pool.map(_race, [bucket] * 2, range(2)), [])
    assert sorted(won) == sorted((f"s{number}", 1) for number in range(10))


HOLD = """
import sys, time
from raysweep.store.files import Files
from raysweep.store.leases import Leases, beating
with beating(Leases(Files(sys.argv[1]), holder="ours")) as leases:
    print(leases.acquire(["a"]).tokens, flush=True)
    sys.stdin.readline()
    leases._files.write_bytes(".in-flight/a/1/step-9/late", b"by a sleeper")
    leases.release(["a"], committed=True)
"""


@pytest.fixture
def process(tmp_path: Path):
    """Another process that holds stage a."""
    running = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout.readline().strip() == "{'a': 1}"
    yield running
    running.kill()
    running.communicate()


def test_a_killed_holder_on_this_machine_is_taken_over_at_once(tmp_path: Path, process: subprocess.Popen) -> None:
    theirs = holder(Files(tmp_path), "theirs")
    assert theirs.acquire(["a"]).blocked
    process.kill()
    process.wait()
    assert theirs.acquire(["a"]).tokens == {"a": 2}


def test_a_stopped_holder_that_wakes_up_changes_nothing_of_the_next_ones(
    tmp_path: Path, process: subprocess.Popen
) -> None:
    files, clock = Files(tmp_path), Clock()
    theirs = holder(files, "theirs", clock=clock)
    os.kill(process.pid, signal.SIGSTOP)
    assert theirs.acquire(["a"]).blocked
    clock.now += LEASE + 1
    assert theirs.acquire(["a"]).tokens == {"a": 2}
    files.write_bytes(".in-flight/a/2/step-5/shard", b"of the next")
    os.kill(process.pid, signal.SIGCONT)
    process.communicate("go on\n", timeout=60)
    assert process.returncode == 0
    assert files.read_bytes(".in-flight/a/2/step-5/shard") == b"of the next"
    assert holder(files, "third").acquire(["a"]).blocked.token == 2
