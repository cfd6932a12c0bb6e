"""Cells of a table: what the trials of each group amount to, and what is missing among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raysweep.errors import BadInput
from raysweep.report.frame import axes_of
from raysweep.report.statistics import spread

__all__ = ["EMPTY", "Cell", "average", "cells_by", "check_columns", "measure_cells", "varying"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Mean and spread of `n` values out of `planned` trials; `low` and `high` where an interval was asked for and found.

    `by_seed` holds the average that each seed has, `uneven` says that seeds differ in how many trials that is of, and
    `basis` what an interval rests on, or why there is none. `failed` counts trials that failed or whose records cannot
    be read; `memorized` is False where the first stage of some trial did not memorize D_A; `mark` is what a table points
    out (`lowest`, `highest`).
    """

    mean: float | None = None
    std: float | None = None
    se: float | None = None
    n: int = 0
    planned: int = 0
    failed: int = 0
    memorized: bool = True
    low: float | None = None
    high: float | None = None
    basis: str = ""
    by_seed: tuple[float, ...] = ()
    uneven: bool = False
    mark: str = ""


EMPTY = Cell()


def check_columns(frame: pd.DataFrame, columns: Sequence[str], value: str) -> None:
    """BadInput where a column is not there, or where the value is not a number."""
    for column in (*columns, value):
        if column not in frame.columns:
            raise BadInput(f"there is no column {column!r}; the columns are {', '.join(frame.columns)}")
    if not pd.api.types.is_numeric_dtype(frame[value].dtype):
        numbers = ", ".join(frame.select_dtypes(["number", "boolean"]).columns)
        raise BadInput(f"the column {value!r} holds words; a table shows numbers: {numbers}")


def measure_cells(frame: pd.DataFrame, *, by: Sequence[str], value: str) -> pd.DataFrame:
    """One row a group: mean, std, se, n, planned, failed, memorized; a trial that stands in several rows counts once.

    The standard deviation is that of a sample (n - 1). Only finished trials have a value.
    """
    check_columns(frame, by, value)
    once = frame.drop_duplicates([*by, "trial"])
    told = pd.DataFrame({column: once[column] for column in by})
    told["_value"] = once[value].astype("Float64").astype(float)
    told["_failed"] = once["status"].isin(["failed", "unreadable"])
    told["_unsure"] = _not_memorized(once)
    grouped = told.groupby(list(by), observed=True, sort=False, dropna=False)
    values = grouped["_value"]
    found = pd.DataFrame({"mean": values.mean(), "std": values.std(ddof=1), "n": values.count()})
    found["se"] = found["std"] / found["n"].pow(0.5)
    found["planned"] = grouped.size()
    found["failed"] = grouped["_failed"].sum()
    found["memorized"] = ~grouped["_unsure"].any()
    return found


def cells_by(frame: pd.DataFrame, *, by: Sequence[str], value: str) -> dict[tuple[Any, ...], Cell]:
    """The cells of all groups, by their keys."""
    found = measure_cells(frame, by=by, value=value)
    keys = [key if isinstance(key, tuple) else (key,) for key in found.index]
    rows = found.to_dict(orient="records")
    seeds = _by_seed(frame, by=by, value=value)
    return {key: _cell(row, own) for key, row, own in zip(keys, rows, seeds, strict=True)}


def average(frame: pd.DataFrame, *, over: str, members: Sequence[Any], value: str) -> Cell:
    """The mean of the members' means, as the paper averages over sets; empty unless every member has a value.

    Its spread is that of each seed's own average, over the seeds that every member has.
    """
    cells = cells_by(frame[frame[over].isin(list(members))], by=[over], value=value)
    found = [cells.get((member,), EMPTY) for member in members]
    planned, failed = min(cell.planned for cell in found), sum(cell.failed for cell in found)
    if any(cell.mean is None for cell in found):
        return Cell(planned=planned, failed=failed)
    once = frame[frame[over].isin(list(members))].drop_duplicates([over, "trial"])
    by_seed = once.pivot_table(index="seed", columns=over, values=value, aggfunc="mean", observed=True).dropna()
    by_seed = by_seed.mean(axis=1)
    own = spread(by_seed.tolist())
    return Cell(
        mean=math.fsum(cell.mean or 0.0 for cell in found) / len(found),
        std=own.std,
        se=own.se,
        n=min(cell.n for cell in found),
        planned=planned,
        failed=failed,
        memorized=all(cell.memorized for cell in found),
        by_seed=tuple(by_seed),
        uneven=any(cell.uneven for cell in found),
    )


def varying(frame: pd.DataFrame, by: Sequence[str]) -> list[str]:
    """What differs within some group besides the seed: axes, or the model, that a table silently averages over."""
    others = [name for name in ("model", *axes_of(frame)) if name in frame and name not in (*by, "seed")]
    if not others or frame.empty:
        return []
    once = frame.drop_duplicates([*by, "trial"])
    counts = once.groupby(list(by), observed=True, dropna=False)[others].nunique() if by else once[others].nunique()
    return [name for name in others if (counts[name] > 1).any()]


def _not_memorized(frame: pd.DataFrame) -> pd.Series:
    """Whether the first stage of a finished trial fell short of all its examples."""
    if "memorized_1" not in frame or "accuracy_a1" not in frame:
        return pd.Series(False, index=frame.index)
    memorized = frame["memorized_1"].astype("boolean").fillna(True).astype(bool)
    return ~memorized & frame["accuracy_a1"].notna()


def _by_seed(frame: pd.DataFrame, *, by: Sequence[str], value: str) -> list[dict[Any, tuple[float, int]]]:
    """What the finished trials of each seed amount to in each group: their average, and how many they are."""
    once = frame.drop_duplicates([*by, "trial"])
    group = once.groupby(list(by), observed=True, sort=False, dropna=False).ngroup()
    told = pd.DataFrame({"group": group, "seed": once["seed"], "value": once[value].astype("Float64").astype(float)})
    found: list[dict[Any, tuple[float, int]]] = [{} for _ in range(group.nunique())]
    measured = told.dropna(subset="value").groupby(["group", "seed"])["value"].agg(["mean", "count"])
    for (place, seed), mean, count in measured.itertuples():
        found[place][seed] = (mean, count)
    return found


def _cell(row: dict[str, Any], seeds: dict[Any, tuple[float, int]]) -> Cell:
    told = {name: None if pd.isna(row[name]) else float(row[name]) for name in ("mean", "std", "se")}
    counts = {name: int(row[name]) for name in ("n", "planned", "failed")}
    return Cell(
        **told,
        **counts,
        memorized=bool(row["memorized"]),
        by_seed=tuple(mean for mean, _ in seeds.values()),
        uneven=len({count for _, count in seeds.values()}) > 1,
    )
