"""Laws of what is evaluated: every earlier stage's own examples, whatever the length of the chain, and ids that say how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from test_plan import grid

from raysweep.plan.evaluator import Evaluation, Rule
from raysweep.plan.plan import Plan, Sources, make_plan

RULES = {"exact": Rule(1, 1000), "contains": Rule(1, 1000), "numeric": Rule(1, 512)}


def planned(*changes: Mapping[str, Any], rules: Mapping[str, Rule] = RULES) -> Plan:
    names = Sources(
        lambda model: {"name": model.name},
        lambda name: {"set": name},
        lambda name: {"mixer": name},
        of_scorer=rules.get,
    )
    return make_plan([(grid({"grid": chain(2), **change}), names) for change in changes or ({},)])


def chain(stages: int, **more: Any) -> dict[str, Any]:
    """A grid of one trial on D_A and other pairs."""
    later = {f"d_{'bcdefghij'[place]}": ["id"] for place in range(stages - 1)}
    return {"d_a": ["kvr"], **later, **more}


def evaluations(plan: Plan) -> tuple[Evaluation, ...]:
    """Those of a plan's only trial."""
    (trial,) = plan.trials
    return plan.evaluations(trial)


def places(plan: Plan) -> list[tuple[int, str | None]]:
    return [(one.after, one.of or one.label) for one in evaluations(plan)]


def ids(plan: Plan) -> set[str]:
    return {one.id for trial in plan.trials for one in plan.evaluations(trial)}


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_every_stage_is_evaluated_on_all_sets_so_far(stages: int) -> None:
    letters = "abcde"
    wanted = [(after, letters[of]) for after in range(1, stages + 1) for of in range(after)]
    assert places(planned({"grid": chain(stages)})) == wanted


def test_a_long_chain_is_evaluated_on_all_sets_at_its_end() -> None:
    found = places(planned({"grid": chain(6)}))
    assert [of for after, of in found if after == 6] == list("abcdef")
    assert [of for after, of in found if after == 5] == ["a", "e"], "D_A and its own as ever"


def test_a_matrix_may_be_thinned() -> None:
    found = places(planned({"grid": chain(5), "evaluate": {"matrix": {"every": 2}}}))
    assert {after: "".join(of for at, of in found if at == after) for after in range(1, 6)} == {
        1: "a", 2: "ab", 3: "ac", 4: "abcd", 5: "abcde",
    }  # fmt: skip
    last = places(planned({"grid": chain(5), "evaluate": {"matrix": "last"}}))
    assert [of for after, of in last if after == 4] == ["a", "d"]


def test_an_earlier_set_is_its_own_examples_and_not_the_first_of_the_whole() -> None:
    found = {(one.after, one.of): one for one in evaluations(planned({"grid": chain(3)}))}
    assert [found[3, letter].selection.skip for letter in "abc"] == [0, 10, 20]
    assert found[3, "b"].config["examples"] == found[2, "b"].config["examples"]


def test_further_sets_are_evaluated_after_every_stage_where_the_file_says_so() -> None:
    familiar = {"evaluate": {"sets": ["familiar/popqa"], "after": "every"}}
    found = [one for one in evaluations(planned(familiar)) if one.of is None]
    assert [(one.after, one.stage is None) for one in found] == [(0, True), (1, False), (2, False)]
    assert len({str(one.config["examples"]) for one in found}) == 1, "the same questions each time"
    assert found[0].config["model"] == {"model": {"name": "tiny"}, "dtype": "bf16"}
    last = planned({"evaluate": ["familiar/popqa"]})
    assert [after for after, of in places(last) if of == "familiar/popqa"] == [2]


def test_trials_that_share_a_stage_share_its_evaluations() -> None:
    plan = planned({"grid": chain(2, mixer=["none/none", "none/random"])})
    one, other = ({one.id for one in plan.evaluations(trial)} for trial in plan.trials)
    assert len(one & other) == 1 and len(one | other) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"evaluate": {"max_new_tokens": 32}},
        {"prompt": {"strip": "train_only"}},
        {"examples": 11},
        {"train": {"lr": 1e-4}},
        {"train": {"max_length": 64}},
    ],
)
def test_what_is_asked_and_how_changes_every_evaluation(change: Mapping[str, Any]) -> None:
    assert not ids(planned(change)) & ids(planned())


def test_a_rule_that_changed_its_version_is_another_evaluation() -> None:
    again = planned(rules={**RULES, "exact": Rule(2, 1000)})
    assert not ids(again) & ids(planned())
    assert list(again.trials) == list(planned().trials)


def test_a_limit_that_is_the_default_is_the_same_evaluation() -> None:
    """Two spellings of one way have one id, though the trials' names differ."""
    assert ids(planned({"evaluate": {"max_new_tokens": 1000}})) == ids(planned())


def test_a_set_of_long_answers_is_not_answered_by_short_ones() -> None:
    """gsm8k reads 512 new tokens; a sweep of 32 evaluated the same stage otherwise."""
    grid = {"grid": chain(2, d_b=["gsm8k"])}
    long, short = planned(grid), planned({**grid, "evaluate": {"max_new_tokens": 32}})
    assert [one.max_new_tokens for one in evaluations(long) if one.scorer == "numeric"] == [512]
    assert list(long.stages) == list(short.stages) and not ids(long) & ids(short)


def test_few_shot_prompts_have_no_other_form() -> None:
    familiar = {"evaluate": {"sets": ["familiar/popqa"]}}
    found = [
        {one.id for one in evaluations(planned({**familiar, **way})) if one.few_shot}
        for way in ({}, {"prompt": {"strip": "train_only"}})
    ]
    assert found[0] == found[1]


def test_an_own_set_scored_otherwise_has_trials_of_its_own() -> None:
    own = {"path": "lamps.jsonl", "prompt": "{q}", "target": "a"}
    plans = [
        planned({"grid": {**chain(2), "d_a": ["lamps"]}, "sets": {"lamps": {**own, "scorer": scorer}}})
        for scorer in ("exact", "contains")
    ]
    assert not set(plans[0].trials) & set(plans[1].trials)
    assert list(plans[0].stages) == list(plans[1].stages)
