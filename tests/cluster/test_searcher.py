"""What Tune hears from the searcher; Tune itself, and a cluster, are not needed for it."""

from __future__ import annotations

import pytest
from ray.tune.search import Searcher

from raysweep.cluster.claims import Claimed, Ledger
from raysweep.cluster.fair_share import Wish
from raysweep.cluster.searcher import StageSearcher, param_space, point_key
from raysweep.plan.schedule import Schedule

CHAINS = {"one": ("a", "one"), "two": ("a", "two"), "three": ("b", "three")}


class Others:
    """A ledger as one sweep sees it, in this process."""

    def __init__(self, ledger: Ledger, holder: str) -> None:
        self.ledger, self.holder = ledger, holder
        self.since, _ = ledger.news(holder, "store", 0)

    def claim(self, stages):
        return self.ledger.claim(self.holder, "store", stages) if stages else Claimed()

    def committed(self, stage):
        self.ledger.committed(self.holder, "store", stage)

    def wishes(self, wish):
        self.ledger.wishes(self.holder, wish)

    def turn(self, wish):
        return self.ledger.turn(self.holder, wish)

    def release(self, stages):
        self.ledger.release(self.holder, "store", stages)

    def news(self):
        self.since, news = self.ledger.news(self.holder, "store", self.since)
        return news


class Full:
    """A store without room, which remembers what it was told."""

    def __init__(self):
        self.over = []

    def room(self):
        return False

    def committed(self, stage):
        pass

    def ended(self, trial):
        self.over.append(trial)


def searcher(**options):
    """A searcher for `CHAINS`, one point each, with what it dropped."""
    dropped = []
    made = StageSearcher(
        {point_key({"trial_of": name}): name for name in CHAINS},
        Schedule(CHAINS),
        give_up_after=options.pop("give_up_after", 2),
        on_drop=lambda trial, because: dropped.append((trial, because)),
        **options,
    )
    made.set_search_properties(None, None, param_space({"trial_of": tuple(CHAINS)}))
    return made, dropped


def suggested(made, *names):
    found = [made.suggest(name) for name in names]
    return [one["trial"] if isinstance(one, dict) else one for one in found]


def test_siblings_come_when_their_stage_is_reported():
    made, _ = searcher()
    assert suggested(made, "t1", "t2", "t3") == ["one", "three", None]
    made.on_trial_result("t1", {"event": "committed", "committed": "a"})
    assert suggested(made, "t3") == ["two"]
    assert made.suggest("t4") == Searcher.FINISHED


def test_a_trial_that_would_fail_again_takes_its_siblings_along():
    made, dropped = searcher()
    suggested(made, "t1")
    made.on_trial_complete("t1", {"status": "failed"})
    assert dropped == [("two", "one")]


def test_after_a_crash_a_sibling_is_tried():
    made, dropped = searcher()
    suggested(made, "t1")
    made.on_trial_complete("t1", None, error=True)
    assert (suggested(made, "t2"), dropped) == (["two"], [])
    made.on_trial_complete("t2", None, error=True)
    assert suggested(made, "t3") == ["three"]


@pytest.mark.parametrize("ending", [{"status": "done"}, None])
def test_two_sweeps_never_train_one_stage_at_a_time(ending):
    ledger = Ledger()
    ours, _ = searcher(claims=Others(ledger, "ours"))
    theirs, _ = searcher(claims=Others(ledger, "theirs"))
    assert suggested(ours, "t1") == ["one"]
    assert suggested(theirs, "t1", "t2") == ["three", None]
    assert suggested(ours, "t2") == [None]
    ours.on_trial_complete("t1", ending)
    if ending:
        assert sorted(suggested(theirs, "t2", "t3")) == ["one", "two"], "both stages are there"
    else:
        assert suggested(theirs, "t2", "t3") == ["one", None], "taken over"


def test_a_stage_that_was_committed_and_is_gone_is_trained_by_one_trial():
    ledger = Ledger()
    before = Others(ledger, "before")
    before.claim(("a", "one"))
    before.committed("a")
    ledger.leave("before")
    made, _ = searcher(claims=Others(ledger, "after"))
    assert suggested(made, "t1", "t2", "t3") == ["one", "three", None], "two waits for the stage that one trains"
    made.on_trial_result("t1", {"event": "committed", "committed": "a"})
    assert suggested(made, "t3") == ["two"]


def test_sweeps_take_turns_and_one_that_is_over_is_waited_for_no_more():
    ledger, room = Ledger(), Wish(asks={"GPU": 1.0}, room={"GPU": 1.0}, most=1)
    ours, _ = searcher(claims=Others(ledger, "ours"), wish=room)
    theirs, _ = searcher(claims=Others(ledger, "theirs"), wish=room)
    assert (suggested(ours, "t1"), ours.behind) == (["one"], ())
    assert (suggested(theirs, "t1"), theirs.behind) == ([None], ("ours",))
    ours.on_trial_result("t1", {"event": "committed", "committed": "a"})
    ours.on_trial_complete("t1", {"status": "done"})
    assert (suggested(theirs, "t1"), theirs.behind) == (["one"], ()), "who was served less goes first"
    assert (suggested(ours, "t2"), ours.behind) == ([None], ("theirs",))
    ledger.leave("theirs")
    assert (suggested(ours, "t2"), ours.behind) == (["three"], ())


def test_a_full_store_opens_a_stage_only_rather_than_wait_for_nothing():
    space = Full()
    made, _ = searcher(eviction=space)
    assert suggested(made, "t1", "t2") == ["one", None]
    made.on_trial_result("t1", {"committed": "a"})
    assert suggested(made, "t2", "t3") == ["two", None]
    made.on_trial_complete("t1", {"status": "done"})
    made.on_trial_complete("t2", {"status": "done"})
    assert suggested(made, "t3") == ["three"]
    assert space.over == ["one", "two"]
