"""Laws of the schedule, on random forests of stages with random failures."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.plan.schedule import Schedule, settled


def chains(*trials: str) -> dict[str, tuple[str, ...]]:
    """`abc` is the trial whose stages are a, ab and abc."""
    return {trial: tuple(trial[: end + 1] for end in range(len(trial))) for trial in trials}


names = st.text(alphabet="abc", min_size=1, max_size=4)
forests = st.lists(names, min_size=1, max_size=25, unique=True).map(lambda trials: chains(*trials))


class Cluster:
    """A made-up cluster: runs what the schedule hands out, and breaks the run where a law is broken."""

    def __init__(
        self,
        forest: dict[str, tuple[str, ...]],
        *,
        slots: int,
        seed: int,
        done: frozenset[str] = frozenset(),
        losing: bool = False,
    ) -> None:
        self.forest = forest
        self.schedule = Schedule(forest, done_stages=done, slots=slots)
        self.slots = slots
        self.random = random.Random(seed)
        self.there = set(done)
        self.running: dict[str, list[str]] = {}
        self.ran: list[str] = []
        self.trained: list[str] = []
        self.dropped: list[str] = []
        self.failures: dict[str, int] = {}
        self.losing = losing

    def run(self, *, failing: float, give_up_after: int = 3) -> None:
        for _ in range(10_000):
            self.fill()
            if not self.running:
                break
            self.step(self.random.choice(sorted(self.running)), failing, give_up_after)
        assert not self.running and self.schedule.left == 0, "it hangs"
        assert sorted([*self.ran, *self.dropped]) == sorted(self.forest), "each trial runs once or is dropped"

    def fill(self) -> None:
        while len(self.running) < self.slots and (trial := self.schedule.next()):
            missing = [stage for stage in self.forest[trial] if stage not in self.there]
            assert not {stage for others in self.running.values() for stage in others}.intersection(missing)
            self.running[trial] = missing
            self.ran.append(trial)
        if not self.losing:
            self.check()

    def check(self) -> None:
        out = {*self.ran, *self.dropped}
        if len(self.running) < self.slots:
            held = {stage for others in self.running.values() for stage in others}
            idle = [trial for trial in self.forest if trial not in out and not held.intersection(self.forest[trial])]
            assert not idle, "a slot is idle while these could run"
        assert self.schedule.left == len(self.forest) - len(out)
        assert not set(self.schedule.waiting()).intersection(out)
        for stage, holder in self.schedule.waiting().values():
            assert stage in self.running[holder]

    def step(self, trial: str, failing: float, give_up_after: int) -> None:
        missing = self.running[trial]
        assert self.losing or self.schedule.path(trial) == tuple(missing)
        if not missing:
            del self.running[trial]
            return self.schedule.finished(trial)
        if self.random.random() < failing:
            del self.running[trial]
            return self.fail(trial, missing[0], give_up_after)
        stage = missing.pop(0)
        self.there.add(stage)
        self.trained.append(stage)
        if not self.losing:
            self.schedule.committed(stage)
        return None

    def fail(self, trial: str, stage: str, give_up_after: int) -> None:
        if self.random.random() < 0.3:
            return self.schedule.ended(trial)
        dropped = self.schedule.failed(trial, give_up_after=give_up_after)
        self.failures[stage] = self.failures.get(stage, 0) + 1
        if dropped:
            assert self.failures[stage] >= give_up_after
            assert all(stage in self.forest[other] for other in dropped)
        self.dropped += dropped
        return None


@given(forests, st.integers(1, 8), st.integers(0, 10_000))
def test_every_trial_runs_and_no_stage_is_trained_twice(forest, slots, seed) -> None:
    cluster = Cluster(forest, slots=slots, seed=seed)
    cluster.run(failing=0.0)
    assert sorted(cluster.trained) == sorted({stage for chain in forest.values() for stage in chain})


@given(forests, st.integers(1, 8), st.integers(0, 10_000), st.floats(0.05, 0.6))
@settings(max_examples=200)
def test_failures_reassign_or_drop_and_nothing_hangs(forest, slots, seed, failing) -> None:
    cluster = Cluster(forest, slots=slots, seed=seed)
    cluster.run(failing=failing)
    assert len(cluster.trained) == len(set(cluster.trained))


@given(forests, st.integers(1, 8), st.integers(0, 10_000))
def test_the_end_of_a_trial_tells_what_its_reports_did_not(forest, slots, seed) -> None:
    cluster = Cluster(forest, slots=slots, seed=seed, losing=True)
    cluster.run(failing=0.0)
    assert len(cluster.trained) == len(set(cluster.trained))


@given(forests, st.integers(1, 4), st.integers(0, 10_000), st.data())
def test_what_the_store_holds_is_not_trained(forest, slots, seed, data) -> None:
    stages = sorted({stage for chain in forest.values() for stage in chain})
    done = frozenset(data.draw(st.sets(st.sampled_from(stages))))
    cluster = Cluster(forest, slots=slots, seed=seed, done=done)
    cluster.run(failing=0.0)
    assert not done.intersection(cluster.trained)


def test_siblings_start_the_moment_their_stage_is_committed() -> None:
    schedule = Schedule(chains("ab", "ac", "ad"))
    assert (schedule.next(), schedule.next()) == ("ab", None)
    assert schedule.waiting() == {"ac": ("a", "ab"), "ad": ("a", "ab")}
    schedule.committed("a")
    assert (schedule.next(), schedule.next(), schedule.next()) == ("ac", "ad", None)


def test_a_holder_that_ends_without_its_stage_is_followed_by_a_sibling() -> None:
    schedule = Schedule(chains("ab", "ac"))
    assert schedule.next() == "ab"
    schedule.ended("ab")
    assert schedule.next() == "ac"
    assert schedule.path("ac") == ("a", "ac")


def test_a_stage_that_fails_too_often_takes_only_its_own_siblings_along() -> None:
    schedule = Schedule(chains("ab", "ac", "ad", "ae", "x"))
    assert [schedule.next(), schedule.failed("ab", give_up_after=2)] == ["ab", []]
    assert [schedule.next(), schedule.failed("ac", give_up_after=2)] == ["ac", ["ad", "ae"]]
    assert [schedule.next(), schedule.next()] == ["x", None]


def test_a_failure_in_a_later_stage_does_not_count_against_the_first() -> None:
    schedule = Schedule(chains("ab", "ac"))
    schedule.next()
    schedule.committed("a")
    assert schedule.failed("ab", give_up_after=1) == []
    assert schedule.next() == "ac"


def test_what_takes_longest_and_unlocks_most_goes_first() -> None:
    long = Schedule(chains("ab", "x", "y"), costs={"a": 1, "ab": 5, "x": 4, "y": 7}, slots=4)
    assert [long.next() for _ in range(3)] == ["y", "ab", "x"]
    many = Schedule(chains("ab", "ac", "ad", "ae", "x"), costs={"x": 3}, slots=1)
    assert many.next() == "ab", "five seconds of work wait behind a"


def test_a_trial_that_ends_where_others_go_on_is_not_lost() -> None:
    schedule = Schedule(chains("a", "ab"))
    assert (schedule.next(), schedule.next()) == ("ab", None)
    schedule.committed("a")
    assert schedule.next() == "a" and schedule.path("a") == ()


def test_without_room_nothing_is_opened_that_others_start_from() -> None:
    schedule = Schedule(chains("ab", "ac", "x"))
    assert [schedule.next(opening=False), schedule.next(opening=False)] == ["x", None]
    assert schedule.next() == "ab"


def test_a_stage_that_is_trained_elsewhere_is_waited_for_and_taken_over() -> None:
    schedule = Schedule(chains("ab", "ac", "x"))
    schedule.put_back(schedule.next(), stage="a", holder="another sweep")
    assert schedule.waiting() == {"ab": ("a", "another sweep"), "ac": ("a", "another sweep")}
    assert [schedule.next(), schedule.next()] == ["x", None]
    schedule.freed("a")
    assert schedule.next() == "ab"
    schedule.put_back("ab", stage="ab", holder="another sweep")
    assert schedule.next() is None
    schedule.committed("a")
    assert (schedule.next(), schedule.next()) == ("ac", None)
    schedule.committed("ab")
    assert schedule.next() == "ab" and schedule.left == 0


@pytest.mark.parametrize("there", ["ab", "abc"])
def test_a_trial_that_is_put_back_is_not_lost_where_its_stages_were_committed_meanwhile(there: str) -> None:
    """Whoever was found at work on the first stage was through with it by the time the later one was looked at."""
    schedule = Schedule(chains("abc"))
    trial = schedule.next()
    schedule.committed(there)
    schedule.put_back(trial, stage="a", holder="another sweep")
    assert (schedule.waiting(), schedule.left) == ({}, 1)
    assert (schedule.next(), schedule.left) == ("abc", 0)
    assert schedule.path("abc") == tuple({"ab": ["abc"], "abc": []}[there])


@pytest.mark.parametrize("trials", [10_000, 40_000])
def test_a_hand_out_does_not_depend_on_how_many_trials_there_are(trials: int) -> None:
    forest = {f"{trial}": (f"a{trial % (trials // 10)}", f"b{trial}") for trial in range(trials)}
    schedule = Schedule(forest, slots=64)
    began = time.process_time()
    assert sum(1 for _ in _drained(schedule)) == trials
    assert (time.process_time() - began) / trials < 200e-6


def _drained(schedule: Schedule) -> Iterator[str]:
    out: list[str] = []
    while True:
        while trial := schedule.next():
            out.append(trial)
            yield trial
        if not out:
            return
        schedule.finished(out.pop())


def test_weights_are_needed_only_where_something_is_trained_from_them() -> None:
    both = [("a", "ab", "abc"), ("a", "ax")]
    assert settled(both, held={"a": False, "ab": False, "abc": False, "ax": False}) == {"a", "ab", "abc", "ax"}
    assert settled(both, held={"a": False, "ab": True}) == {"ab"}
    assert settled(both, held={"a": True, "ab": False, "ax": False}) == {"a", "ax"}
    assert settled([("a",), ("a", "ab")], held={"a": False}) == set()
