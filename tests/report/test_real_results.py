"""What is said of results, on results by the real writer: trials that `execute` trained, evaluated and committed.

`tests/golden/seeds` keeps them (`write_seeds.py` beside it wrote them). Numbers are computed a second time here, by scipy
and from the parquet files themselves. `test_report_mutants.py` sees these tests fail where a line of the code is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filling import filled
from golden.write_seeds import HERE, SWEEPS
from scipy import optimize, stats

import raysweep
from raysweep.api import load
from raysweep.store.store import Store

NONE, RANDOM = "none/none", "random/none"
CELL = ("kvr", "id", NONE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A copy of the kept store, which reading may add a dataframe to."""
    folder = tmp_path_factory.mktemp("seeds")
    shutil.copytree(HERE / "store", folder / "store")
    return str(folder / "store")


@pytest.fixture(scope="module")
def kept() -> dict[str, np.ndarray]:
    """Retention by seed of each mixer of `real` and of `short`, in percent, read without our code."""
    found: dict[str, dict[int, float]] = {}
    for name in SWEEPS:
        for point in json.loads((HERE / f"store/sweeps/{name}/plan.json").read_text())["points"]:
            rows = pd.read_parquet(HERE / f"store/trials/{point['trial']}/predictions.parquet")
            last = rows[(rows["of"] == "a") & (rows["stage"] == 2)]
            assert len(last) == 16 and rows["stage"].max() == 2
            mixer = point["values"]["mixer"] if name == "real" else name
            found.setdefault(mixer, {})[point["values"]["seed"]] = 100 * float(last["score"].mean())
    return {mixer: np.array([values[seed] for seed in sorted(values)]) for mixer, values in found.items()}


def test_the_kept_results_can_tell_right_from_wrong(kept: dict[str, np.ndarray]) -> None:
    """Seeds that differ, mixers that differ, one that is alike; and after stage 1 all was there."""
    assert {mixer: len(values) for mixer, values in kept.items()} == {NONE: 4, RANDOM: 4, "short": 3}
    assert np.ptp(kept[NONE]) > 10 and 0 < np.ptp(kept[RANDOM]) < 100 and not kept["short"].any()


def test_mixers_are_compared_as_scipy_does_over_seeds_after_the_last_stage(
    store: str, kept: dict[str, np.ndarray]
) -> None:
    (row,) = raysweep.compare("real", mixers=(NONE, RANDOM), margin=30.0, store=store).to_dict(orient="records")
    known = stats.ttest_rel(kept[RANDOM], kept[NONE])
    interval = known.confidence_interval(0.95)
    assert (row[NONE], row[RANDOM]) == pytest.approx((kept[NONE].mean(), kept[RANDOM].mean()), rel=1e-12)
    assert (row["low"], row["high"], row["p"]) == pytest.approx((*interval, known.pvalue), rel=1e-9)
    one_sided = [
        stats.ttest_1samp(kept[RANDOM] - kept[NONE], edge, alternative=side).pvalue
        for edge, side in ((-30.0, "greater"), (30.0, "less"))
    ]
    assert row["p_equivalence"] == pytest.approx(max(one_sided), rel=1e-9)
    assert row["verdict"] == "equivalent within 30 points" and row["basis"] == "Student's t over 4 seeds"
    (back,) = raysweep.compare("real", mixers=(RANDOM, NONE), margin=30.0, store=store).to_dict(orient="records")
    assert (back["p"], back["p_equivalence"]) == pytest.approx((row["p"], row["p_equivalence"]), rel=1e-12)
    assert pd.isna(row["p_mcnemar"]) and (row["only_first"], row["only_second"]) == (0, 4)


def test_intervals_are_those_of_a_t_test_with_the_variance_of_an_accuracy(
    store: str, kept: dict[str, np.ndarray]
) -> None:
    cells = {row.labels[1]: row.cells[0] for row in raysweep.table("real", show="ci", store=store).rows}
    for mixer in (NONE, RANDOM):
        share, variance, n = kept[mixer].mean() / 100, kept[mixer].var(ddof=1) / 1e4, len(kept[mixer])

        def p(truth: float, share: float = share, variance: float = variance, n: int = n) -> float:
            t = (share - truth) / np.sqrt(variance * truth * (1 - truth) / (share * (1 - share)) / n)
            return 2 * stats.t.sf(abs(t), n - 1) - 0.05

        known = (optimize.brentq(p, 1e-9, share, xtol=1e-13), optimize.brentq(p, share, 1 - 1e-9, xtol=1e-13))
        assert (cells[mixer].low, cells[mixer].high) == pytest.approx((100 * known[0], 100 * known[1]), rel=1e-8)


def test_seeds_that_are_alike_are_bounded_by_their_facts_and_marked_where_not_memorized(store: str) -> None:
    table = raysweep.table("short", show="ci", store=store)
    (cell,) = table.rows[0].cells
    high = stats.binomtest(0, 16).proportion_ci(0.95, method="exact").high
    assert (cell.low, cell.high) == pytest.approx((0.0, 100 * high), rel=1e-9)
    assert "0.0 [0.0, 20.6] (3)*" in str(table) and "* a first stage did not memorize D_A" in str(table)
    assert "all 3 seeds alike: bound from 16 facts" in str(table)


@pytest.mark.parametrize("show", ["mean", "std", "se", "ci", "n"])
def test_only_what_did_not_memorize_is_starred(store: str, show: str) -> None:
    assert "*" not in str(raysweep.table("real", show=show, store=store))
    assert ")*" in str(raysweep.table("short", show=show, store=store)) or show == "mean"
    assert "*" in str(raysweep.table("short", show=show, store=store))


def test_two_seeds_have_neither_interval_nor_p(store: str) -> None:
    two = {"where": "seed < 2", "store": store}
    table = raysweep.table("real", show="ci", **two)
    assert all(cell.low is None and cell.n == 2 for row in table.rows for cell in row.cells)
    assert "too few seeds for an interval (2)" in str(table) and "[" not in str(table).splitlines()[2]
    (row,) = raysweep.compare("real", mixers=(NONE, RANDOM), margin=30.0, **two).to_dict(orient="records")
    assert pd.isna([row[name] for name in ("low", "high", "p", "p_corrected", "p_equivalence")]).all()
    assert row["verdict"] == row["basis"] == "too few seeds for an interval (2)"
    cell = raysweep.compare("real", paper="table1", **two).set_index(["d_a", "d_b", "mixer"]).loc[CELL]
    assert cell["verdict"] == "too few seeds" and pd.isna([cell["noise"], cell["p"]]).all()


def published(monkeypatch: pytest.MonkeyPatch, values: dict[str, float]) -> None:
    """A paper that prints these numbers for kvr and id, by mixer, and no others."""

    def value(table: str, section: Any, line: Any, column: Any) -> float | None:
        return values.get(line.mixer) if (section.d_a, column.d_b) == ("kvr", "id") else None

    monkeypatch.setattr("raysweep.report.compare.published_value", value)


@pytest.mark.parametrize("side", [-1, 1])
def test_noise_and_p_are_those_of_a_prediction_for_three_seeds(
    store: str, kept: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    """On both sides: just within, alone beyond, and beyond for all cells together."""
    errors = {mixer: kept[mixer].std(ddof=1) * np.sqrt(1 / 4 + 1 / 3) for mixer in (NONE, RANDOM)}
    for p, verdict in ((0.06, "within noise"), (0.04, "differs alone"), (0.02, "differs")):
        away = {mixer: stats.t.isf(p / 2, 3) * error + 0.05 for mixer, error in errors.items()}
        published(monkeypatch, {mixer: float(kept[mixer].mean() + side * away[mixer]) for mixer in away})
        cells = raysweep.compare("real", paper="table2", store=store).set_index(["d_a", "d_b", "mixer"])
        for mixer in (NONE, RANDOM):
            cell = cells.loc[("kvr", "id", mixer)]
            assert (cell["p"], cell["p_corrected"]) == pytest.approx((p, 2 * p), rel=1e-6)
            assert cell["noise"] == pytest.approx(stats.t.ppf(0.975, 3) * errors[mixer] + 0.05, rel=1e-9)
            assert cell["verdict"] == verdict and np.sign(cell["difference"]) == -side


def test_a_mixer_has_the_papers_sign_where_it_helps_in_both(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for values, same in (({NONE: 1.0, RANDOM: 2.0}, True), ({NONE: 2.0, RANDOM: 1.0}, False)):
        published(monkeypatch, values)
        cells = raysweep.compare("real", paper="table2", store=store)
        (signs,) = raysweep.sign_agreement(cells).to_dict(orient="records")
        assert (signs["mixer"], signs["cells"], signs["agree"], signs["p"]) == (RANDOM, 1, int(same), 1.0)


def test_the_seeds_to_plan_for_come_from_the_spread_that_was_seen(store: str, kept: dict[str, np.ndarray]) -> None:
    (row,) = raysweep.power("real", points=10.0, store=store).to_dict(orient="records")
    spread = (kept[RANDOM] - kept[NONE]).std(ddof=1)
    assert row["spread"] == pytest.approx(spread, rel=1e-12) and (row["first"], row["second"]) == (NONE, RANDOM)

    def power(n: int) -> float:
        edge, shift = stats.t.ppf(0.975, n - 1), 10 * n**0.5 / spread
        return stats.nct.sf(edge, n - 1, shift) + stats.nct.cdf(-edge, n - 1, shift)

    assert power(row["seeds"]) >= 0.8 > power(row["seeds"] - 1) and row["seeds_high"] > row["seeds"]
    assert row["spread_high"] == pytest.approx(spread * np.sqrt(3 / stats.chi2.ppf(0.2, 3)), rel=1e-9)


def test_a_figure_of_real_results_has_bars_within_the_ends(store: str, kept: dict[str, np.ndarray]) -> None:
    values = raysweep.figure("real", "mixers", store=store).values.set_index("series")
    for mixer in (NONE, RANDOM):
        mean, std = kept[mixer].mean(), kept[mixer].std(ddof=1)
        assert mean + std > 100, "or nothing is cut here"
        assert values.loc[mixer, ["y", "std", "low", "high"]].tolist() == pytest.approx([mean, std, mean - std, 100.0])


# ---- what other tests fill stores with, and what is kept, is what the writer writes


def shape(value: Any) -> Any:
    """The keys and kinds of a value; how many there are of a list, and which packages, is not of its shape."""
    match value:
        case dict():
            return {name: "packages" if name == "versions" else shape(one) for name, one in value.items()}
        case list():
            return [shape(value[0])] if value else []
        case _:
            return type(value).__name__


def written(store: Path, trial: str) -> dict[str, Any]:
    """The shape of a finished trial: its record, and what was asked of which stage with how many answers."""
    folder = store / "trials" / trial
    record = json.loads((folder / "record.json").read_text())
    tables = (
        folder / record.pop("tables", {"folder": "."})["folder"]
    )  # earlier code had none: they lie beside the record
    evals, answers = (pd.read_parquet(tables / f"{name}.parquet") for name in ("evals", "predictions"))
    asked = [list(row) for row in evals[["stage", "of", "set", "scorer", "scorer_version"]].itertuples(index=False)]
    counts = answers.groupby(["stage", "of", "set"]).size()
    assert counts.tolist() == evals["n"].tolist(), "an answer for each example of each evaluation"
    varying = {"reused": None, "point": sorted(record["point"])}
    columns = {name: {key: str(kind) for key, kind in table.dtypes.items()} for name, table in
               (("evals", evals), ("predictions", answers))}  # fmt: skip
    return {"record": shape(record) | varying, "asked": asked, "columns": columns}


def test_filled_stores_have_the_shape_that_the_writer_gives(tmp_path: Path) -> None:
    sweep, store = filled(tmp_path, lambda point: {"retention": 50.0})
    own = written(Path(store.url), sweep.plan().points[0].trial)
    real = written(HERE / "store", trial_of("real", NONE))
    real["record"]["point"] = own["record"]["point"]  # another grid
    assert own == real


def test_the_writer_still_writes_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial of `short` once more, by the code of today."""
    from raysweep.trial.execute import execute

    folder = tmp_path / "golden" / "seeds"
    folder.mkdir(parents=True)
    shutil.copytree(HERE.parent / "schema1" / "model", tmp_path / "golden" / "schema1" / "model")
    shutil.copy(HERE / "short.yaml", folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sweep, made = load("short.yaml"), Store("store")
    _, jobs = sweep.missing(made, data=None)
    trial = trial_of("short", NONE)
    execute(replace(jobs[trial], model=sweep.sweep.model), report=lambda event: None)
    assert written(folder / "store", trial) == written(HERE / "store", trial)
    assert os.listdir(folder / "store" / "trials") == [trial], "its id is what it was"


def trial_of(name: str, mixer: str) -> str:
    """The kept trial of seed 0."""
    points = json.loads((HERE / f"store/sweeps/{name}/plan.json").read_text())["points"]
    return next(one["trial"] for one in points if (one["values"]["mixer"], one["values"]["seed"]) == (mixer, 0))
