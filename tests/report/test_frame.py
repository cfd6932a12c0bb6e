"""Dataframes: what is a row, what its columns are, and how rows are chosen."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filling import commit_stages, fill, filled, put, settle
from sweeps import small

import raysweep
from raysweep.errors import BadInput
from raysweep.report.long import evals_rescored, rescored
from raysweep.store.store import Store

GRID = {"d_a": ["kvr"], "d_b": ["id"], "mixer": ["none/none", "random/none"], "ratio": [1.0, 2.0], "seed": [0, 1]}


def by_seed(point: Mapping[str, Any]) -> Any:
    if point["mixer"] == "none/none":
        return {"retention": 50.0 + point["seed"]}
    return "failed" if point["seed"] == 0 else None


def test_every_declared_point_is_a_row_whatever_became_of_it(tmp_path: Path) -> None:
    _, store = filled(tmp_path, by_seed, grid=GRID)
    frame = raysweep.trials("small", store=store.url)
    assert len(frame) == 8
    assert frame["status"].tolist() == ["done"] * 4 + ["failed", "pending"] * 2
    shared = frame[frame["mixer"] == "none/none"]
    assert shared["trial"].nunique() == 2, "a ratio where nothing is mixed is the same trial"
    assert shared["retention"].tolist() == [50.0, 51.0, 50.0, 51.0]
    assert frame[frame["status"] == "pending"][["retention", "started"]].isna().all(axis=None)


def test_columns_stand_in_the_documented_order_with_their_types(tmp_path: Path) -> None:
    _, store = filled(tmp_path, by_seed, grid={**GRID, "train.lr": [1e-3, 2e-3]})
    frame = raysweep.trials("small", store=store.url)
    point = "sweep trial model d_a d_b mixer mixer_1 mixer_2 ratio seed train.lr"
    measured = "status error accuracy_a1 retention forgetting accuracy_b"
    assert list(frame.columns[:17]) == f"{point} {measured}".split()
    assert list(frame.columns[-6:]) == ["attempts", "preemptions", "commit", "machine", "started", "finished"]
    for name in ("sweep", "model", "d_a", "d_b", "mixer", "mixer_1", "status", "stopped_by_1"):
        assert isinstance(frame[name].dtype, pd.CategoricalDtype), name
    kinds = {"seed": "int64", "ratio": "float64", "train.lr": "float64", "retention": "float64", "steps_1": "Int64"}
    kinds |= {"memorized_1": "boolean", "attempts": "Int64", "preemptions": "Int64", "started": "datetime64[us, UTC]"}
    assert {name: str(frame[name].dtype) for name in kinds} == kinds
    assert list(frame["mixer"].cat.categories) == GRID["mixer"], "categories come in the order of the file"


def test_columns_do_not_depend_on_what_is_finished(tmp_path: Path) -> None:
    _, none = filled(tmp_path / "none", lambda point: None, grid=GRID)
    _, some = filled(tmp_path / "some", by_seed, grid=GRID)
    frames = [raysweep.trials("small", store=store.url) for store in (none, some)]
    shared = [name for name in frames[1].columns if name in frames[0].columns]
    assert list(frames[0].columns) == shared
    assert {"retention", "status", "started"} <= set(shared)
    kinds = [{name: frame[name].dtype.kind for name in ("retention", "attempts", "started")} for frame in frames]
    assert kinds[0] == kinds[1]


def test_a_file_stands_for_exactly_its_grid_and_a_name_for_all_that_ran(tmp_path: Path) -> None:
    sweep, store = filled(tmp_path, by_seed, grid=GRID)
    fill(small(tmp_path, grid={**GRID, "seed": [5]}), store, lambda point: {"retention": 9.0})
    file = tmp_path / "sweep.yaml"
    assert raysweep.trials(file, store=store.url)["seed"].unique().tolist() == [5]
    assert raysweep.trials(file, store=store.url)["retention"].tolist() == [9.0] * 4
    assert raysweep.trials(sweep.name, store=store.url)["seed"].unique().tolist() == [0, 1, 5]


def test_a_file_whose_data_is_not_here_stands_for_what_ran_under_its_name(tmp_path: Path) -> None:
    grid = {"d_a": ["kvr"], "d_b": ["gsm8k"], "seed": [0, 1]}
    sweep, store = filled(tmp_path, lambda point: None, grid=grid)
    assert sweep.plan().missing, "gsm8k must not be found here for this test to mean anything"
    plan = store.sweep("small")
    for place, point in enumerate(plan["points"]):  # as a machine with the data would have named them
        point["trial"] = f"{place:016d}"
        put(store, point["trial"], {"retention": 10.0 * place})
    store.files.write_json("sweeps/small/plan/000001.json", plan)
    small(tmp_path, grid={**grid, "seed": [1, 2]})
    frame = raysweep.trials(tmp_path / "sweep.yaml", store=store.url)
    assert frame["status"].tolist() == ["done", "pending"]
    assert frame["retention"].tolist()[0] == 10.0
    small(tmp_path, grid=grid, examples=9)
    with pytest.raises(BadInput, match="other settings"):
        raysweep.trials(tmp_path / "sweep.yaml", store=store.url)


def test_several_names_stand_below_each_other(tmp_path: Path) -> None:
    sweep, store = filled(tmp_path, by_seed, grid=GRID)
    fill(small(tmp_path, name="other", grid={**GRID, "train.lr": [0.5]}), store, lambda point: None)
    frame = raysweep.trials(["small", "other"], store=store.url)
    assert frame["sweep"].value_counts().to_dict() == {"small": 8, "other": 8}
    assert frame.loc[frame["sweep"] == "small", "train.lr"].isna().all()
    assert isinstance(frame["mixer"].dtype, pd.CategoricalDtype)


def test_where_chooses_rows(tmp_path: Path) -> None:
    _, store = filled(tmp_path, by_seed, grid={**GRID, "train.lr": [1e-3, 2e-3]})

    def chosen(where: str) -> int:
        return len(raysweep.trials("small", store=store.url, where=where))

    assert chosen("d_a == 'kvr' and ratio == 2") == 8
    assert chosen("train.lr > 0.0015 and mixer == 'none/none'") == 4
    assert chosen("`train.lr` > 0.0015") == 8
    assert chosen("mixer == 'train.lr'") == 0, "a column's name in quotes is a word"
    assert chosen("memorized_1") == 8, "what is missing is not true"
    assert chosen("mixer in ['random/none'] and seed != 0") == 4


@pytest.mark.parametrize("where", ["nonsense == 1", "seed ==", "seed", "seed + 1", "@pd", "__import__('os')", "'x'"])
def test_a_where_that_cannot_be_used_says_which_columns_there_are(tmp_path: Path, where: str) -> None:
    _, store = filled(tmp_path, by_seed)
    with pytest.raises(BadInput, match=r"the columns are sweep, trial, model, d_a") as problem:
        raysweep.trials("small", store=store.url, where=where)
    assert where in str(problem.value)


def test_unknown_names_are_bad_input_that_says_what_there_is(tmp_path: Path) -> None:
    _, store = filled(tmp_path, by_seed)
    for name in ("tiny", "../small", "small/../small", ""):
        with pytest.raises(BadInput, match="small"):
            raysweep.trials(name, store=store.url)


def test_long_forms_have_a_row_for_each_evaluation_answer_and_step(tmp_path: Path) -> None:
    sweep, store = filled(tmp_path, by_seed, grid=GRID)
    commit_stages(sweep, store)
    evals = raysweep.evals("small", store=store.url)
    assert len(evals) == 2 * 3, "two finished trials, three evaluations each, though four points mean them"
    assert evals["scorer_version"].tolist() == [1] * 6
    answers = raysweep.predictions("small", store=store.url, where="seed == 1 and score == 1 and stage == 2")
    assert len(answers) == 10 and set(answers["trial"]) == {sweep.plan().points[1].trial}
    curves = raysweep.curves("small", store=store.url, where="ratio == 1")
    assert len(curves) == 4 * 2 * 6, "stages of a failed trial have curves too, a shared one in each of its trials"
    assert curves["stage"].unique().tolist() == [1, 2] and curves["letter"].unique().tolist() == ["a", "b"]
    with pytest.raises(BadInput, match="scorer_version"):
        raysweep.evals("small", store=store.url, where="nonsense == 1")


def test_the_same_rule_gives_the_same_number_also_where_answers_were_cut() -> None:
    rows = [("t", ["t"], True, 1.0), ("x", ["t"], False, 0.0), ("x", None, None, 1.0)]
    asked = pd.DataFrame(rows, columns=["prediction", "golds", "whole", "score"])
    own = rescored(asked.assign(scorer="exact", scorer_version=1), "exact")
    assert own[["score", "score_low", "score_high"]].to_numpy().tolist() == [[1.0] * 3, [0.0] * 3, [1.0] * 3]
    other = rescored(asked.assign(scorer="exact", scorer_version=0), "exact")
    assert other["score"].tolist() == pytest.approx([1.0, 0.0, math.nan], nan_ok=True), "x is no beginning of t"


def test_another_rule_gives_bounds_where_an_answer_was_cut() -> None:
    """Of a cut answer only its beginning is known: what it went on to say may be right by another rule."""
    rows = [("7", ["#### 7"], True), ("no", ["#### 7"], False), ("gr", ["green"], False), ("zz", ["green"], False)]
    asked = pd.DataFrame(rows, columns=["prediction", "golds", "whole"]).assign(
        trial="t", stage=1, of="a", set="s", example=list("abcd"), score=0.0, scorer="exact", scorer_version=1
    )
    numbers = {
        "numeric": [(1, 1), (0, 1), (0, 1), (0, 1)],
        "contains": [(1, 1), (0, 0), (0, 1), (0, 0)],
    }
    for rule, bounds in numbers.items():
        told = rescored(asked, rule)
        assert list(zip(told["score_low"], told["score_high"], strict=True)) == bounds
        assert told["score"].isna().tolist() == [low != high for low, high in bounds]
    (row,) = evals_rescored(rescored(asked, "contains")).itertuples()
    assert (row.accuracy_low, row.accuracy_high, row.n, row.undecided) == (25.0, 50.0, 4, 1)
    assert math.isnan(row.accuracy), "a mean of those that are known would be no accuracy"


def test_whole_answers_are_scored_by_another_rule_and_cut_ones_get_no_number() -> None:
    rows = [("a green lamp", ["lamp"], True), ("a green", ["a green lamp"], False), ("lamp", None, None)]
    asked = pd.DataFrame(rows, columns=["prediction", "golds", "whole"]).assign(score=0.0, example=["x", "y", "z"])
    told = rescored(asked, "rouge_l")
    assert told["score"].tolist() == pytest.approx([0.5, math.nan, math.nan], nan_ok=True), (
        "the last is from before both"
    )
    assert (told["scorer"] == "rouge_l").all() and list(asked["score"]) == [0.0] * 3
    with pytest.raises(
        BadInput, match="scorer bleu: there is none; use exact, contains, contains_or_empty, numeric, rouge_l"
    ):
        rescored(asked, "bleu")


def test_results_load_without_ray_and_torch(tmp_path: Path) -> None:
    _, store = filled(tmp_path, by_seed)
    code = (
        "import sys, raysweep\n"
        f"frame = raysweep.trials('small', store={store.url!r})\n"
        f"print(raysweep.table('small', store={store.url!r}))\n"
        "heavy = {'ray', 'torch', 'transformers', 'datasets', 'deepspeed', 'nltk', 'matplotlib'} & set(sys.modules)\n"
        "assert len(frame) == 2 and not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_copied_store_gives_the_same_frame(tmp_path: Path) -> None:
    import shutil

    _, store = filled(tmp_path, by_seed, grid=GRID)
    settle(store)
    before = raysweep.trials("small", store=store.url)
    shutil.copytree(store.url, tmp_path / "copy", copy_function=shutil.copyfile)
    pd.testing.assert_frame_equal(before, raysweep.trials("small", store=tmp_path / "copy"))
    assert Store(tmp_path / "copy").compacted("small")


def test_transfer_counts_every_set_that_was_asked_twice(tmp_path: Path) -> None:
    grid = {"d_a": ["kvr"], "d_b": ["id"], "d_c": ["id"], "mixer": ["none/none/none"], "seed": [0]}
    sweep, store = filled(tmp_path, lambda point: None, grid=grid)
    trial = sweep.plan().points[0].trial
    rows = [
        (1, "a", 100.0),
        (2, "a", 60.0),
        (2, "b", 80.0),
        (3, "a", 40.0),
        (3, "b", 60.0),
        (3, "c", 90.0),
        (3, None, 1.0),
    ]
    evals = [
        {"stage": stage, "of": of, "set": "kvr", "scorer": "exact", "scorer_version": 1, "accuracy": accuracy, "n": 8}
        for stage, of, accuracy in rows
    ]
    store.commit_trial(trial, {"status": "done", "metrics": {}}, evals=evals, predictions=[])
    (row,) = raysweep.transfer("small", store=store.url).to_dict(orient="records")
    assert (row["forgetting"], row["backward_transfer"]) == (40.0, -40.0)
    assert row["retention_ratio"] == pytest.approx((0.4 + 0.75) / 2) and row["trial"] == trial
    assert row["average_accuracy"] == pytest.approx((40 + 60 + 90) / 3)
    matrix = raysweep.matrix("small", store=store.url).set_index(["after", "task"])["accuracy"]
    assert matrix.to_dict() == {(1, 1): 100.0, (2, 1): 60.0, (2, 2): 80.0, (3, 1): 40.0, (3, 2): 60.0, (3, 3): 90.0}


def test_an_average_over_sets_that_were_not_all_evaluated_is_empty() -> None:
    """Chains of earlier code lack D_B after stage 3."""
    from raysweep.report.statistics import average_accuracy

    assert average_accuracy({(1, 1): 100.0, (2, 1): 50.0, (2, 2): 100.0, (3, 1): 40.0, (3, 3): 90.0}) is None
    assert average_accuracy({}) is None
