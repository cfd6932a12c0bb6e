"""A sweep with `profile: released` runs: what a worker makes of every switch fits together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sweeps import small

import raysweep
from raysweep.data.examples import candidates
from raysweep.data.sources import find
from raysweep.store.store import Store
from raysweep.trial.execute import execute
from raysweep.trial.inputs import workbench

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


@pytest.mark.parametrize(("place", "counts"), [(10, True), (29, True), (30, False)])
def test_twenty_further_rows_of_an_uncut_set_count_for_what_is_padded(tmp_path, place, counts):
    """One long row at a place of the list of which the first ten are trained on."""
    sweep = uncut(tmp_path, None)
    (first, *_), store = sweep.sweep.sets.values(), Store(tmp_path / "store")
    order = [one.prompt for one in candidates(find("tasks", data_dir=None, own=first), data_seed=0)]
    _, jobs = uncut(tmp_path, order[place]).missing(store, data=None)
    (job,) = jobs.values()
    bench = workbench(job.model, store, data_dir=None, sets=job.sets, text=None, runtime=job.runtime)
    widths = {len(one) for one in bench.inputs.stage(job.chain, 1).encoded}
    assert (len(widths) == 1 and max(widths) > 100) == counts


def uncut(folder, long):
    """A sweep on 40 questions that are no facts, one of which has a long answer."""
    rows = [{"question": f"What is {n}?", "answer": "it " * (60 if f"What is {n}?" == long else 1)} for n in range(40)]
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = {"prompt": "{question}", "target": "answer", "path": str(folder / "tasks.jsonl"), "factoid": False}
    return small(
        folder,
        model=str(MODEL),
        sets={"tasks": own},
        grid={"d_a": ["kvr"], "d_b": ["tasks"], "mixer": ["none/none"], "seed": [0]},
        examples=10,
        train={"precision": "fp32", "label_padding": "eos", "padded_to": "further_rows", "stop": "epochs"},
    )
