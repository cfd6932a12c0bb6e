"""Laws that the oracle's two experiments do not reach: what is resumed, reused, looked up and counted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from storing import TRAINING, node
from sweeps import small
from test_oracle import LOSS, MODEL, TRAIN, quiet

from raysweep.learn.async_checkpoint import Background
from raysweep.learn.engine import Engine
from raysweep.learn.memory import ModelShape, need
from raysweep.plan.plan import familiarity_id
from raysweep.store.store import Store
from raysweep.sweep.spec import Runtime
from raysweep.trial.execute import execute

ONE = {"d_a": ["kvr"], "mixer": ["none"], "seed": [0]}


def job_of(folder, store, *, model=MODEL, stop="epochs", epochs=4, **changes):
    """The only missing trial of a small sweep that keeps a checkpoint after every step."""
    folder.mkdir(exist_ok=True)
    train = {**TRAIN, "batch_size": 4, "epochs": epochs, "stop": stop}
    given = {"model": str(model), "grid": ONE, "examples": 8, "train": train, "keep": "all", **changes}
    _, jobs = small(folder, "runtime.checkpoint_every=1e-9", **given).missing(store, data=None)
    (job,) = jobs.values()
    return job


def interrupted(job, monkeypatch, *, before):
    """Run a job, lose its process before a step (from 1), run it again: its record, and the step at which it went on."""
    real, began = Engine.step, []

    def step(engine, batch):
        if not began and batch.step + 1 == before:
            raise ConnectionError("the node is gone")
        began.append(batch.step + 1) if began else None
        return real(engine, batch)

    monkeypatch.setattr(Engine, "step", step)
    monkeypatch.setattr(
        Background, "free", property(lambda beside: beside.wait() or True)
    )  # as if writing took no time
    with pytest.raises(ConnectionError):
        execute(job, report=quiet)
    began.append(0)
    record = execute(job, report=quiet)
    return record, began[1]


def curve(store, job):
    stage = job.chain[-1]
    return store.stage_table(f"{stage.slug}-{stage.id}", "curve").to_pylist()


def test_hits_before_an_interruption_count(tmp_path, monkeypatch):
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    settings = {"stop": {**LOSS, "loss": 3.0}, "epochs": 60}
    first = job_of(tmp_path / "one", whole, **settings)
    execute(first, report=quiet)
    hits = [row["step"] for row in curve(whole, first) if row["loss"] < 3.0]
    assert len(hits) == 3
    record, went_on = interrupted(job_of(tmp_path / "two", broken, **settings), monkeypatch, before=hits[-1])
    assert went_on > hits[0], "a checkpoint was taken after the first hit"
    assert (record["metrics"]["steps_1"], record["metrics"]["stopped_by_1"]) == (hits[-1], "loss")


def test_a_resumed_stage_with_dropout_ends_in_the_same_bits(tmp_path, monkeypatch):
    model = tmp_path / "dropout"
    shutil.copytree(MODEL, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    stores = {name: Store(tmp_path / name) for name in ("whole", "broken")}
    jobs = {name: job_of(tmp_path / f"sweep-{name}", store, model=model) for name, store in stores.items()}
    execute(jobs["whole"], report=quiet)
    _, went_on = interrupted(jobs["broken"], monkeypatch, before=6)
    assert went_on > 1
    whole, broken = (
        load_file(next((tmp_path / name / "stages").glob("*/*/weights/model.safetensors"))) for name in stores
    )
    assert all((whole[name] == broken[name]).all() for name in whole)


def test_a_reused_stage_was_trained_on_todays_data(tmp_path):
    store = Store(tmp_path / "store")
    execute(job_of(tmp_path, store, epochs=1), report=quiet)
    (path,) = (tmp_path / "store" / "stages").glob("*/record.json")
    record = json.loads(path.read_text())
    record["data"]["set"]["digest"] = "0" * 64
    path.write_text(json.dumps(record))
    grid = {**ONE, "d_b": ["id"], "mixer": ["none/none"]}
    found = execute(job_of(tmp_path, store, epochs=1, grid=grid), report=quiet)
    assert found["status"] == "failed" and "was trained on other examples" in found["error"]


def test_what_a_model_knows_is_known_of_that_model_in_those_numbers_by_those_shots():
    stage = node().stage
    half = replace(stage, training=replace(TRAINING, precision="bf16"))
    shots = replace(stage, selection=replace(stage.selection, data_seed=1))
    keys = [
        familiarity_id({"name": "one"}, {"set": "popqa"}, stage=stage),
        familiarity_id({"name": "other"}, {"set": "popqa"}, stage=stage),
        familiarity_id({"name": "one"}, {"set": "lama"}, stage=stage),
        familiarity_id({"name": "one"}, {"set": "popqa"}, stage=half),
        familiarity_id({"name": "one"}, {"set": "popqa"}, stage=shots),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("zero", "gradients"), [(1, 4000), (2, 1000)])
def test_offloaded_states_leave_gradients_on_the_device_below_zero_3(zero, gradients):
    """1,000 weights in fp32 on 4 workers: 4 bytes a weight and a gradient, 12 of states, which ZeRO shares; the host holds
    the states and a copy of the worker's gradients."""
    shape = ModelShape(weights=1000, layers=1, hidden=1, intermediate=1, vocabulary=1)
    runtime = Runtime(workers=4, zero=zero, offload="optimizer")
    said = need(shape, training=TRAINING, runtime=runtime, tokens=0, recomputed=True)
    assert (said.weights, said.gradients, said.states, said.host) == (4000, gradients, 0, 3000 + gradients)
