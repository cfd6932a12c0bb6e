"""`evaluate: {answers: whole}` keeps whole answers: other text, the same verdicts, an evaluation of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeps import small

import raysweep
from raysweep.store.store import Store
from raysweep.trial.execute import execute

MODEL = Path(__file__).parent.parent / "golden" / "schema1" / "model"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same trial in one store: with answers until they are decided, and then with whole ones."""
    folder = tmp_path_factory.mktemp("answers")
    store = Store(folder / "store")
    records = {}
    for answers in ("decided", "whole"):
        grid = {"d_a": ["kvr"], "d_b": ["none"], "mixer": ["none/none"], "ratio": [1.0], "seed": [0]}
        evaluate = {"max_new_tokens": 12, "answers": answers}
        train = {"precision": "fp32", "lr": 1e-2, "epochs": 60, "batch_size": 4, "stop": "epochs"}
        sweep = small(folder, name=answers, model=str(MODEL), grid=grid, evaluate=evaluate, train=train, keep="all")
        _, jobs = sweep.missing(store, data=None)
        (job,) = jobs.values()
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
