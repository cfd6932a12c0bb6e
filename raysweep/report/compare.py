"""Our cells beside the published ones, and two mixers beside each other on the same examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from raysweep.errors import BadInput
from raysweep.report.cells import Cell
from raysweep.report.layouts import Column, Layout, Line, Section, cells_of
from raysweep.report.paper import ROUNDING, SEEDS, caveats, elsewhere, published_value
from raysweep.report.statistics import holm, mcnemar, paired_bootstrap, t_quantile

__all__ = ["compare_mixers", "compare_with_paper"]

_DRAWS_SEED = 0  # of the bootstrap: the same records give the same intervals


def compare_with_paper(frame: pd.DataFrame, chosen: Layout) -> pd.DataFrame:
    """One row a cell of a table of the paper: ours (mean, std, n), published, difference, verdict, caveats.

    `noise` is the half width of the 95 % prediction interval for a mean of the paper's three seeds, given ours: Student's t
    on n - 1, our standard deviation standing for both, plus the rounding of print. `verdict` is `within noise`, `differs`,
    `one seed` (no spread to judge by), `not finished`, `failed`, `not in the sweep`, or `not legible` for the published side.
    """
    rows = [
        _compared(chosen, section, line, column, cell)
        for section in chosen.sections
        for line in chosen.lines
        for column, cell in zip(chosen.columns, cells_of(frame, section, line, chosen.columns), strict=True)
    ]
    return pd.DataFrame(rows)


def compare_mixers(predictions: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Two mixers on the same examples of D_A, after the last stage: one row for each combination of the other axes.

    Columns: the axes, n_examples, n_seeds, accuracy of both, their difference (second - first) with its bootstrap interval
    and p (seeds and examples drawn), McNemar's exact p over all pairs, and both p corrected for the number of rows (Holm).
    Raises BadInput where the two have no examples in common.
    """
    last = predictions[predictions["of"] == "a"]
    last = last[last["stage"] == last.groupby("trial")["stage"].transform("max")]
    axes = [name for name in _axes(predictions) if name not in ("mixer", "seed")]
    axes = [name for name in axes if name != "ratio" or last["ratio"].nunique() > 1]
    found = []
    for values, group in last.groupby(axes, observed=True, sort=False):
        if row := _paired(group, first, second):
            found.append(dict(zip(axes, values, strict=True)) | row)
    if not found:
        mixers = ", ".join(map(str, predictions["mixer"].unique())) or "none"
        raise BadInput(
            f"{first} and {second} have no finished trials with seeds and examples in common; mixers: {mixers}"
        )
    frame = pd.DataFrame(found)
    for name in ("p", "p_mcnemar"):
        frame[f"{name}_corrected"] = holm(frame[name].tolist())
    return frame


def _compared(chosen: Layout, section: Section, line: Line, column: Column, cell: Cell) -> dict[str, Any]:
    value = published_value(chosen.name, section, line, column)
    other = elsewhere(chosen, section, line, column)
    noise = _noise(cell)
    difference = cell.mean - value if cell.mean is not None and value is not None else None
    return {
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
        "noise": noise,
        "verdict": _verdict(cell, value, difference, noise),
        "caveat": "; ".join(caveats(chosen, section, line, column)) or None,
    }


def _noise(cell: Cell) -> float | None:
    if cell.std is None or cell.n < 2:
        return None
    return t_quantile(cell.n - 1) * cell.std * math.sqrt(1 / cell.n + 1 / SEEDS) + ROUNDING


def _verdict(cell: Cell, value: float | None, difference: float | None, noise: float | None) -> str:
    if cell.mean is None:
        return "failed" if cell.failed else "not finished" if cell.planned else "not in the sweep"
    if value is None or difference is None:
        return "not legible"
    if noise is None:
        return "one seed"
    return "within noise" if abs(difference) <= noise else "differs"


def _axes(frame: pd.DataFrame) -> list[str]:
    """The columns of a long form that say which point a row is of."""
    columns = list(frame.columns)
    return [name for name in columns[columns.index("model") : columns.index("stage")] if not name.startswith("mixer_")]


def _paired(group: pd.DataFrame, first: str, second: str) -> dict[str, Any] | None:
    one, other = (_scores(group[group["mixer"] == mixer]) for mixer in (first, second))
    seeds, examples = one.index.intersection(other.index), one.columns.intersection(other.columns)
    if not len(seeds) or not len(examples):
        return None
    a, b = one.loc[seeds, examples].to_numpy(), other.loc[seeds, examples].to_numpy()
    whole = ~(np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0))
    a, b = a[:, whole], b[:, whole]
    if not a.size:
        return None
    boot, test = paired_bootstrap(a, b, seed=_DRAWS_SEED), mcnemar(a, b)
    return {
        "n_examples": a.shape[1],
        "n_seeds": a.shape[0],
        first: 100 * a.mean(),
        second: 100 * b.mean(),
        "difference": 100 * boot.difference,
        "low": 100 * boot.low,
        "high": 100 * boot.high,
        "only_first": test.only_first,
        "only_second": test.only_second,
        "p": boot.p,
        "p_mcnemar": test.p,
    }


def _scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Seeds × examples; an example that stands twice in the set counts by its mean."""
    return rows.pivot_table(index="seed", columns="example", values="score", aggfunc="mean", observed=True)


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
