"""Laws of evaluations: how a model is evaluated is an identity of its own, and never a stage's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sweeps import small

from raysweep.api import load, overview
from raysweep.cli import main
from raysweep.store.evaluations import Evaluated
from raysweep.store.store import Store
from raysweep.trial.execute import execute

MODEL = Path(__file__).parent.parent / "golden" / "schema1" / "model"
PAIRS = [{"q": f"Who keeps lamp {number}?", "a": f"keeper {number * 7}"} for number in range(12)]
GRID = {"d_a": ["kvr"], "d_b": ["id"], "mixer": ["none/none"], "seed": [0]}
QUICK = {"precision": "fp32", "lr": 1e-2, "epochs": 2, "batch_size": 4, "stop": "epochs"}
MEMORIZED = {**QUICK, "epochs": 160, "a": {"stop": "memorized"}, "b": {"epochs": 2}}


def sweep_of(folder, *overrides, **changes):
    """A sweep on 20 thousand weights, whose stages take two epochs."""
    given = {"model": str(MODEL), "grid": GRID, "examples": 4, "train": QUICK, **changes}
    return small(folder, *overrides, **given)


def run(sweep, store, **more):
    """The records of all trials that are missing, and the events on the way."""
    said = []
    _, jobs = sweep.missing(store, data=more.get("data"))
    records = [execute(job, report=lambda event: said.append(dict(event))) for job in jobs.values()]
    assert all(record["status"] == "done" for record in records), [record["error"] for record in records]
    return records, said


def trained(said):
    """The stages that were trained."""
    return {event["stage"] for event in said if event["event"] == "train"}


def numbers(sweep, store):
    """What is reported of a sweep's only trial."""
    (row,) = sweep.trials(store=store.url).to_dict("records")
    return row


def test_a_stage_does_not_answer_for_an_evaluation_that_it_never_had(tmp_path):
    """One new token can hold no value of eight characters: 0; a fresh store gives 100."""
    store = Store(tmp_path / "store")
    short = sweep_of(tmp_path, "evaluate.max_new_tokens=1", keep="all", train=MEMORIZED)
    run(short, store)
    assert numbers(short, store)["accuracy_a1"] == 0.0
    whole = sweep_of(tmp_path, name="whole", keep="all", train=MEMORIZED)
    _, said = run(whole, store)
    assert numbers(whole, store)["accuracy_a1"] == 100.0
    assert trained(said) == set(), "weights that are kept are evaluated, not trained again"
    assert numbers(short, store)["accuracy_a1"] == 0.0, "each sweep reports its own way"


def test_a_changed_scorer_is_another_evaluation(tmp_path):
    """The second sweep trains nothing, and reports what its own scorer says."""
    (tmp_path / "lamps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    store = Store(tmp_path / "store")
    reported = {}
    for scorer in ("exact", "numeric"):
        own = {"path": str(tmp_path / "lamps.jsonl"), "prompt": "{q}", "target": "a", "scorer": scorer}
        grid = {**GRID, "d_a": ["lamps"], "d_b": ["lamps"]}
        sweep = sweep_of(tmp_path, sets={"lamps": own}, grid=grid, keep="all", familiarity="all")
        _, said = run(sweep, store)
        reported[scorer] = {row["scorer"] for row in evals(sweep, store)}
    assert reported == {"exact": {"exact"}, "numeric": {"numeric"}}
    assert trained(said) == set()


def evals(sweep, store):
    """The evaluations that a sweep's file stands for."""
    from raysweep.api import sources
    from raysweep.report.long import evals_of

    return evals_of(sources(sweep.name, store), store).to_dict("records")


def test_an_evaluation_has_a_record_under_its_stage_and_trials_name_it(tmp_path):
    store = Store(tmp_path / "store")
    sweep = sweep_of(tmp_path)
    (record,), _ = run(sweep, store)
    plan = sweep.plan()
    (trial,) = plan.trials
    planned = {one.id: one for one in plan.evaluations(trial)}
    assert [(one["id"], one["stage"], one["of"]) for one in record["evaluations"]] == [
        (one.id, one.after, one.of) for one in planned.values()
    ]
    folders = store.stage_folders()
    for one in planned.values():
        made = store.evaluations.made(f"stages/{folders[one.stage]}", [one.id])[one.id]
        assert made.row["config"] == json.loads(json.dumps(one.config))
        assert len(made.predictions) == made.row["n"] == 4


def test_prompts_asked_otherwise_train_nothing_anew(tmp_path, data_dir):
    """Both forms are one training: what another trial of the sweep evaluates is made before the weights go."""
    store = Store(tmp_path / "store")
    grid = {**GRID, "d_a": ["popqa"], "d_b": ["id"], "prompt.strip": ["both", "train_only"]}
    sweep = sweep_of(tmp_path, grid=grid, familiarity="all")
    records, said = run(sweep, store, data=data_dir)
    assert len(records) == 2 and len(records[0]["evaluations"]) == 3
    assert len([event for event in said if event["event"] == "committed"]) == 2
    assert records[1]["reused"] == records[1]["stages"] == records[0]["stages"]


def test_two_that_make_one_evaluation_keep_the_first(tmp_path):
    store = Store(tmp_path / "store")
    for score in (1.0, 0.0):
        store.evaluations.add(
            "stages/x", [Evaluated("e" * 16, {"accuracy": score}, [{"example": "1", "score": score}])]
        )
    made = store.evaluations.made("stages/x", ["e" * 16])["e" * 16]
    assert (made.row["accuracy"], made.predictions[0]["score"]) == (1.0, 1.0)


def test_answers_that_were_altered_are_asked_again(tmp_path, caplog):
    store = Store(tmp_path / "store")
    store.evaluations.add("stages/x", [Evaluated("e" * 16, {"accuracy": 1.0}, [{"example": "1", "score": 1.0}])])
    (path,) = (tmp_path / "store" / "stages" / "x" / "evals" / ("e" * 16)).glob("*/predictions.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert store.evaluations.made("stages/x", ["e" * 16]) == {}
    assert "will be made again" in caplog.text and store.evaluations.ids("stages/x") == set()


def test_weights_that_are_gone_have_their_price_in_the_plan(tmp_path, caplog, capsys):
    store = Store(tmp_path / "store")
    run(sweep_of(tmp_path), store)
    short = sweep_of(tmp_path, "evaluate.max_new_tokens=1")
    found = overview([short], store=store.url)
    assert (found["evaluations"], found["evaluations_done"], found["stages_to_retrain"]) == (3, 0, 1)
    assert main(["plan", str(tmp_path / "sweep.yaml"), "--set", "evaluate.max_new_tokens=1", "--store", store.url]) == 0
    assert "1 finished stages must be trained again" in capsys.readouterr().out
    _, said = run(short, store)
    assert trained(said) == {2}, "the first stage's weights are there"
    assert "is trained again: it was not evaluated on id, kvr in this way yet" in caplog.text
    found = overview([short], store=store.url)
    assert (found["evaluations_done"], found["stages_to_retrain"], found["trials_done"]) == (3, 0, 1)


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A copy of the store that earlier code wrote, in the folder from which its sweeps were run."""
    for name in ("model", "store"):
        shutil.copytree(MODEL.parent / name, tmp_path / name)
    for file in MODEL.parent.glob("*.yaml"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return Store("store")


def test_rows_of_earlier_code_count_only_for_the_limit_that_their_sweep_gave(earlier, data_dir):
    """`facts` gave 8 new tokens: its answers are not those of the scorer's own limit, nor of another."""
    same, other = load("facts.yaml"), load("facts.yaml", ["evaluate.max_new_tokens=null", "name=facts-2"])
    asked = overview([same], store="store", data=data_dir)
    assert (asked["evaluations_done"], asked["trials_done"]) == (asked["evaluations"], asked["trials"])
    asked = overview([other], store="store", data=data_dir)
    assert (asked["evaluations_done"], asked["trials_done"], asked["stages_to_retrain"]) == (0, 0, 2)


def test_a_file_that_changes_after_earlier_code_ran_it_does_not_change_what_it_ran(earlier, data_dir):
    changed = load("facts.yaml", ["evaluate.max_new_tokens=null"])
    changed.missing(earlier, data=data_dir)
    changed.missing(earlier, data=data_dir)
    asked = overview([changed], store="store", data=data_dir)
    assert asked["evaluations_done"] == 0
    assert overview([load("facts.yaml")], store="store", data=data_dir)["evaluations_done"] == asked["evaluations"]


def test_sweeps_of_earlier_code_that_disagree_leave_their_stages_unknown(earlier):
    """`chains` and `longer` share a first stage; where one of the two files gave a limit, nobody can tell which was used."""
    assert overview([load("longer.yaml")], store="store")["evaluations_done"] == 5
    text = earlier.sweep_text("chains")
    earlier.files.write_bytes("sweeps/chains/sweep.yaml", f"{text}evaluate: {{max_new_tokens: 4}}\n".encode())
    assert overview([load("longer.yaml")], store="store")["evaluations_done"] == 4


def test_a_chain_fills_its_accuracy_matrix_and_follows_further_sets_from_the_base_model(tmp_path):
    """Three stages; the lamps are never trained, and are evaluated on the base model, once for all trials."""
    (tmp_path / "lamps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    own = {"path": str(tmp_path / "lamps.jsonl"), "prompt": "{q}", "target": "a"}
    store = Store(tmp_path / "store")
    grid = {**GRID, "d_c": ["id"], "mixer": ["none/none/none"], "seed": [0, 1]}
    control = {"sets": ["lamps"], "after": "every"}
    train = {**QUICK, "epochs": 1}
    sweep = sweep_of(tmp_path, grid=grid, train=train, evaluate=control, sets={"lamps": own})
    records, said = run(sweep, store)
    base = [event for event in said if event["event"] == "evaluate" and event["stage"] == 0]
    assert [event["set"] for event in base] == ["lamps"], "a second trial finds it in the store"
    assert len(list((tmp_path / "store" / "models").glob("*/evals/*/record.json"))) == 1
    rows = store.trial_table(next(iter(store.sweep("small")["points"]))["trial"], "evals").to_pylist()
    assert [(row["stage"], row["of"] or row["set"]) for row in rows] == [
        (0, "lamps"),
        (1, "a"), (1, "lamps"),
        (2, "a"), (2, "b"), (2, "lamps"),
        (3, "a"), (3, "b"), (3, "c"), (3, "lamps"),
    ]  # fmt: skip
    columns = {f"asked_lamps_{place}" for place in range(4)} | {"asked_lamps"}
    assert columns <= set(records[0]["metrics"])
