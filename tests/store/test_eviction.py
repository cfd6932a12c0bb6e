"""Laws of the disk while a sweep runs: what is needed stays, what is not makes room, and nothing waits for ever."""

from __future__ import annotations

import logging

import pytest
from storing import commit, node

from raysweep.store.eviction import Eviction
from raysweep.store.store import Store

A, B, C = ("a" * 16, "b" * 16, "c" * 16)
CHAINS = {"one": (A, "one"), "two": (A, "two"), "three": (B, "three")}


@pytest.fixture
def store(tmp_path):
    """A store with two stages of ten bytes each."""
    filled = Store(tmp_path)
    for name in (A, B):
        commit(filled, node(name), b"12345")
    return filled


def kept(store):
    return {name for name, record in store.stage_records().items() if record["files"]}


def test_what_a_trial_still_needs_stays(store):
    eviction = Eviction(store, CHAINS, keep="none", most=1)
    eviction.ended("one")
    assert kept(store) == {A, B}
    eviction.ended("two")
    assert kept(store) == {B}


def test_without_a_bound_shared_weights_stay(store):
    eviction = Eviction(store, CHAINS)
    for trial in CHAINS:
        eviction.ended(trial)
    assert kept(store) == {A, B} and eviction.room()


def test_what_another_sweep_waits_for_goes_last(store):
    commit(store, node(C), b"12345")
    eviction = Eviction(store, {"x": (C, "x")}, most=30, elsewhere=[A])
    eviction.ended("another")
    assert kept(store) == {A, C}, "ten bytes are free for the next stage"
    Eviction(store, {"x": (C, "x")}, most=20, elsewhere=[A]).ended("another")
    assert kept(store) == {C}


def test_keep_none_leaves_what_another_sweep_waits_for(store):
    eviction = Eviction(store, CHAINS, keep="none", elsewhere=[B])
    eviction.ended("three")
    assert kept(store) == {A, B}


def test_a_full_store_is_said_once_until_there_is_room_again(store, caplog):
    eviction = Eviction(store, CHAINS, most=25)
    with caplog.at_level(logging.WARNING):
        assert not eviction.room() and not eviction.room()
    assert len(caplog.records) == 1 and "max_store" in caplog.text
    eviction.ended("three")
    assert eviction.room() and kept(store) == {A}


def test_a_store_that_cannot_be_written_ends_no_sweep(store, caplog, monkeypatch):
    monkeypatch.setattr(store, "drop_weights", lambda folder: (_ for _ in ()).throw(OSError("read-only")))
    with caplog.at_level(logging.WARNING):
        Eviction(store, CHAINS, keep="none").ended("three")
    assert "read-only" in caplog.text
