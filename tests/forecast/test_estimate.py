"""Laws of the forecast: what was measured is believed, what is done costs nothing, and sharing is counted."""

from __future__ import annotations

import json

import pytest
from storing import commit
from sweeps import small

from raysweep.cli import main
from raysweep.forecast.cost import costs_of, weights_of
from raysweep.forecast.estimate import estimate
from raysweep.forecast.roofline import CPU, Work, spent_on
from raysweep.store.store import Store
from raysweep.sweep.spec import Runtime

SHARING = {"d_a": ["kvr"], "d_b": ["id", "none"], "mixer": ["none/none", "none/random"], "ratio": [1.0], "seed": [0, 1]}


def told(sweep, records=None, *, done=(), workers=None, keep="shared"):
    return estimate(sweep.plan(), records or {}, done=done, runtime=sweep.sweep.runtime, keep=keep, workers=workers)


def record(node, seconds, tokens=1000, *, world_size=1, weights=True):
    """A stage's record, as far as costs are read from it."""
    return {
        "id": node.id,
        "config": node.config,
        "engine": {"world_size": world_size},
        "metrics": {"seconds": seconds, "tokens": tokens, "steps": 10, "evaluations": []},
        "provenance": {"started": "2026-01-01T00:00:00+00:00", "finished": f"2026-01-01T00:00:{seconds:02d}+00:00"},
        "files": {"weights/model.safetensors": "x"} if weights else {},
    }


@pytest.fixture
def sweep(tmp_path):
    return small(tmp_path, grid=SHARING)


def test_a_stage_costs_what_another_seed_of_it_took(sweep):
    plan = sweep.plan()
    one = next(node for node in plan.stages.values() if node.parent is None)
    costs = costs_of(plan, [record(one, 30, world_size=2)], runtime=Runtime())
    twin = next(node for node in plan.stages.values() if node.parent is None and node.id != one.id)
    assert costs.seconds[twin.id] == 60, "seconds of one worker"
    assert costs.basis == {"measured": 2, "scaled": 4}


def test_what_was_not_measured_is_scaled_by_tokens(sweep):
    plan = sweep.plan()
    first = next(node for node in plan.stages.values() if node.parent is None)
    costs = costs_of(plan, [record(first, 10)], runtime=Runtime())
    bare, mixed = (
        next(node for node in plan.stages.values() if node.parent == first.id and bool(node.stage.mixing) is mixing)
        for mixing in (False, True)
    )
    assert costs.seconds[mixed.id] > costs.seconds[bare.id] > 0


def test_a_record_of_a_model_of_unknown_size_tells_nothing(sweep):
    plan = sweep.plan()
    node = next(iter(plan.stages.values()))
    other = {**record(node, 10), "config": {**node.config, "start": {"model": {"name": "other"}}}}
    assert costs_of(plan, [other], runtime=Runtime()).basis == {"computed": 6}


def test_another_models_stages_tell_how_fast_the_kind_of_machine_is(sweep):
    """Steps and what is around them are corrected apart, on the same kind of machine alone."""
    plan = sweep.plan()
    node = next(iter(plan.stages.values()))
    start = {"model": {"name": "somebody/model-1B"}}
    other = {**record(node, 30, tokens=1000), "config": {**node.config, "start": start}}
    other["metrics"]["seconds"] = 20
    work = Work(weights=10**9, precision="fp32", steps=10, tokens=1000, batch=4)
    told = spent_on(work, Runtime(), CPU)
    found = costs_of(plan, [other], runtime=Runtime())
    assert found.basis == {"calibrated": 6}
    own = Work(weights=weights_of("tiny"), precision="fp32", steps=4, tokens=2 * 8 * 34, batch=4)
    mine = spent_on(own, Runtime(), CPU)
    assert found.seconds[node.id] == pytest.approx(mine.steps * 20 / told.steps + mine.files * 10 / told.files)
    on_gpu = {**other, "engine": {"world_size": 1, "device": "NVIDIA H100"}}
    assert costs_of(plan, [on_gpu], runtime=Runtime()).basis == {"computed": 6}


def test_guessed_lengths_are_said_where_hours_rest_on_them(tmp_path):
    grid = {"d_a": ["kvr"], "d_b": ["gsm8k", "math"], "mixer": ["none/none", "none/knowledge_pile"], "ratio": [1.0]}
    sweep = small(tmp_path, grid=grid)
    found = told(sweep)
    assert found.guessed == ["knowledge_pile", "math"]
    assert "the lengths of knowledge_pile, math are guesses" in found.assumes
    records = {node.id: record(node, 10) for node in sweep.plan().stages.values()}
    assert told(sweep, records).guessed == [], "what was measured rests on no length"


def test_what_is_done_costs_nothing_more(sweep):
    plan = sweep.plan()
    records = {node.id: record(node, 10) for node in plan.stages.values()}
    assert told(sweep, records).gpu_hours == 0, "only the trials' own records are missing"
    assert told(sweep, done=set(plan.trials)).gpu_hours == 0
    part = {name: one for name, one in records.items() if plan.stages[name].parent is None}
    assert 0 < told(sweep, part).gpu_hours < told(sweep, part).gpu_hours_unshared
    assert (
        told(sweep, part).gpu_hours < told(sweep, {name: {**one, "files": {}} for name, one in part.items()}).gpu_hours
    )


def test_workers_tell_the_wall_time_and_its_bound(sweep):
    one, four = told(sweep, workers=1), told(sweep, workers=4)
    assert one.makespan_hours == pytest.approx(one.gpu_hours)
    assert one.lower_bound_hours <= one.makespan_hours * (1 + 1e-9)
    assert four.makespan_hours < one.makespan_hours
    assert told(sweep).makespan_hours is None


def test_what_is_kept_decides_the_disk(sweep):
    weights = [told(sweep, keep=keep, workers=1).disk_weights for keep in ("none", "shared", "all")]
    assert weights == sorted(weights) and weights[0] < weights[2]
    assert weights[1] == 2 * weights_of("tiny") * 4, "two first stages in fp32"


def test_memory_is_shared_by_workers_and_goes_to_the_host_where_it_is_told_to(tmp_path):
    """16 bytes a weight and a bucket of gradients at ZeRO-3 in bf16, for eight billion weights."""

    def of(*overrides):
        sweep = small(tmp_path, "train.precision=bf16", *overrides, model="meta-llama/Meta-Llama-3-8B")
        plan = sweep.plan()
        found = estimate(plan, {}, done=set(), runtime=sweep.sweep.runtime, keep="shared")
        return found.memory_worker, found.memory_host

    one, two = of(), of("runtime.workers=2")
    assert one == (8e9 * (2 + 4 + 12) + 5e8 * 2, 0)
    assert two == (8e9 * (2 + 4 + 12) / 2 + 5e8 * 2, 0)
    on_device, on_host = of("runtime.offload=optimizer")
    assert on_device < 8e9 * 2 + 2e9 and on_host == 8e9 * (4 + 12)


def test_an_unknown_model_is_said(tmp_path):
    unknown = small(tmp_path, model="somebody/something")
    assert "cannot be told" in told(unknown)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("meta-llama/Meta-Llama-3-8B", 8e9), ("smollm2-135m", 135e6), ("mistralai/Mistral-7B-v0.3", 7e9), ("a/b", None)],
)
def test_a_name_tells_the_size(name, weights):
    assert weights_of(name) == weights


def test_the_command_tells_it_in_words_and_in_json(tmp_path, capsys):
    file = tmp_path / "sweep.yaml"
    small(tmp_path, grid=SHARING)
    store = str(tmp_path / "store")
    assert main(["plan", str(file), "--workers", "4", "--store", store]) == 0
    words = capsys.readouterr().out
    assert "on 4 workers" in words and "no order could take less" in words
    assert main(["plan", str(file), "--json", "--store", store]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimate"]["basis"] == {"computed": 6}
    assert found["estimate"]["makespan_hours"] is None
    assert main(["plan", str(file), "--workers", "0", "--store", store]) == 2


def test_two_files_are_planned_as_one(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        small(tmp_path / name, name=name, grid=SHARING)
    files = [str(tmp_path / name / "sweep.yaml") for name in ("one", "two")]
    assert main(["plan", *files, "--json", "--store", str(tmp_path / "store")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stages"], found["stages_unshared"], found["trials"]) == (6, 20, 6)


def test_stages_in_the_store_are_counted(tmp_path, sweep):
    store = Store(tmp_path / "store")
    plan = sweep.plan()
    first = next(iter(plan.stages.values()))
    whole = record(first, 5)
    commit(store, first, record={key: whole[key] for key in ("engine", "metrics", "provenance")})
    from raysweep.api import overview

    found = overview([sweep], store=tmp_path / "store")
    assert found["stages_done"] == 1
    assert found["estimate"]["basis"]["measured"] == 2
