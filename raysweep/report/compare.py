"""Our cells beside the published ones, and two mixers beside each other on the same facts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from raysweep.errors import BadInput
from raysweep.report.cells import Cell
from raysweep.report.intervals import Intervals
from raysweep.report.layouts import Column, Layout, Line, Section, cells_of
from raysweep.report.paper import ROUNDING, SEEDS, caveats, elsewhere, published_value
from raysweep.report.statistics import (
    ALPHA,
    alike,
    binomial_p,
    equivalence_p,
    holm,
    paired,
    spread,
    t_p,
    t_quantile,
    too_few,
)
from raysweep.sweep.grid import matches

__all__ = ["compare_mixers", "compare_with_paper", "is_of", "paired_scores", "shown", "sign_agreement", "summary"]

_NO_MIXING = "none/none"


def compare_with_paper(
    frame: pd.DataFrame, chosen: Layout, *, intervals: Intervals, margin: float | None
) -> pd.DataFrame:
    """One row a cell of a table of the paper: ours (mean, std, n), published, difference, verdict, caveats.

    `noise` is the half width of the 95 % prediction interval for a mean of the paper's three seeds, given our seeds:
    Student's t, our standard deviation standing for both, plus the rounding of print; where all our seeds are alike, the
    bound from the facts stands for it. `p` is that of the difference, `p_corrected` (Holm) accounts for all cells that
    have one. `verdict` is `differs` (after correction), `within noise`, `differs alone` (beyond its own noise, but not
    once all cells are counted), `equivalent` (given a `margin`, in points: the two one-sided tests place the difference
    within it, corrected too), `too few seeds`, `one seed`, `no interval` (seeds of unequal trials, or alike over no known facts),
    `not finished`, `failed`, `not in the sweep`, or `not legible` for the published side. `same_sign` says whether a
    mixer does what it does in the paper: better, or worse, than none at all.
    """
    rows = [
        _beside_published(chosen, section, line, column, cell, margin)
        for section in chosen.sections
        for line in chosen.lines
        for column, cell in zip(chosen.columns, cells_of(frame, section, line, chosen.columns, intervals), strict=True)
    ]
    found = _corrected(pd.DataFrame(rows), ("p", "p_equivalence"))
    found["verdict"] = [_verdict(row) for row in found.to_dict(orient="records")]
    found["same_sign"] = _same_sign(found)
    order = [column for column in found.columns if column not in ("verdict", "caveat", "_cell")]
    return found[[*order, "verdict", "caveat"]]


def sign_agreement(compared: pd.DataFrame) -> pd.DataFrame:
    """How often each mixer does what it does in the paper, better or worse than none: one row a mixer and ratio.

    Columns: mixer, ratio, cells, agree, p (exact, two-sided, against a coin), p_corrected (Holm). Averages are left out,
    for they repeat cells. A mixer's cells share no baseline with each other, but those of one D_A share their stage 1.
    """
    cells = compared[compared["same_sign"].notna() & ~compared["d_b"].str.startswith("avg_")]
    rows = []
    for (mixer, ratio), group in cells.groupby(["mixer", "ratio"], dropna=False, sort=False):
        agree = int(group["same_sign"].astype(bool).sum())
        rows.append({"mixer": mixer, "ratio": ratio, "cells": len(group), "agree": agree})
    found = pd.DataFrame(rows, columns=["mixer", "ratio", "cells", "agree"])
    found["p"] = [binomial_p(agree, of) for agree, of in zip(found["agree"], found["cells"], strict=True)]
    return _corrected(found, ("p",)).dropna(axis="columns", how="all")


def compare_mixers(
    predictions: pd.DataFrame,
    first: str,
    second: str,
    *,
    margin: float | None,
    primary: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Two mixers on the same facts of D_A, after the last stage: one row for each combination of the other axes.

    Columns: the axes, n_examples, n_seeds, accuracy of both, their difference (second - first) with its 95 % interval and
    p (Student's t over the differences that the seeds have), and p corrected for the number of rows (Holm). `basis` says
    what an interval rests on, or why there is none. `only_first` and `only_second` count pairs that only one got right;
    they describe, and `p_mcnemar` stays empty: pairs of one run are not independent. With a `margin` (points),
    `p_equivalence` is that of the two one-sided tests, corrected too. Rows that `primary` matches (a partial point that
    was fixed before the run) stand first and are a family of their own. Raises BadInput where the two have no examples
    in common.
    """
    rows = []
    for values, one, other in paired_scores(predictions, first, second):
        row = _paired_row(one, other, first, second, margin)
        rows.append(values | {"primary": primary is not None and is_of(values, primary)} | row)
    if not rows:
        mixers = ", ".join(map(str, predictions["mixer"].unique())) or "none"
        raise BadInput(
            f"{first} and {second} have no finished trials with seeds and examples in common; mixers: {mixers}"
        )
    frame = pd.DataFrame(rows).sort_values("primary", ascending=False, kind="stable", ignore_index=True)
    families = [_corrected(rows, ("p", "p_equivalence")) for _, rows in frame.groupby("primary", sort=False)]
    frame = pd.concat(families, ignore_index=True).assign(p_mcnemar_corrected=None)
    frame["verdict"] = [_told(row, margin) for row in frame.to_dict(orient="records")]
    return frame if primary is not None else frame.drop(columns="primary")


def is_of(values: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Whether a row is at a point that a contrast is about; an axis with a single value may have no column."""
    return matches(values, {axis: wanted for axis, wanted in where.items() if axis in values})


def paired_scores(
    predictions: pd.DataFrame, first: str, second: str
) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """For each combination of the other axes the scores of two mixers on D_A after the last stage, over the seeds and
    facts that both have (seeds × facts)."""
    last = predictions[predictions["of"] == "a"]
    last = last[last["stage"] == last.groupby("trial")["stage"].transform("max")]
    axes = [name for name in _axes(predictions) if name not in ("mixer", "seed")]
    axes = [name for name in axes if name != "ratio" or last["ratio"].nunique() > 1]
    for values, group in last.groupby(axes, observed=True, sort=False, dropna=False):
        one, other = _in_common(group, first, second)
        if one.size:
            yield dict(zip(axes, values, strict=True)), one, other


def _beside_published(
    chosen: Layout, section: Section, line: Line, column: Column, cell: Cell, margin: float | None
) -> dict[str, Any]:
    value = published_value(chosen.name, section, line, column)
    other = elsewhere(chosen, section, line, column)
    error, degrees = _prediction_error(cell)
    difference = cell.mean - value if cell.mean is not None and value is not None else None
    testable = difference is not None and error is not None
    beyond = max(0.0, abs(difference) - ROUNDING) if difference is not None else None
    row = {
        "table": chosen.name,
        "d_a": section.d_a,
        "d_b": column.d_b,
        "mixer": line.mixer,
        "ratio": line.ratio,
        "ours": cell.mean,
        "std": cell.std,
        "n": cell.n,
        "published": value,
        "also_published": other[1] if other else None,
        "also_in": other[0] if other else None,
        "difference": difference,
        "noise": t_quantile(degrees) * error + ROUNDING if error is not None else None,
        "p": t_p(beyond / error, degrees) if testable else None,
        "caveat": "; ".join(caveats(chosen, section, line, column)) or None,
        "_cell": cell,
    }
    if margin is None:
        return row
    within = equivalence_p(abs(difference) + ROUNDING, error, degrees, margin=margin) if testable else None
    return row | {"p_equivalence": within}


def _prediction_error(cell: Cell) -> tuple[float | None, int]:
    """The standard error of a mean of the paper's seeds about ours, and its degrees of freedom; None where it is unknown."""
    n = len(cell.by_seed)
    if cell.mean is None or cell.low is None or cell.high is None:
        return None, 0
    scale = math.sqrt(1 / n + 1 / SEEDS)
    if not alike(cell.by_seed):
        return float(spread(cell.by_seed).std or 0.0) * scale, n - 1
    half = max(cell.mean - cell.low, cell.high - cell.mean)
    return half / t_quantile(n - 1) * math.sqrt(n) * scale, n - 1


def _verdict(row: Mapping[str, Any]) -> str:
    cell: Cell = row["_cell"]
    if cell.mean is None:
        return "failed" if cell.failed else "not finished" if cell.planned else "not in the sweep"
    if pd.isna(row["published"]):
        return "not legible"
    if pd.isna(row["p"]):
        return {0: "one seed", 1: "one seed", 2: "too few seeds"}.get(len(cell.by_seed), "no interval")
    if row["p_corrected"] < ALPHA:
        return "differs"
    if row.get("p_equivalence_corrected", 1.0) < ALPHA:
        return "equivalent"
    return "within noise" if abs(row["difference"]) <= row["noise"] else "differs alone"


def _same_sign(compared: pd.DataFrame) -> list[bool | None]:
    """Whether a mixer's effect has the sign that it has in the paper; None for none at all, ties, and what is unknown."""
    none = compared[compared["mixer"] == _NO_MIXING].set_index(["d_a", "d_b"])[["ours", "published"]].astype(float)
    found: list[bool | None] = []
    mixed = compared.astype({"ours": float, "published": float})
    for row in mixed.itertuples():
        if row.mixer == _NO_MIXING or (row.d_a, row.d_b) not in none.index:
            found.append(None)
            continue
        base = none.loc[(row.d_a, row.d_b)]
        product = (row.ours - base["ours"]) * (row.published - base["published"])
        found.append(None if math.isnan(product) or product == 0 else product > 0)
    return found


def _corrected(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """With Holm's correction of each of these columns that is there, over the rows that have a value."""
    for name in (name for name in columns if name in frame):
        values = frame[name].astype(float)
        there = values.notna()
        corrected = pd.Series(math.nan, index=frame.index)
        corrected[there] = holm(values[there].tolist())
        frame = frame.assign(**{name: values, f"{name}_corrected": corrected})
    return frame


def _axes(frame: pd.DataFrame) -> list[str]:
    """The columns of a long form that say which point a row is of."""
    columns = list(frame.columns)
    return [name for name in columns[columns.index("model") : columns.index("stage")] if not name.startswith("mixer_")]


def _in_common(group: pd.DataFrame, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """The scores of two mixers over the seeds and facts that both have; of no size where there are none."""
    one, other = (_scores(group[group["mixer"] == mixer]) for mixer in (first, second))
    seeds, facts = one.index.intersection(other.index), one.columns.intersection(other.columns)
    a, b = one.loc[seeds, facts].to_numpy(float), other.loc[seeds, facts].to_numpy(float)
    whole = ~(np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0))
    return a[:, whole], b[:, whole]


def _scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Seeds × examples; an example that stands twice in the set counts by its mean."""
    return rows.pivot_table(index="seed", columns="example", values="score", aggfunc="mean", observed=True)


def _paired_row(a: np.ndarray, b: np.ndarray, first: str, second: str, margin: float | None) -> dict[str, Any]:
    found = paired(a, b, margin=margin)
    right_a, right_b = a > 0.5, b > 0.5
    row = {
        "n_examples": a.shape[1],
        "n_seeds": a.shape[0],
        first: 100 * a.mean(),
        second: 100 * b.mean(),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "only_first": int((right_a & ~right_b).sum()),
        "only_second": int((~right_a & right_b).sum()),
        "p": found.p,
        "p_mcnemar": None,
        "basis": found.basis,
    }
    return row if margin is None else row | {"margin": margin, "p_equivalence": found.p_equivalence}


def _told(row: Mapping[str, Any], margin: float | None) -> str:
    """What can be said of one row after correction; that nothing was seen is not that there is nothing."""
    if pd.isna(row["p"]):
        return too_few(row["n_seeds"])
    differs = row["p_corrected"] < ALPHA
    within = row.get("p_equivalence_corrected", 1.0) < ALPHA
    match differs, within:
        case True, True:
            return f"differs, by less than {margin:g} points"
        case True, False:
            return "differs"
        case False, True:
            return f"equivalent within {margin:g} points"
    return "cannot be told"


def summary(compared: pd.DataFrame) -> dict[str, int]:
    """How many cells have which verdict."""
    return {str(verdict): int(count) for verdict, count in compared["verdict"].value_counts().items()}


def shown(compared: pd.DataFrame) -> tuple[pd.DataFrame, Sequence[str]]:
    """The comparison for people: numbers to one decimal, caveats numbered, and the numbered caveats."""
    texts = list(dict.fromkeys(one for text in compared["caveat"].dropna() for one in text.split("; ")))
    numbers = {text: str(place) for place, text in enumerate(texts, start=1)}
    marks = compared["caveat"].map(
        lambda text: ",".join(numbers[one] for one in text.split("; ")) if isinstance(text, str) else ""
    )
    narrow = compared.drop(columns=["table", "also_in", "caveat"]).assign(note=marks)
    return narrow.dropna(axis="columns", how="all"), [f"{number}: {text}" for text, number in numbers.items()]
