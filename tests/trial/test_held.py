"""A new version of a scorer: whole answers are scored again without a model, cut ones need it."""

from __future__ import annotations

import contextlib
import json

import pytest
from sweeps import small
from test_evaluations import GRID, MODEL, PAIRS, QUICK

import raysweep
from raysweep.api import overview
from raysweep.data.scoring import SCORERS
from raysweep.learn.engine import Engine
from raysweep.store.store import Store
from raysweep.trial.execute import execute


@contextlib.contextmanager
def scored_by(name, *, version, score):
    """Inside, a rule is as another version of the code has it."""
    rule = SCORERS[name]
    now = {"version": rule.version, "score": rule.score}
    try:
        for key, value in {"version": version, "score": score}.items():
            object.__setattr__(rule, key, value)
        yield
    finally:
        for key, value in now.items():
            object.__setattr__(rule, key, value)


def sweep_of(folder, scorer, **changes):
    (folder / "lamps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    own = {"path": str(folder / "lamps.jsonl"), "prompt": "{q}", "target": "a", "scorer": scorer}
    return small(
        folder, model=str(MODEL), sets={"lamps": own}, grid={**GRID, "d_a": ["lamps"], "d_b": ["lamps"]}, examples=4,
        familiarity="all", train=QUICK, keep="none", evaluate={"max_new_tokens": 6, **changes},
    )  # fmt: skip


def run(sweep, store):
    """The record of the only missing trial, and the stages that were trained for it; None where nothing is missing."""
    said = []
    _, jobs = sweep.missing(store, data=None)
    records = [execute(job, report=said.append) for job in jobs.values()]
    assert all(record["status"] == "done" for record in records)
    return next(iter(records), None), {event["stage"] for event in said if event["event"] == "train"}


def test_whole_answers_are_scored_again_by_a_new_version_without_a_model(tmp_path, monkeypatch):
    sweep, store = sweep_of(tmp_path, "numeric"), Store(tmp_path / "store")
    with scored_by("numeric", version=1, score=lambda prediction, golds: 1.0):
        before, trained = run(sweep, store)
    assert trained == {1, 2} and before["metrics"]["retention"] == 100.0
    answers = raysweep.predictions("small", store=store.url)
    assert overview([sweep], store=store.url)["stages_to_retrain"] == 0, "nothing has to be trained for it"

    def none(*_, **__):
        raise AssertionError("a model was opened")

    monkeypatch.setattr(Engine, "__init__", none)
    after, trained = run(sweep, store)
    assert trained == set() and after["metrics"]["retention"] == 0.0
    ids = [{one["id"] for one in record["evaluations"]} for record in (before, after)]
    assert len(ids[0]) == len(ids[1]) == 2 and not ids[0] & ids[1]
    told = raysweep.predictions("small", store=store.url)
    assert told["prediction"].tolist() == answers["prediction"].tolist()
    assert set(raysweep.evals("small", store=store.url)["scorer_version"]) == {2}
    planned = {one.id: one for trial in sweep.plan().trials for one in sweep.plan().evaluations(trial)}
    assert set(planned) == ids[1]
    for name, one in planned.items():
        home = f"stages/{store.stage_folders()[one.stage]}"
        made = store.evaluations.made(home, [name, *ids[0]])
        assert made[name].row["rescored_from"] in ids[0], "what was said before stays beside it"
        assert made[made[name].row["rescored_from"]].row["accuracy"] == 100.0
        assert made[name].row["config"] == json.loads(json.dumps(one.config))
    assert run(sweep, store) == (None, set()), "and nothing is missing"


@pytest.mark.parametrize(("answers", "again"), [("decided", {2}), ("whole", set())])
def test_a_cut_answer_is_asked_for_again(tmp_path, answers, again):
    """The last stage's weights were not kept: for what was cut it has to be trained again."""
    sweep, store = sweep_of(tmp_path, "exact", answers=answers), Store(tmp_path / "store")
    run(sweep, store)
    with scored_by("exact", version=2, score=lambda prediction, golds: 1.0):
        told = overview([sweep], store=store.url)["stages_to_retrain"]
        assert told == len(again)
        after, trained = run(sweep, store)
    assert trained == again and after["metrics"]["retention"] == 100.0
