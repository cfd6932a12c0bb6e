"""Laws of the claims: one stage, one holder; the dead hold nothing; what happens is told once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from raysweep.cluster import claims
from raysweep.cluster.claims import LEASE, Claimed, Ledger, News


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(clock)


def test_a_stage_has_one_holder_and_a_claim_is_whole_or_nothing(ledger):
    assert ledger.claim("one", "store", ("a", "ab")) == Claimed()
    assert ledger.claim("two", "store", ("x", "a", "ac")) == Claimed(blocked=("a", "one"))
    assert ledger.claim("three", "store", ("x",)) == Claimed(), "two got nothing"
    assert ledger.claim("one", "store", ("a", "ac")) == Claimed(), "a sweep may ask again for what it holds"


def test_stores_do_not_know_of_each_other(ledger):
    ledger.claim("one", "store", ("a",))
    assert ledger.claim("two", "another", ("a",)) == Claimed()


def test_what_is_committed_is_told_and_never_claimed_again(ledger):
    since, _ = ledger.news("two", "store", 0)
    ledger.claim("one", "store", ("a", "ab"))
    ledger.committed("one", "store", "a")
    assert ledger.claim("two", "store", ("a", "ac")) == Claimed(there=("a",))
    since, news = ledger.news("two", "store", since)
    assert news == [News("a", committed=True)]
    assert ledger.news("two", "store", since) == (since, [])


def test_what_was_committed_before_a_sweep_joined_is_for_the_store_to_say(ledger):
    """It may be pruned, torn or removed by now: who found it missing trains it, and another waits for that."""
    ledger.claim("one", "store", ("a", "ab"))
    ledger.committed("one", "store", "a")
    ledger.leave("one")
    assert ledger.claim("two", "store", ("a", "ac")) == Claimed(), "two's to train"
    assert ledger.claim("three", "store", ("a", "ad")) == Claimed(blocked=("a", "two"))
    ledger.committed("two", "store", "a")
    assert ledger.claim("three", "store", ("a", "ad")) == Claimed(there=("a",)), "three saw this one"


def test_who_saw_a_commit_waits_for_one_who_found_it_gone(ledger):
    ledger.beat("early")
    ledger.committed("one", "store", "a")
    assert ledger.claim("late", "store", ("a",)) == Claimed()
    assert ledger.claim("early", "store", ("a", "ab")) == Claimed(blocked=("a", "late"))


def test_commits_that_nobody_needs_to_hear_of_are_forgotten(ledger):
    ledger.beat("early")
    ledger.committed("one", "store", "a")
    ledger.leave("one")
    assert ledger.claim("early", "store", ("a",)) == Claimed(there=("a",)), "others' leaving takes nothing from it"
    ledger.leave("early")
    assert not ledger._there


def test_what_is_given_back_is_free_and_told(ledger):
    ledger.claim("one", "store", ("a", "ab"))
    ledger.release("one", "store", ("a", "ab"))
    assert ledger.news("two", "store", 0)[1] == [News("a", committed=False), News("ab", committed=False)]
    assert ledger.claim("two", "store", ("a",)) == Claimed()
    ledger.release("one", "store", ("a",))
    assert ledger.claim("three", "store", ("a",)).blocked == ("a", "two"), "nobody gives back what another holds"


def test_the_dead_hold_nothing(ledger, clock):
    ledger.claim("one", "store", ("a",))
    clock.now = LEASE - 1
    assert ledger.claim("two", "store", ("a",)).blocked == ("a", "one")
    clock.now = LEASE + 1
    assert ledger.news("two", "store", 0)[1] == [News("a", committed=False)]
    assert ledger.claim("two", "store", ("a",)) == Claimed()


def test_old_news_is_forgotten_and_new_news_is_not_lost(ledger, monkeypatch):
    monkeypatch.setattr("raysweep.cluster.claims.REMEMBERED", 10)
    since = 0
    heard = []
    for stage in range(100):
        ledger.committed("one", "store", str(stage))
        since, news = ledger.news("two", "store", since)
        heard += [one.stage for one in news]
    assert heard == [str(stage) for stage in range(100)]
    assert len(ledger.news("two", "store", 0)[1]) <= 10


class Ledgers:
    """Ray's part: calls to the ledger that its name leads to, which may be dead for some of them."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.failures = 0

    def __getattr__(self, what: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *arguments: (what, arguments))

    def get(self, call: tuple[str, tuple]) -> Any:
        what, arguments = call
        if what == "claim" and self.failures:
            self.failures -= 1
            self.ledger = Ledger()
            raise RayActorError
        return getattr(self.ledger, what)(*arguments)


def test_a_ledger_that_does_not_answer_is_asked_again_and_what_was_waited_for_is_free(monkeypatch):
    """A name leads to a dead ledger until Ray knows that its node is gone."""
    ledgers = Ledgers()
    monkeypatch.setattr(claims, "AGAIN", 0.0)
    monkeypatch.setattr(claims, "_connect", lambda: ledgers)
    monkeypatch.setattr(claims.ray, "get", ledgers.get)
    one = claims.Claims("store", sweep="one")
    ledgers.ledger.claim("other", "store", ("a",))
    assert one.claim(("a",)).blocked == ("a", "other")
    ledgers.failures = 3
    assert one.claim(("b",)) == Claimed()
    assert one.news() == [News("a", committed=False)]
    one.close()
