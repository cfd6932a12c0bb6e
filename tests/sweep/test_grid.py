"""Laws of the grid, the chains and the plan."""

from __future__ import annotations

import itertools

import pytest
from sweeps import SMALL, small

from raysweep.api import load, overview
from raysweep.errors import BadInput
from raysweep.plan.plan import Sources, make_plan
from raysweep.sweep.stage import StopAt

UNKNOWN = Sources(lambda model: {"name": model.name}, lambda name: {"set": name}, lambda name: {"mixer": name})


def plan_of(*sweeps):
    return make_plan([(sweep.grid, UNKNOWN) for sweep in sweeps])


def only_trial(sweep):
    (trial,) = plan_of(sweep).trials.values()
    return trial


def one(tmp_path, *overrides, **changes):
    grid = {"d_a": ["kvr"], "d_b": ["id"], "mixer": ["random/random"], "ratio": [1.0], "seed": [0]}
    return small(tmp_path, *overrides, **{"grid": grid, **changes})


def test_table_2_shares_its_first_stages(root):
    found = overview([load(root / "experiments" / "table2.yaml")], store="/nonexistent/store")
    assert (found["trials"], found["stages"], found["stages_unshared"]) == (486, 513, 972)
    assert found["stages_done"] is None
    assert any("Meta-Llama-3-8B" in reason for reason in found["missing"].values())


def test_a_grid_is_the_product_of_its_axes(tmp_path):
    sweep = small(tmp_path, "grid.seed=[0, 1]", "grid.train.lr=[1e-3, 1e-4]")
    axes = {axis: values for axis, values in sweep.grid.axes.items()}
    expected = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    assert list(sweep.grid.points()) == expected
    assert len(expected) == 8


def test_runtime_does_not_change_identity(tmp_path):
    plain = only_trial(one(tmp_path))
    changes = [
        "runtime.workers=2", "runtime.zero=0", "runtime.micro_batch=1", "runtime.offload=optimizer", "keep=all",
        "runtime.isolate=true", "runtime.deterministic=true", "runtime.max_trials=1", "runtime.checkpoint_every=5", "name=other",
        "evaluate={sets: [webqa], every: {steps: 3}}", "table.value=forgetting",
    ]  # fmt: skip
    for change in changes:
        assert only_trial(one(tmp_path, change)).id == plain.id, change


def test_everything_that_is_computed_changes_identity(tmp_path):
    changes = [
        "model.name=smollm2-135m", "examples=9", "data_seed=1", "mixing.words=6", "mixing.overlap=keep", "grid.seed=[1]",
        "grid.ratio=[2.0]", "grid.mixer=[none/random]", "grid.d_b=[webqa]", "prompt.strip=train_only", "train.lr=1e-4",
        "train.batch_size=8", "train.epochs=3", "train.stop=memorized", "train.stop={loss: 0.1}", "train.max_length=64",
        "train.precision=bf16", "train.order=fixed", "train.last_batch=drop", "train.label_padding=eos",
        "train.weight_decay=0.1", "train.warmup=0.1", "train.clip=2.0", "train.betas=[0.9, 0.9]", "train.b.lr=1e-4",
    ]  # fmt: skip
    ids = [only_trial(one(tmp_path, change)).id for change in ["examples=8", *changes]]
    assert len(set(ids)) == len(ids)


def test_a_source_is_identity(tmp_path):
    sweep = one(tmp_path)
    other = Sources(UNKNOWN.of_model, lambda name: {"set": name, "revision": "2"}, UNKNOWN.of_mixer)
    assert set(make_plan([(sweep.grid, other)]).stages).isdisjoint(plan_of(sweep).stages)


def test_spelling_is_no_identity(tmp_path):
    assert only_trial(one(tmp_path, "grid.ratio=[1]")).id == only_trial(one(tmp_path, "grid.ratio=[1.0]")).id
    assert only_trial(one(tmp_path, "grid.seed=0")).id == only_trial(one(tmp_path)).id


def test_stage_2_does_not_touch_stage_1(tmp_path):
    grid = {**SMALL["grid"], "mixer": ["none/none", "none/random", "random/none"], "d_b": ["id", "webqa"]}
    plan = plan_of(small(tmp_path, "train.b.lr=1e-5", grid=grid))
    assert len({trial.stages[0] for trial in plan.trials.values()}) == 2
    assert len(plan.trials) == 6
    assert plan.unshared == 12


def test_axes_that_cannot_matter_share_a_trial(tmp_path):
    grid = {**SMALL["grid"], "ratio": [0.5, 1.0, 2.0]}
    plan = plan_of(small(tmp_path, grid=grid))
    trials = {(point.values["mixer"], point.values["ratio"]): point.trial for point in plan.points}
    assert len(plan.points) == 6
    assert len({trials["none/none", ratio] for ratio in (0.5, 1.0, 2.0)}) == 1
    assert len({trials["random/none", ratio] for ratio in (0.5, 1.0, 2.0)}) == 3


def test_words_matter_only_where_words_are_mixed(tmp_path):
    grid = {**SMALL["grid"], "mixer": ["none/replay", "random/none"]}
    ids = [
        [point.trial for point in plan_of(small(tmp_path, f"mixing.words={words}", grid=grid)).points]
        for words in (4, 6)
    ]
    assert ids[0][0] == ids[1][0]
    assert ids[0][1] != ids[1][1]


def test_id_is_disjoint_from_d_a(tmp_path):
    grid = {**SMALL["grid"], "d_c": ["id"], "mixer": ["none/none/none"]}
    a, b, c = only_trial(small(tmp_path, grid=grid)).spec.stages
    assert [stage.selection.skip for stage in (a, b, c)] == [0, 8, 16]
    assert {stage.selection.set for stage in (a, b, c)} == {"kvr"}


@pytest.mark.parametrize("setting", ["train.b.max_length=64", "train.a.precision=bf16"])
def test_id_is_refused_where_its_stage_would_take_examples_by_another_rule(tmp_path, setting):
    with pytest.raises(BadInput, match="same rule"):
        small(tmp_path, setting)


def test_without_a_first_stage_the_chain_starts_at_the_model(tmp_path):
    grid = {**SMALL["grid"], "d_a": ["none"], "d_b": ["webqa"], "mixer": ["none/none", "random/none"]}
    plan = plan_of(small(tmp_path, grid=grid))
    assert len(plan.trials) == 1, "what is mixed into a stage that is not there cannot matter"
    assert [stage.letter for stage in only_trial(small(tmp_path, grid=grid)).spec.stages] == ["b"]


def test_the_paper_stops_by_its_d_a(tmp_path):
    def stops(d_a):
        grid = {**SMALL["grid"], "d_a": [d_a], "d_b": ["gsm8k"], "mixer": ["none/none"]}
        return [stage.training.stop for stage in only_trial(small(tmp_path, "train.stop=paper", grid=grid)).spec.stages]

    assert stops("kvr") == [StopAt(rule="epochs")] * 2
    assert stops("popqa") == [StopAt(rule="loss", loss=1e-4, hits=10)] * 2


def test_the_released_cut_is_only_in_later_stages_on_sets_that_are_not_factoid(tmp_path):
    grid = {**SMALL["grid"], "d_b": ["webqa", "gsm8k"], "mixer": ["random/random"]}
    plan = plan_of(small(tmp_path, "mixing.cut=released", grid=grid))
    cuts = {(stage.selection.set, stage.mixing.cut) for trial in plan.trials.values() for stage in trial.spec.stages}
    assert cuts == {("kvr", "described"), ("webqa", "described"), ("gsm8k", "released")}


@pytest.mark.parametrize(
    ("pattern", "left"),
    [({"mixer": "random/*"}, 2), ({"seed": [0, 1]}, 0), ({"seed": 1}, 2), ({"mixer": "none/none", "seed": 0}, 3)],
)
def test_exclude_drops_points_that_match_every_key(tmp_path, pattern, left):
    grid = {**SMALL["grid"], "seed": [0, 1]}
    exclude = [pattern] if left else [{**pattern, "mixer": "none/none"}]
    assert len(list(small(tmp_path, grid=grid, exclude=exclude).grid.points())) == (left or 2)


def test_files_that_share_stages_are_planned_together(tmp_path):
    first = small(tmp_path)
    second = small(tmp_path, name="second", grid={**SMALL["grid"], "d_b": ["webqa"]})
    together = plan_of(first, second)
    assert len(together.stages) == len(plan_of(first).stages) + 2
    assert together.unshared == plan_of(first).unshared + plan_of(second).unshared
