"""What trials share, without Ray: from which bytes a stage starts, and what is trained again when weights are gone."""

from __future__ import annotations

import shutil

import pytest
from sweeps import SMALL, small

from raysweep.learn import engine
from raysweep.store.store import Store
from raysweep.trial.execute import execute

GRID = {**SMALL["grid"], "mixer": ["none/none", "none/random"]}


def run(sweep, store, mixer="none/none"):
    """The record of the trial with this mixer."""
    _, jobs = sweep.missing(store, data=None)
    (job,) = (job for job in jobs.values() if job.point["mixer"] == mixer)
    return job, execute(job, report=lambda event: None)


def forget(store, trial):
    """As if the trial had ended before it wrote its record."""
    shutil.rmtree(store.files.local / "trials" / trial)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_first_trial_goes_on_from_the_bytes_that_its_siblings_get(tmp_path, precision):
    sweep = small(tmp_path, grid=GRID, train={**SMALL["train"], "precision": precision})
    first = Store(tmp_path / "first")
    job, record = run(sweep, first)
    shared = first.stage_folders()[job.chain[0].id]
    (tmp_path / "second" / "stages").mkdir(parents=True)
    shutil.copytree(first.files.local / "stages" / shared, tmp_path / "second" / "stages" / shared)
    _, again = run(sweep, Store(tmp_path / "second"))
    assert (record["reused"], again["reused"]) == ([], [job.chain[0].id])
    assert again["metrics"]["loss_2"] == record["metrics"]["loss_2"]


def test_a_stage_goes_on_in_the_weights_that_are_in_memory(tmp_path, monkeypatch):
    """They are saved for others, and not read again."""
    read = []
    load = engine.load_weights
    monkeypatch.setattr(
        engine, "load_weights", lambda folder, *given, **named: read.append(folder) or load(folder, *given, **named)
    )
    store = Store(tmp_path / "store")
    job, record = run(small(tmp_path, grid=GRID), store)
    assert len(read) == 1 and record["metrics"]["steps_2"] > 0
    assert store.stage(job.chain[0]).has_weights


def test_weights_that_nothing_starts_from_are_not_missed(tmp_path):
    sweep, store = small(tmp_path, grid=GRID), Store(tmp_path / "store")
    job, record = run(sweep, store)
    store.drop_weights(store.stage_folders()[job.chain[0].id])
    forget(store, job.trial)
    _, again = run(sweep, store)
    assert again["reused"] == [node.id for node in job.chain]
    assert again["metrics"]["retention"] == record["metrics"]["retention"]


def test_weights_that_a_sibling_needs_are_trained_again_to_the_same_bits(tmp_path):
    sweep, store = small(tmp_path, grid=GRID), Store(tmp_path / "store")
    job, _ = run(sweep, store)
    folder = store.stage_folders()[job.chain[0].id]
    before = store.stage_record(folder)["files"]
    store.drop_weights(folder)
    _, sibling = run(sweep, store, "none/random")
    assert sibling["reused"] == []
    assert store.stage_record(folder)["files"]["weights/model.safetensors"] == before["weights/model.safetensors"]
    assert store.stage(job.chain[1]) is not None, "what was trained from the first ones stays"
