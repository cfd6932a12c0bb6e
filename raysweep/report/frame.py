"""Records to dataframes: one row a point with its trial, pending and failed ones too.

Columns that are words are categories in the order in which the sweep declares them; counts and truth values are
nullable; times are UTC; accuracies are in [0, 100].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd
import pyarrow as pa

from raysweep.plan.plan import Plan
from raysweep.report.compact import join, known_records, sweep_table
from raysweep.report.points import Points, points_of_plan
from raysweep.report.reading import NAMED, WRITTEN, read_records
from raysweep.report.where import choose
from raysweep.store.store import Store

__all__ = ["STATUSES", "SweepSource", "axes_of", "trials_of", "trials_of_plan", "trials_of_sweep"]

SweepSource = str | Plan | Points  # a sweep by its name in the store, or as the plan or the points of its file
STATUSES = ("done", "running", "pending", "failed", "stopped", "unreadable")
_FIRST = ("sweep", "trial", "model")
_POINT = ("d_a", "d_b", "mixer", "ratio", "seed")
_MEASURED = ("accuracy_a1", "retention", "forgetting", "accuracy_b")
_LAST = ("attempts", "preemptions", "commit", "machine", "started", "finished")
_PER_STAGE = ("steps", "epochs", "loss", "stopped_by", "memorized", "seconds", "tokens", "reused", "restated")
_NULLABLE = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


def trials_of(sources: Sequence[SweepSource], store: Store, *, where: str | None = None) -> pd.DataFrame:
    """The rows of several sweeps, each by its name in the store or as a plan made from its file."""
    parts = [part for source in sources for part in _parts(source, store)]
    return choose(_typed(parts), where)


def trials_of_sweep(name: str, store: Store) -> pd.DataFrame:
    """One row for each point ever planned under a name."""
    return trials_of([name], store)


def trials_of_plan(plan: Plan, store: Store) -> pd.DataFrame:
    """One row for each point of a plan."""
    return trials_of([plan], store)


def axes_of(frame: pd.DataFrame) -> list[str]:
    """The axes that a dataframe has: those of every grid, then further ones."""
    stages = [column for column in frame.columns if re.fullmatch("d_[a-z]", column)]
    further = [
        column for column in frame.columns if "." in column or column in ("examples", "data_seed", "familiarity")
    ]
    return [*stages, "mixer", "ratio", "seed", *further]


def _parts(source: SweepSource, store: Store) -> list[tuple[Points, pa.Table]]:
    if isinstance(source, str):
        return [sweep_table(source, store)]
    points = points_of_plan(source) if isinstance(source, Plan) else [source]
    names = set(store.sweeps())
    known = known_records([one.sweep for one in points if one.sweep in names], store)
    return [(one, read_records(store, one.trials, known)[0]) for one in points]


def _typed(parts: Sequence[tuple[Points, pa.Table]]) -> pd.DataFrame:
    frames = [_frame(points, records) for points, records in parts]
    frame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    axes = list(dict.fromkeys(axis for points, _ in parts for axis in points.axes))
    words = [axis for axis in axes if frame[axis].map(type).eq(str).any() or axis in _POINT[:3]]
    mixers = [column for column in frame.columns if re.fullmatch(r"mixer_\d+", column)]
    for column in ("sweep", "model", *words, *mixers, *_matching(frame, "stopped_by_")):
        frame[column] = _category(frame[column])
    frame["status"] = pd.Categorical(frame["status"], categories=_statuses(frame["status"]))
    return frame[_ordered(frame.columns, axes)]


def _frame(points: Points, records: pa.Table) -> pd.DataFrame:
    whole = join(points, records)
    own = whole.select(["trial", *points.axes]).to_pandas()
    rest = [name for name in whole.column_names if name not in own.columns and name not in (*WRITTEN, *NAMED)]
    frame = pd.concat([own, whole.select(rest).to_pandas(types_mapper=_NULLABLE.get)], axis=1)
    frame = frame.drop_duplicates(["trial", *points.axes], ignore_index=True)
    frame.insert(0, "sweep", points.sweep)
    frame.insert(2, "model", points.model)
    frame["status"] = frame["status"].fillna("pending")
    for name in ("attempts", "preemptions"):
        frame[name] = frame[name].fillna(0)
    for name in _MEASURED:
        frame[name] = frame[name].astype(float) if name in frame else float("nan")
    return frame.assign(**_mixer_parts(frame["mixer"])) if "mixer" in frame else frame


def _mixer_parts(mixer: pd.Series) -> dict[str, pd.Series]:
    """`mixer_1`, `mixer_2`, …: the source of each stage."""
    split = {value: value.split("/") for value in mixer.unique()}
    longest = max((len(parts) for parts in split.values()), default=0)
    return {
        f"mixer_{place + 1}": mixer.map({value: parts[place] for value, parts in split.items() if len(parts) > place})
        for place in range(longest)
    }


def _category(column: pd.Series) -> pd.Series:
    """Categories in the order of first appearance: that of the sweep file."""
    return pd.Series(pd.Categorical(column, categories=column.dropna().unique()), index=column.index)


def _statuses(column: pd.Series) -> list[str]:
    return [*STATUSES, *(status for status in column.unique() if status not in STATUSES)]


def _matching(frame: pd.DataFrame, prefix: str) -> list[str]:
    return [column for column in frame.columns if column.startswith(prefix)]


def _ordered(columns: Iterable[str], axes: Sequence[str]) -> list[str]:
    """The order that the README documents: the point, how it went, what was measured, how it was made."""
    columns = list(columns)
    stages = sorted(axis for axis in axes if re.fullmatch("d_[a-z]", axis))
    mixers = sorted((column for column in columns if re.fullmatch(r"mixer_\d+", column)), key=_number)
    further = [axis for axis in axes if axis not in (*stages, *_POINT)]
    front = [*_FIRST, *stages, "mixer", *mixers, "ratio", "seed", *further, "status", "error", *_MEASURED]
    per_stage = sorted((column for column in columns if _measure(column) in _PER_STAGE), key=_by_measure)
    rest = [column for column in columns if column not in (*front, *per_stage, *_LAST)]
    return [column for column in (*front, *sorted(rest), *per_stage, *_LAST) if column in columns]


def _measure(column: str) -> str:
    return re.sub(r"_\d+$", "", column)


def _number(column: str) -> int:
    return int(column.rsplit("_", 1)[1])


def _by_measure(column: str) -> tuple[int, int]:
    return _PER_STAGE.index(_measure(column)), _number(column)
