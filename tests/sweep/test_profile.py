"""`profile: released` is a word for its switches: the same trials as the file that spells them out."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from raysweep.errors import BadInput
from raysweep.plan.plan import Plan, Sources, make_plan, sweep_digest
from raysweep.sweep.file import Places, load
from raysweep.sweep.grid import Grid
from raysweep.sweep.spec import PROFILES, Sweep
from raysweep.sweep.yaml import parse

RAW: dict[str, Any] = {
    "name": "profile",
    "model": "tiny",
    "grid": {
        "d_a": ["kvr", "popqa"],
        "d_b": ["apps", "webqa"],
        "mixer": ["none/none", "knowledge_pile/knowledge_pile"],
    },
    "evaluate": ["familiar/popqa"],
    "examples": 10,
}
SOURCES = Sources(lambda model: {"name": model.name}, lambda name: {"set": name}, lambda name: {"mixer": name})


def planned(**changes: Any) -> Plan:
    raw = {**RAW, **changes}
    return make_plan([(Grid(Sweep.model_validate(raw), Places(parse(yaml.safe_dump(raw), "x.yaml"))), SOURCES)])


def spelled_out() -> dict[str, Any]:
    parts = {part: dict(settings) for part, settings in PROFILES["released"].items()}
    parts["evaluate"]["sets"] = RAW["evaluate"]
    return parts


def evaluations(plan: Plan) -> list[str]:
    return [one.id for trial in plan.trials for one in plan.evaluations(trial)]


def test_the_word_is_its_switches() -> None:
    word, spelled = planned(profile="released"), planned(**spelled_out())
    assert list(word.trials) == list(spelled.trials)
    assert evaluations(word) == evaluations(spelled)
    assert not set(word.stages) & set(planned().stages)


@pytest.mark.parametrize(
    ("part", "key"), [(part, key) for part, settings in PROFILES["released"].items() for key in settings]
)
def test_every_switch_alone_is_other_stages_or_other_evaluations(part: str, key: str) -> None:
    """Each departure is a choice of its own, and none of them is nothing."""
    settings = {key: PROFILES["released"][part][key]}
    sets = {"sets": RAW["evaluate"]} if part == "evaluate" else {}
    seeds = {
        **RAW["grid"],
        "d_b": ["apps", "webqa", "ultrachat"],
        "seed": [1],
    }  # by seed 0 mixing.seed: trial is as it was
    beside = {"train": {"label_padding": "eos"}} if key == "padded_to" else {}  # else nothing is padded that counts
    plain = planned(grid=seeds, **beside)
    switched = planned(grid=seeds, **{part: {**beside.get(part, {}), **settings, **sets}})
    stages_differ = set(plain.stages) != set(switched.stages)
    assert stages_differ == (part != "evaluate" and key != "strip"), "what changes questions only changes no stage"
    assert stages_differ or evaluations(plain) != evaluations(switched)


def test_a_file_that_says_otherwise_is_heard() -> None:
    raw = {**RAW, "profile": "released", "train": {"precision": "fp32", "epochs": 3}, "mixing": {"seed": 5}}
    sweep = Sweep.model_validate(raw)
    assert (sweep.train.precision, sweep.train.order, sweep.train.epochs) == ("fp32", "sampler", 3)
    assert (sweep.mixing.seed, sweep.mixing.draws) == (5, "same")
    assert sweep.evaluate.sets == ("familiar/popqa",)


def test_without_a_profile_nothing_is_another() -> None:
    assert sweep_digest(Sweep.model_validate(RAW)) == sweep_digest(Sweep.model_validate({**RAW, "profile": None}))


def test_an_unknown_profile_is_one_clear_error(tmp_path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**RAW, "profile": "relased"}))
    with pytest.raises(BadInput, match="profile: found 'relased'; allowed: released"):
        load(path)
