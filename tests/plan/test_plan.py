"""Laws of the plan: what is computed decides an id, and nothing else does; what is shared is counted once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from raysweep.plan.plan import Plan, Sources, make_plan
from raysweep.sweep.file import Places
from raysweep.sweep.grid import Grid
from raysweep.sweep.spec import Sweep
from raysweep.sweep.yaml import parse

GRID = {"d_a": ["kvr"], "d_b": ["id", "gsm8k"], "mixer": ["none/none", "random/none"], "seed": [0, 1]}
SWEEP = {"name": "laws", "model": "tiny", "grid": GRID, "examples": 10}


def sources(**missing: str) -> Sources:
    return Sources(
        lambda model: {"name": model.name}, lambda name: {"set": name}, lambda name: {"mixer": name}, dict(missing)
    )


def grid(changes: Mapping[str, Any] | None = None) -> Grid:
    raw = {**SWEEP, **(changes or {})}
    return Grid(Sweep.model_validate(raw), Places(parse(yaml.safe_dump(raw), "laws.yaml")))


def planned(*changes: Mapping[str, Any]) -> Plan:
    return make_plan([(grid(one), sources()) for one in changes or ({},)])


def test_trials_that_begin_alike_share_their_first_stage() -> None:
    plan = planned()
    assert (len(plan.points), len(plan.trials), len(plan.stages), plan.unshared) == (8, 8, 12, 16)
    assert sorted(plan.uses.values()) == [1] * 8 + [2] * 4


def test_a_ratio_that_mixes_nothing_names_one_trial_for_several_points() -> None:
    plan = planned({"grid": {**GRID, "ratio": [1.0, 2.0], "seed": [0]}})
    assert (len(plan.points), len(plan.trials)) == (8, 6)
    assert len({point.trial for point in plan.points if point.values["mixer"] == "none/none"}) == 2


def test_sweeps_share_with_each_other_what_they_have_in_common() -> None:
    alone = planned()
    other = {"name": "other", "grid": {**GRID, "seed": [1, 2]}}
    both = planned({}, other)
    assert len(both.trials) == 12 and len(both.stages) == 18
    assert both.unshared == alone.unshared + planned(other).unshared
    assert set(alone.trials) < set(both.trials)
    assert [point.sweep for point in both.points] == ["laws"] * 8 + ["other"] * 8


@pytest.mark.parametrize(
    "change",
    [
        {"name": "renamed"},
        {"runtime": {"workers": 4, "micro_batch": 2, "zero": 1}},
        {"keep": "all"},
        {"evaluate": ["popqa"]},
        {"table": {"columns": "seed"}},
        {"train": {"lr": 5e-5, "betas": [0.9, 0.95], "epochs": 20}},
    ],
)
def test_where_and_how_do_not_change_an_id(change: Mapping[str, Any]) -> None:
    assert list(planned(change).trials) == list(planned().trials)


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"lr": 1e-4}},
        {"train": {"batch_size": 16}},
        {"train": {"precision": "fp32"}},
        {"train": {"order": "fixed"}},
        {"examples": 11},
        {"data_seed": 1},
        {"model": "smollm2-135m"},
    ],
)
def test_what_is_computed_changes_every_id(change: Mapping[str, Any]) -> None:
    assert not set(planned(change).stages).intersection(planned().stages)


@pytest.mark.parametrize("change", [{"prompt": {"strip": "train_only"}}, {"evaluate": {"max_new_tokens": 1}}])
def test_a_way_of_evaluating_changes_trials_and_evaluations_and_no_stage(change: Mapping[str, Any]) -> None:
    one, other = planned(), planned(change)
    assert list(one.stages) == list(other.stages)
    assert not set(one.trials).intersection(other.trials), "each has a record of its own"
    assert not evaluations_of(one).intersection(evaluations_of(other))


def evaluations_of(plan: Plan) -> set[str]:
    """The ids of all evaluations of a plan."""
    return {one.id for trial in plan.trials for one in plan.evaluations(trial)}


def test_a_setting_of_a_later_stage_leaves_the_first_alone() -> None:
    one, other = planned(), planned({"train": {"b": {"lr": 1e-4}}})
    first = {plan.stages[trial.stages[0]].id for plan in (one, other) for trial in plan.trials.values()}
    assert len(first) == 4
    assert not set(one.trials).intersection(other.trials)


def test_a_stage_is_named_by_the_one_it_starts_from() -> None:
    plan = planned()
    for trial in plan.trials.values():
        first, second = plan.chain(trial.id)
        assert (first.parent, second.parent) == (None, first.id)
        assert second.config["start"] == {"stage": first.id}


def test_unresolved_sources_still_tell_stages_apart() -> None:
    unknown = Sources(lambda model: None, lambda name: None, lambda name: None, {"set gsm8k": "not here"})
    plan = make_plan([(grid(), unknown)])
    assert (len(plan.trials), len(plan.stages)) == (8, 12)
    assert plan.missing == {"set gsm8k": "not here"}


def test_a_large_grid_is_planned_in_seconds() -> None:
    began = time.process_time()
    plan = planned({"grid": {**GRID, "seed": list(range(5000))}})
    assert len(plan.trials) == 20_000
    assert time.process_time() - began < 10
