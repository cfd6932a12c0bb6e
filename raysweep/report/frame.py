"""Records to dataframes: one row a trial, pending and failed ones too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from raysweep.plan import Plan
from raysweep.store import Store

__all__ = ["trials_of_plan", "trials_of_sweep"]

_FIRST = ("sweep", "trial", "model", "d_a", "d_b", "mixer", "mixer_1", "mixer_2", "ratio", "seed")
_THEN = ("status", "error", "accuracy_a1", "retention", "forgetting", "accuracy_b")
_LAST = ("attempts", "commit", "started", "finished")
_CATEGORIES = ("sweep", "model", "mixer", "status")


def trials_of_sweep(name: str, store: Store) -> pd.DataFrame:
    """One row for each point ever planned under a name."""
    plan = store.sweep(name)
    points = [(name, plan["model"], point["values"], point["trial"]) for point in plan["points"]]
    return _frame(points, store)


def trials_of_plan(plan: Plan, store: Store) -> pd.DataFrame:
    """One row for each point of a plan."""
    points = [
        (point.sweep, plan.trials[point.trial].spec.model.name, dict(point.values), point.trial)
        for point in plan.points
    ]
    return _frame(points, store)


def _frame(points: Iterable[tuple[str, str, Mapping[str, Any], str]], store: Store) -> pd.DataFrame:
    points = list(points)
    records = {trial: store.trial(trial) for trial in {trial for *_, trial in points}}
    frame = pd.DataFrame([_row(*point, records[point[3]] or {}) for point in points])
    axes = list(dict.fromkeys(axis for _, _, values, _ in points for axis in values))
    frame = frame[_ordered(frame.columns, axes)]
    kinds = {
        column: "category" for column in frame.columns if column in _CATEGORIES or column.startswith(("d_", "mixer_"))
    }
    return frame.astype(kinds)


def _row(sweep: str, model: str, values: Mapping[str, Any], trial: str, record: Mapping[str, Any]) -> dict[str, Any]:
    mixers = {f"mixer_{place}": part for place, part in enumerate(values["mixer"].split("/"), start=1)}
    return {
        "sweep": sweep,
        "trial": trial,
        "model": model,
        **values,
        **mixers,
        "status": record.get("status", "pending"),
        "error": record.get("error"),
        "accuracy_a1": None,
        "retention": None,
        "forgetting": None,
        "accuracy_b": None,
        **record.get("metrics", {}),
        "attempts": record.get("attempts", 0),
        "commit": record.get("provenance", {}).get("commit"),
        "started": pd.to_datetime(record.get("started")),
        "finished": pd.to_datetime(record.get("finished")),
    }


def _ordered(columns: Iterable[str], axes: list[str]) -> list[str]:
    columns = list(columns)
    further = [axis for axis in axes if axis not in _FIRST]
    known = [*_FIRST, *further, *_THEN]
    rest = [column for column in columns if column not in (*known, *_LAST)]
    return [column for column in (*known, *rest, *_LAST) if column in columns]
