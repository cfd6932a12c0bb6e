"""Laws of what a trial holds: what the run holds is not asked for again, and what another trains is waited for and used."""

from __future__ import annotations

import threading

import pytest

from raysweep.learn.ranks import Ranks
from raysweep.store.leases import Leases
from raysweep.store.store import Store
from raysweep.trial.leasing import leased

ALONE = Ranks(0, 1, 0)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setattr("raysweep.trial.leasing.WAIT", 0.02)
    return Store(tmp_path)


def test_what_the_run_holds_is_not_asked_for_again(store):
    with leased(store, {"a": 3}, ALONE, holder="ours", lacking=lambda: ["a"]) as leases:
        assert leases.tokens == {"a": 3}
        leases.committed("a")
    assert store.files.names("leases") == []


def test_a_trial_by_itself_holds_what_it_trains_and_ends_it(store):
    with leased(store, {}, ALONE, holder="ours", lacking=lambda: ["a", "b"]) as leases:
        assert leases.tokens == {"a": 1, "b": 1}
        assert Leases(store.files, holder="theirs").acquire(["b"]).blocked
        leases.committed("a")
    assert store.files.read_json("leases/a/1.end")["ended"] == "committed"
    assert store.files.read_json("leases/b/1.end")["ended"] == "given up"


def test_a_stage_that_another_trains_is_waited_for_and_used(store):
    theirs, there = Leases(store.files, holder="theirs"), threading.Event()
    theirs.acquire(["a"])

    def end() -> None:
        there.set()
        theirs.release(["a"], committed=True)

    timer = threading.Timer(0.3, end)
    timer.start()
    with leased(store, {}, ALONE, holder="ours", lacking=lambda: [] if there.is_set() else ["a"]) as leases:
        assert there.is_set()
        assert leases.tokens in ({}, {"a": 2}), "it may have come between two looks"
    timer.join()
