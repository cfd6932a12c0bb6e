"""What Tune hears from the searcher; Tune itself, and a cluster, are not needed for it."""

from __future__ import annotations

import pytest
from ray.tune.search import Searcher

from raysweep.cluster.searcher import StageSearcher, param_space, point_key
from raysweep.cluster.turns import Turns
from raysweep.plan.schedule import Schedule
from raysweep.store import leases as leases_module
from raysweep.store.files import Files
from raysweep.store.leases import Leases

CHAINS = {"one": ("a", "one"), "two": ("a", "two"), "three": ("b", "three")}


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


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Leases of runs that share a store and know of each other by it alone; they look at it whenever they are asked."""
    monkeypatch.setattr(leases_module, "LOOK", 0.0)
    return lambda name, **options: Leases(Files(tmp_path), holder=name, **options)


@pytest.mark.parametrize("ending", [{"status": "done"}, None])
def test_two_runs_never_train_one_stage_at_a_time(runs, ending):
    ours, _ = searcher(leases=runs("ours"))
    theirs, _ = searcher(leases=runs("theirs"))
    assert suggested(ours, "t1") == ["one"]
    assert suggested(theirs, "t1", "t2") == ["three", None]
    assert suggested(ours, "t2") == [None]
    ours.on_trial_complete("t1", ending)
    if ending:
        assert sorted(suggested(theirs, "t2", "t3")) == ["one", "two"], "both stages are there"
    else:
        assert suggested(theirs, "t2", "t3") == ["one", None], "taken over"


def test_a_trial_that_another_run_has_done_is_not_handed_out(runs):
    done, heard = set(), []
    ours, _ = searcher(leases=runs("ours"))
    theirs, _ = searcher(leases=runs("theirs"), elsewhere=done.__contains__, on_done=heard.append)
    assert suggested(ours, "t1") == ["one"]
    assert suggested(theirs, "t1", "t2") == ["three", None]
    ours.on_trial_result("t1", {"committed": "a"})
    assert suggested(theirs, "t2") == ["two"], "what they share is there"
    ours.on_trial_result("t1", {"committed": "one"})
    assert suggested(theirs, "t3") == [None], "its record is not written yet"
    done.add("one")
    ours.on_trial_complete("t1", {"status": "done"})
    assert suggested(theirs, "t3") == [Searcher.FINISHED]
    assert heard == ["one"]


def test_a_trial_is_handed_out_with_the_tokens_of_its_stages(runs):
    told = {}
    first, _ = searcher(leases=runs("first"))
    suggested(first, "t1")
    first.on_trial_complete("t1", None, error=True)
    second, _ = searcher(leases=runs("second"), on_out=lambda trial, tokens: told.update({trial: dict(tokens)}))
    assert suggested(second, "t1", "t2") == ["one", "three"]
    assert told == {"one": {"a": 2, "one": 2}, "three": {"b": 1, "three": 1}}


def test_a_stage_that_was_committed_and_is_gone_is_trained_by_one_trial(runs):
    before = runs("before")
    before.acquire(("a", "one"))
    before.release(["a"], committed=True)
    before.close()
    made, _ = searcher(leases=runs("after"))
    assert suggested(made, "t1", "t2", "t3") == ["one", "three", None], "two waits for the stage that one trains"
    made.on_trial_result("t1", {"event": "committed", "committed": "a"})
    assert suggested(made, "t3") == ["two"]


def test_a_stage_that_another_run_committed_since_is_not_waited_for(runs):
    made, _ = searcher(leases=runs("ours", there=lambda stage: stage == "a"))
    before = runs("before")
    before.acquire(("a",))
    before.release(["a"], committed=True)
    assert sorted(suggested(made, "t1", "t2", "t3")) == ["one", "three", "two"]


def test_higher_priority_goes_first_and_who_waits_with_nothing_running_gives_all_back(runs):
    def with_turns(name, priority):
        leases = runs(name, says=lambda: turns.says())
        turns = Turns(
            sweep=name, priority=priority, most=1, cluster="c", others=leases.others, clock=lambda: next(times)
        )
        return searcher(leases=leases, turns=turns)[0], leases

    times = iter(range(0, 100_000, 100))
    low, _ = with_turns("low", 0)
    assert suggested(low, "t1") == ["one"], "nobody else is there"
    high, leases = with_turns("high", 5)
    leases.beat()
    low.on_trial_result("t1", {"committed": "a"})
    assert (suggested(low, "t2"), low.waits) == ([None], False), "what runs is not stopped"
    low.on_trial_complete("t1", {"status": "done"})
    assert (suggested(low, "t2"), low.waits) == ([Searcher.FINISHED], True)
    assert suggested(high, "t1") == ["one"]
    high.on_trial_result("t1", {"event": "train"})
    leases.beat()
    again, _ = with_turns("low", 0)
    assert (suggested(again, "t1"), again.waits) == (["three"], False), "who has all that it can have wants no more"


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
