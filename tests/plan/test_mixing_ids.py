"""What names a draw of mixing data: stages that draw as ever keep their ids, and no other draw has one of these.

The ids were written down before stages of one chain drew for themselves and `replay` always gave something.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from raysweep.plan.plan import Node, Sources, make_plan, sweep_digest
from raysweep.sweep.file import Places
from raysweep.sweep.grid import Grid
from raysweep.sweep.spec import Sweep
from raysweep.sweep.yaml import parse

OWN = {"lamps": {"path": "lamps.jsonl", "prompt": "Q: {question}", "target": "answer"}}
SOURCES = Sources(
    lambda model: {"name": model.name},
    lambda name: {"set": name, **({"own": {"prompt": OWN[name]["prompt"]}} if name in OWN else {})},
    lambda name: {"mixer": name},
)


def chain(
    mixer: str, *, d_a: str = "kvr", d_b: str = "id", ratio: float = 0.5, seed: int = 0, **changes: Any
) -> list[Node]:
    """The stages of the one trial that these choices make."""
    stages = {"d_a": [d_a], "d_b": [d_b], "d_c": ["gsm8k"]}
    used = dict(list(stages.items())[: len(mixer.split("/"))])
    grid = {**used, "mixer": [mixer], "ratio": [ratio], "seed": [seed]}
    raw = {"name": "draws", "model": "tiny", "grid": grid, "examples": 10, "sets": OWN, **changes}
    planned = make_plan([(Grid(Sweep.model_validate(raw), Places(parse(yaml.safe_dump(raw), "draws.yaml"))), SOURCES)])
    (trial,) = planned.trials
    return list(planned.chain(trial))


@pytest.mark.parametrize(
    ("how", "ids"),
    [
        ({"mixer": "random/none"}, ["056b99c2390d302f", "2e70dc017b8596bd"]),
        ({"mixer": "random/knowledge_pile"}, ["056b99c2390d302f", "d47114eb510efd98"]),
        ({"mixer": "none/replay", "ratio": 0.2}, ["e8a04ddb104b9158", "07dfde04108d80ce"]),
        ({"mixer": "random/none", "d_a": "triviaqa"}, ["03b09dbd0ae6624c", "fc391ea743c55a39"]),
        ({"mixer": "none/knowledge_pile", "d_a": "popqa", "d_b": "webqa"}, ["9a9a6f4047efae58", "fcf384c3f90d4041"]),
        (
            {"mixer": "none/random", "d_b": "gsm8k", "mixing": {"cut": "released"}},
            ["e8a04ddb104b9158", "751d8fcd5d69fef4"],
        ),
        ({"mixer": "random/fineweb/replay"}, ["056b99c2390d302f", "aa89443cb8634dec", "2d3dc0a21b0c1aa5"]),
    ],
)
def test_draws_that_are_what_they_were_keep_their_ids(how: dict[str, Any], ids: list[str]) -> None:
    assert [node.id for node in chain(**how)] == ids


def test_a_source_that_a_chain_mixes_again_is_drawn_anew() -> None:
    first, second, third = chain("random/random/random")
    assert [node.config["mixing"].get("draw") for node in (first, second, third)] == [None, 2, 3]
    assert first.id == chain("random/none")[0].id, "what comes later is not known to a stage"
    assert "draw" not in chain("none/random")[1].config["mixing"]
    assert "draw" not in chain("random/random", d_a="none", d_b="kvr")[0].config["mixing"], "there is no stage 1"


def test_the_same_draw_in_all_stages_can_be_asked_for() -> None:
    nodes = chain("random/random", mixing={"draws": "same"})
    assert [node.id for node in nodes] == ["056b99c2390d302f", "d1ef3d93892854cf"], "that is what was drawn before"


@pytest.mark.parametrize(
    ("how", "stage", "recipe"),
    [
        ({"mixer": "none/replay", "ratio": 0.01}, 1, 2),
        ({"mixer": "none/replay", "ratio": 0.25}, 1, 2),
        ({"mixer": "none/replay", "ratio": 0.1}, 1, 1),
        ({"mixer": "random/none", "ratio": 0.25}, 0, 2),
        ({"mixer": "knowledge_pile/none", "d_a": "triviaqa"}, 0, 2),
        ({"mixer": "none/knowledge_pile", "d_b": "triviaqa"}, 1, 2),
        ({"mixer": "none/knowledge_pile", "d_b": "lamps"}, 1, 2),
        ({"mixer": "none/knowledge_pile", "d_b": "triviaqa", "mixing": {"overlap": "keep"}}, 1, 1),
        ({"mixer": "knowledge_pile/none", "d_b": "triviaqa"}, 0, 1),
        ({"mixer": "none/knowledge_pile", "d_b": "webqa"}, 1, 1),
    ],
)
def test_a_recipe_is_raised_where_the_draw_is_another_and_nowhere_else(
    how: dict[str, Any], stage: int, recipe: int
) -> None:
    assert chain(**how)[stage].config["mixing"]["recipe"] == recipe


def test_the_released_cut_leaves_replayed_examples_where_they_are() -> None:
    """Their code has no replay, so nothing of it is cut away."""
    released, described = (
        chain("none/replay", d_b="gsm8k", mixing={"cut": cut})[1] for cut in ("released", "described")
    )
    assert released.id == described.id
    assert released.config["mixing"]["cut"] == "described"


def test_mixing_data_can_be_drawn_by_a_seed_of_its_own() -> None:
    plain = chain("random/none", seed=3)
    assert [node.id for node in chain("random/none", seed=3, mixing={"seed": 0})] == [node.id for node in plain]
    assert chain("random/none", mixing={"seed": 7})[0].config["mixing"]["data_seed"] == 7
    by_trial = {seed: chain("random/none", seed=seed, mixing={"seed": "trial"})[0] for seed in (0, 1, 2)}
    assert {seed: node.config["mixing"]["data_seed"] for seed, node in by_trial.items()} == {0: 0, 1: 1, 2: 2}
    assert by_trial[2].config["set"]["data_seed"] == 0, "D_A is the same for all seeds"


def test_a_seed_of_mixing_data_is_an_axis() -> None:
    raw = {"name": "draws", "model": "tiny", "examples": 10}
    raw["grid"] = {
        "d_a": ["kvr"],
        "d_b": ["id"],
        "mixer": ["random/none"],
        "seed": [0, 1],
        "mixing.seed": [0, 1, "trial"],
    }
    grid = Grid(Sweep.model_validate(raw), Places(parse(yaml.safe_dump(raw), "draws.yaml")))
    plan = make_plan([(grid, SOURCES)])
    assert (len(plan.points), len(plan.trials)) == (6, 4), "a trial whose own seed is the number is the same trial"


def test_a_later_setting_at_its_default_leaves_what_a_name_stands_for() -> None:
    raw = {"name": "draws", "model": "tiny", "grid": {"d_a": ["kvr"]}}
    plain = sweep_digest(Sweep.model_validate(raw))
    assert plain == "b92fc0a978ef458c"
    assert sweep_digest(Sweep.model_validate({**raw, "mixing": {"seed": None, "draws": "per_stage"}})) == plain
    assert sweep_digest(Sweep.model_validate({**raw, "mixing": {"seed": 0}})) != plain
