"""A sweep with `profile: released` runs: what a worker makes of every switch fits together."""

from __future__ import annotations

import json
from pathlib import Path

from sweeps import small

import raysweep
from raysweep.store.store import Store
from raysweep.trial.execute import execute

MODEL = Path(__file__).parent.parent / "golden" / "schema1" / "model"


def test_a_released_sweep_runs_and_draws_the_same_d_m_in_both_stages(tmp_path):
    rows = [{"question": f"What is {n}?", "answer": f" it is {n}\n"} for n in range(30)]
    texts = [{"text": " ".join(f"w{n}x{m}" for m in range(12))} for n in range(40)]
    for name, lines in (("facts", rows), ("tasks", rows), ("texts", texts)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    own = {"prompt": "{question}\nThe answer is: ", "target": "answer"}
    sweep = small(
        tmp_path,
        profile="released",
        model=str(MODEL),
        sets={
            "facts": {**own, "path": str(tmp_path / "facts.jsonl")},
            "tasks": {**own, "path": str(tmp_path / "tasks.jsonl"), "factoid": False},
        },
        grid={"d_a": ["facts"], "d_b": ["facts", "tasks"], "mixer": ["text/text"], "ratio": [0.5], "seed": [0, 1]},
        examples=10,
        familiarity="all",
        mixing={"words": 4, "text": {"path": str(tmp_path / "texts.jsonl")}},
        train={"precision": "fp32", "lr": 1e-2, "epochs": 2, "batch_size": 4, "stop": "epochs"},
        evaluate={"max_new_tokens": 4},
    )
    store = Store(tmp_path / "store")
    plan, jobs = sweep.missing(store, data=None)
    for job in jobs.values():
        assert execute(job, report=lambda event: None)["status"] == "done"
    drawn = {}
    for node in plan.stages.values():
        record = store.stage(node).record
        drawn.setdefault((node.stage.selection.set, node.stage.seed), set()).add(record["data"]["mixing"]["digest"])
        steps = 2 * ((10 + 5) // 4)
        assert record["metrics"]["steps"] == steps, "the last partial batch is dropped"
        if node.stage.selection.set == "tasks":
            assert record["data"]["set"]["examples"] == 15, "D_M comes after the uncut set, of which there is enough"
            assert record["data"]["mixing"]["examples"] == 0
    assert len(drawn["facts", 0]) == len(drawn["facts", 1]) == 1, "the same in both stages"
    assert drawn["facts", 0] != drawn["facts", 1], "another by seed"
    assert raysweep.evals("small", store=store.url)["accuracy"].notna().all()
