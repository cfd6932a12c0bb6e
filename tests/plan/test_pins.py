"""What a sweep finds on the hub without a commit it keeps: in plan, record and list, for its workers and the next run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from raysweep.api import load, overview
from raysweep.cli import main
from raysweep.data import hub
from raysweep.store.store import Store
from raysweep.trial.execute import execute

MODEL = Path(__file__).parent.parent / "golden" / "schema1" / "model"
ROWS = [{"question": f"How many is {n}?", "answer": f"It is {n}."} for n in range(8)]
LINES = "\n".join(map(json.dumps, ROWS)).encode()
TEXTS = "\n".join(json.dumps({"text": f"{n} one two three four five six"}) for n in range(20)).encode()
REPOSITORIES = {"me/mine": {"train.jsonl": LINES}, "kh4dien/fineweb-100m-sample": {"train.jsonl": TEXTS}}


@pytest.fixture
def moving(tmp_path, monkeypatch):
    """A hub whose repositories move on to another commit when they are told to."""
    from data.fakehub import FakeHub, point_to, serving

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "_failed", {})
    fake = FakeHub(dict(REPOSITORIES))
    with serving(fake) as address:
        point_to(address, monkeypatch)
        yield fake


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "pins.yaml"
    grid = {"d_a": ["mine"], "d_b": ["none"], "mixer": ["fineweb/none"], "ratio": [1.0], "seed": [0, 1]}
    content = {
        "name": "pins", "model": str(MODEL), "grid": grid, "examples": 4, "familiarity": "all",
        "sets": {"mine": {"hub": "me/mine", "prompt": "{question}", "target": "answer"}},
        "mixing": {"words": 3}, "evaluate": {"max_new_tokens": 2},
        "train": {"precision": "fp32", "lr": 1e-3, "epochs": 1, "batch_size": 4, "stop": "epochs"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_sweep_keeps_the_commits_that_it_was_first_planned_with(moving, file, tmp_path, monkeypatch) -> None:
    store = Store(tmp_path / "store")
    plan, jobs = load(file).missing(store, data=None)
    first = moving.commit
    assert plan.revisions == {"set mine": first, "mixer fineweb": first}
    moving.commit = "d" * 40
    monkeypatch.setenv("HF_HOME", str(tmp_path / "another machine"))
    again, _ = load(file).missing(store, data=None)
    assert list(again.trials) == list(plan.trials)
    assert again.revisions == plan.revisions
    elsewhere, _ = load(file).missing(Store(tmp_path / "other"), data=None)
    assert elsewhere.revisions == {"set mine": "d" * 40, "mixer fineweb": "d" * 40}
    assert not set(elsewhere.trials) & set(plan.trials)
    job = next(iter(jobs.values()))
    record = execute(job, report=lambda event: None)
    assert record["status"] == "done", "a worker finds what the plan found, wherever the hub has moved"
    config = store.stage(job.chain[0]).record["config"]
    assert (config["set"]["source"]["revision"], config["mixing"]["from"]["revision"]) == (first, first)


def test_the_plan_and_the_list_say_the_commit(moving, file, tmp_path, capsys) -> None:
    told = overview([load(file)], store=tmp_path / "store")
    assert told["revisions"] == {"set mine": moving.commit, "mixer fineweb": moving.commit}
    main(["plan", str(file), "--store", str(tmp_path / "store")])
    assert f"mixer fineweb {moving.commit[:12]}, set mine {moving.commit[:12]}" in capsys.readouterr().out
    main(["data", "list", str(file), "--json"])
    rows = {row["name"]: row["revision"] for row in json.loads(capsys.readouterr().out)}
    assert (rows["mine"], rows["fineweb"], rows["kvr"]) == (moving.commit, moving.commit, None)
    main(["data", "list", str(file)])
    assert moving.commit[:12] in capsys.readouterr().out


def test_a_hub_model_is_pinned_too(moving, file, tmp_path, monkeypatch) -> None:
    """Its workers are given the commit, and ask for no other."""
    snapshot = tmp_path / "hf" / "hub" / "models--me--model" / "snapshots"
    commits = "1" * 40, "2" * 40
    for commit in commits:
        shutil.copytree(MODEL, snapshot / commit)
    reference = snapshot.parent / "refs" / "main"
    reference.parent.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    reference.write_text(commits[0])
    store = Store(tmp_path / "store")
    sweep = load(file, ["model=me/model"])
    plan, jobs = sweep.missing(store, data=None)
    reference.write_text(commits[1])
    again, _ = sweep.missing(store, data=None)
    assert list(again.trials) == list(plan.trials)
    assert plan.revisions["model me/model"] == commits[0]
    assert {job.model.revision for job in jobs.values()} == {commits[0]}


def test_data_is_checked_and_fetched_at_the_commits_of_the_sweep(moving, file, tmp_path, monkeypatch, capsys) -> None:
    """For a store where it was planned; for another one as the hub has it now, and a store that is not there is not made."""
    store = tmp_path / "store"
    load(file).missing(Store(store), data=None)
    first, moving.commit = moving.commit, "d" * 40
    for place, commit in ((store, first), (tmp_path / "other", moving.commit)):
        monkeypatch.setenv("HF_HOME", str(tmp_path / f"machine of {place.name}"))
        assert main(["data", "check", str(file), "--store", str(place), "--json"]) == 0
        checked = {row["name"]: row["identity"]["revision"] for row in json.loads(capsys.readouterr().out)}
        assert checked == {"mine": commit, "fineweb": commit}
        to = tmp_path / f"to-{place.name}"
        assert main(["data", "fetch", str(file), "--store", str(place), "--to", str(to), "--json"]) == 0
        capsys.readouterr()
        fetched = [json.loads((to / name / ".origin.json").read_text())["identity"] for name in ("mine", "fineweb")]
        assert [one["revision"] for one in fetched] == [commit, commit]
    assert not (tmp_path / "other").exists()
