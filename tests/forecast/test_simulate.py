"""Laws of virtual time, on table 2's grid and with everything going wrong."""

from __future__ import annotations

import random

import pytest

from raysweep.api import load
from raysweep.forecast.simulate import Disturbances, lower_bound, simulate

TOKENS = {"gsm8k": 190, "math": 250, "evolcode": 450, "apps": 600, "ultrachat": 900}


@pytest.fixture(scope="module")
def table2(root):
    """The chains of table 2, and seconds for each stage on one GPU, spread as real ones are."""
    plan = load(root / "experiments" / "table2.yaml").plan()
    spread = random.Random(0)
    seconds = {
        name: (TOKENS.get(node.stage.selection.set, 40) + (260 if node.stage.mixing else 0))
        * spread.lognormvariate(3, 0.2)
        for name, node in plan.stages.items()
    }
    return {name: trial.stages for name, trial in plan.trials.items()}, seconds


@pytest.mark.parametrize("slots", [4, 8, 32, 64])
def test_a_plan_takes_hardly_longer_than_it_must(table2, slots):
    chains, seconds = table2
    told = simulate(chains, seconds, slots=slots)
    assert told.makespan <= 1.05 * lower_bound(chains, seconds, slots=slots)
    assert (told.done, told.failed, set(told.trained.values())) == (486, 0, {1})
    assert told.work == pytest.approx(sum(seconds.values()))
    assert 0 < told.decided <= told.slowest


@pytest.mark.parametrize("slots", [1, 8, 64, 512, 4096])
def test_no_makespan_is_below_the_bound(table2, slots):
    chains, seconds = table2
    told = simulate(chains, seconds, slots=slots)
    assert told.makespan >= lower_bound(chains, seconds, slots=slots) * (1 - 1e-9)
    assert told.idle == pytest.approx(1 - told.work / (slots * told.makespan), abs=1e-9)


def test_preemptions_lose_work_but_no_trial(table2):
    chains, seconds = table2
    told = simulate(chains, seconds, slots=64, disturbances=Disturbances(preempted_every=20_000, away=600))
    assert told.preemptions > 10 and told.lost > 0
    assert (told.done, told.failed) == (486, 0)
    assert told.work == pytest.approx(sum(seconds.values())), "checkpoints keep the rest"


def test_failures_are_passed_on_to_siblings_or_end_them(table2):
    chains, seconds = table2
    told = simulate(chains, seconds, slots=64, disturbances=Disturbances(failing=0.1, preempted_every=50_000))
    assert told.failed > 10
    assert told.done + told.failed + told.dropped == 486
    assert set(told.trained.values()) == {1}


def test_the_same_seed_is_the_same_run(table2):
    chains, seconds = table2
    odds = Disturbances(preempted_every=20_000, failing=0.02)
    one, other, third = (simulate(chains, seconds, slots=16, disturbances=odds, seed=seed) for seed in (1, 1, 2))
    assert one.makespan == other.makespan != third.makespan


def test_weights_are_kept_no_longer_than_a_trial_needs_them():
    chains = {f"{first}{second}": (first, f"{first}{second}") for first in "abc" for second in "xy"}
    seconds = {stage: 1.0 for chain in chains.values() for stage in chain}
    assert simulate(chains, seconds, slots=2).kept <= 3
    assert simulate(chains, seconds, slots=2, done_stages="abc").kept == 0


def test_what_is_done_takes_no_time():
    chains = {"ax": ("a", "ax"), "ay": ("a", "ay")}
    seconds = {"a": 10.0, "ax": 1.0, "ay": 2.0}
    assert simulate(chains, seconds, slots=2, done_stages=["a"]).makespan == 2.0
    assert lower_bound(chains, seconds, slots=2, done_stages=["a"]) == 2.0
    assert simulate(chains, seconds, slots=2).makespan == 12.0
    assert simulate(chains, seconds, slots=1, per_trial=5.0).makespan == 23.0
