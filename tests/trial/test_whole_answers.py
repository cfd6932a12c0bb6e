"""`evaluate: {answers: whole}` keeps whole answers: other text, the same verdicts, an evaluation of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sweeps import small

import raysweep
from raysweep.learn import generate
from raysweep.store.store import Store
from raysweep.trial.evaluation import EarlierAnswers
from raysweep.trial.execute import execute

MODEL = Path(__file__).parent.parent / "golden" / "schema1" / "model"


def job_of(folder, store, *, name, evaluate):
    """The one trial of a sweep."""
    grid = {"d_a": ["kvr"], "d_b": ["none"], "mixer": ["none/none"], "ratio": [1.0], "seed": [0]}
    train = {"precision": "fp32", "lr": 1e-2, "epochs": 60, "batch_size": 4, "stop": "epochs"}
    sweep = small(folder, name=name, model=str(MODEL), grid=grid, evaluate=evaluate, train=train, keep="all")
    (job,) = sweep.missing(store, data=None)[1].values()
    return job


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same trial in one store: with answers until they are decided, and then with whole ones."""
    folder = tmp_path_factory.mktemp("answers")
    store = Store(folder / "store")
    records = {}
    for answers in ("decided", "whole"):
        evaluate = {"max_new_tokens": 12, "answers": answers}
        job = job_of(folder, store, name=answers, evaluate=evaluate)
        records[answers] = execute(job, report=lambda event: None)
    return store, records


def test_whole_answers_have_the_same_verdicts(stores):
    store, _ = stores
    decided, whole = (raysweep.predictions(name, store=store.url) for name in ("decided", "whole"))
    assert decided["score"].tolist() == whole["score"].tolist()
    assert whole["whole"].all() and not decided["whole"].all()
    for cut, full in zip(decided["prediction"], whole["prediction"], strict=True):
        assert full.startswith(cut.rstrip("\ufffd"))
    assert (whole["prediction"].str.len() > decided["prediction"].str.len()).any()


def test_how_much_is_generated_changes_no_stage(stores):
    store, records = stores
    assert records["decided"]["stages"] == records["whole"]["stages"]
    assert records["whole"]["reused"] == records["whole"]["stages"], "it is evaluated again, not trained"
    assert len(store.stage_ids()) == 1


def test_whole_answers_can_be_scored_by_any_rule(stores, caplog):
    store, _ = stores
    told = raysweep.rescored_evals("whole", "numeric", store=store.url)
    assert not told["undecided"].any() and told["accuracy"].notna().all()
    cut = raysweep.rescore("decided", "numeric", store=store.url)
    assert cut["score"].isna().any()
    assert "answers were cut before rule numeric can tell" in caplog.text


def test_what_the_same_weights_answered_before_is_not_generated_again(stores, tmp_path, monkeypatch):
    """With a shorter limit: the earlier answers are verified, and what is kept is what generation gives."""
    passes, next_tokens = [], generate._Decoding._next_tokens
    monkeypatch.setattr(generate._Decoding, "_next_tokens", lambda rows: passes.append(1) or next_tokens(rows))
    told = []
    for drafts in (True, False):
        store = Store(tmp_path / str(drafts))
        shutil.copytree(stores[0].files.local, store.files.local)
        if not drafts:
            monkeypatch.setattr(EarlierAnswers, "to", lambda *_: {})
        passes.clear()
        job = job_of(tmp_path, store, name="short", evaluate={"max_new_tokens": 10, "answers": "whole"})
        assert execute(job, report=lambda event: None)["reused"]
        told.append((len(passes), raysweep.predictions("short", store=store.url)))
    assert told[0][1].equals(told[1][1])
    assert told[0][0] < told[1][0] / 2
