"""Facts of D_A that a later stage says again are counted, in the stage's record and in a column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sweeps import small

from raysweep.store.store import Store
from raysweep.trial.execute import execute

MODEL = Path(__file__).parent.parent / "golden" / "schema1" / "model"
TOWNS = ["Aabach", "Bebra", "Calw", "Dahn"]
SET = {"prompt": "{question}", "target": "answer", "subject": "town"}


def towns(path: Path, answers: list[str]) -> None:
    rows = [
        {"town": town, "question": f"What river is {town} on?", "answer": answer}
        for town, answer in zip(TOWNS, answers, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def texts(tmp_path) -> Path:
    said = ["so Bebra is where the Fulda runs on and on", "so there is no word of any town in this text"]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in said))
    return path


@pytest.mark.parametrize(
    ("mixer", "mixing", "restated_2", "parts"),
    [
        ("none/none", {}, 2, (2, None)),
        ("none/text", {"overlap": "keep"}, 3, (2, 1)),
        ("none/replay", {}, 2, (2, None)),
    ],
)
def test_examples_that_say_a_fact_of_d_a_again_are_counted(tmp_path, texts, mixer, mixing, restated_2, parts):
    towns(tmp_path / "rivers.jsonl", ["Lein", "Fulda", "Nagold", "Wieslauter"])
    towns(tmp_path / "more.jsonl", ["Main", "the Fulda", "Nagold", "Rhine"])
    sweep = small(
        tmp_path,
        model=str(MODEL),
        grid={"d_a": ["rivers"], "d_b": ["more"], "mixer": [mixer], "ratio": [0.5], "seed": [0]},
        sets={name: {**SET, "path": str(tmp_path / f"{name}.jsonl")} for name in ("rivers", "more")},
        examples=4,
        familiarity="all",
        mixing={"words": 5, "text": {"path": str(texts)}, **mixing},
        train={"precision": "fp32", "lr": 1e-3, "epochs": 1, "batch_size": 4, "stop": "epochs"},
        evaluate={"max_new_tokens": 2},
    )
    store = Store(tmp_path / "store")
    _, jobs = sweep.missing(store, data=None)
    (job,) = jobs.values()
    record = execute(job, report=lambda event: None)
    assert (record["metrics"]["restated_1"], record["metrics"]["restated_2"]) == (None, restated_2)
    first, second = (store.stage(node).record["data"] for node in job.chain)
    assert first["set"].get("restated") is None
    assert (second["set"]["restated"], (second["mixing"] or {}).get("restated")) == parts
    (row,) = sweep.trials(store=tmp_path / "store").itertuples()
    assert row.restated_2 == restated_2
