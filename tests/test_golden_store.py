"""A store that earlier code wrote is read, reported and resumed: a difference here is a decision, never an accident.

`tests/golden/schema1` was written by the code of commit c56a344 (`tests/golden/write_store.py`) and is never written
again. It has trials that are done, failed, killed and pending, chains of two and three stages, kept and dropped weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from golden.write_store import SWEEPS, expected

import raysweep
from raysweep.api import load
from raysweep.store.store import Store
from raysweep.trial.execute import execute

GOLDEN = Path(__file__).parent / "golden" / "schema1"


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """A copy of the golden store, in the folder from which its sweeps were run."""
    for name in ("model", "store"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    for file in GOLDEN.glob("*.yaml"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return Store("store")


def status_of(store: Store, name: str) -> dict[str, list[str]]:
    """The trials of a sweep by their status."""
    return raysweep.trials(name, store=store.url).groupby("status", observed=True).trial.agg(list).to_dict()


def test_a_golden_store_reads_as_it_did_when_it_was_written(store):
    """Rows may gain columns; what was there keeps its values, to the last digit."""
    then, now = json.loads((GOLDEN / "expected.json").read_text()), expected(Path("store"))
    for kind in ("trials", "evals", "predictions", "curves"):
        assert [{name: row.get(name) for name in old} for old, row in zip(then[kind], now[kind], strict=True)] == then[
            kind
        ]
    assert now["tables"] == then["tables"]


def test_a_golden_store_is_reported(store, tmp_path):
    page = raysweep.page(SWEEPS, tmp_path / "page.html", store=store.url)
    text = Path(page).read_text()
    assert all(name in text for name in SWEEPS)
    assert raysweep.figure("chains", "forgetting", store=store.url).values.notna().any(axis=None)
    trial = status_of(store, "chains")["done"][0]
    exported = raysweep.export(trial, tmp_path / "theta_a", stage=1, store=store.url)
    assert (exported / "model.safetensors").stat().st_size > 0


@pytest.mark.parametrize("name", SWEEPS)
def test_a_golden_store_rescored_by_its_own_rule_gives_its_own_numbers(store, name):
    known = raysweep.evals(name, store=store.url)
    for scorer, own in known.groupby("scorer"):
        again = raysweep.rescored_evals(name, scorer, store=store.url)
        both = own.merge(again, on=["trial", "stage", "of", "set"], suffixes=("", "_again"))
        assert len(both) == len(own)
        assert both["accuracy"].tolist() == both["accuracy_again"].tolist()
        assert not both["undecided"].any()


def test_what_is_done_in_a_golden_store_is_not_done_again(store):
    _, jobs = load("longer.yaml").missing(store, data=None)
    assert not jobs


def test_a_golden_store_is_resumed(store):
    """The failed, the killed and the pending trials are tried again, on the stages that are there."""
    before = status_of(store, "chains")
    assert {status: len(trials) for status, trials in before.items()} == {
        "done": 3,
        "failed": 2,
        "running": 1,
        "pending": 1,
    }
    _, jobs = load("chains.yaml").missing(store, data=None)
    assert sorted(jobs) == sorted(before["failed"] + before["running"] + before["pending"])
    records = {trial: execute(job, report=lambda event: None) for trial, job in jobs.items()}
    assert {trial: record["status"] for trial, record in records.items()} == {
        **dict.fromkeys(before["failed"], "failed"),
        **dict.fromkeys(before["running"] + before["pending"], "done"),
    }
    killed, pending = records[before["running"][0]], records[before["pending"][0]]
    assert killed["reused"] == killed["stages"][:1], "its first stage was committed before it was killed"
    assert pending["reused"] == [], "nothing of it was there"
    assert killed["attempts"] == 2


def test_facts_of_a_golden_store_are_found_again_in_their_data(store, data_dir):
    _, jobs = load("facts.yaml").missing(store, data=data_dir)
    assert not jobs, "its stages have the ids that these files give them"
    plan = load("facts.yaml").plan(data=data_dir)
    assert set(plan.stages) <= store.stage_ids()
