"""The points of sweeps: which trial each is, whether from a plan in the store or from one made of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysweep.errors import BadInput
from raysweep.plan.plan import Plan
from raysweep.store.store import Store
from raysweep.sweep.spec import NAME_PATTERN

__all__ = ["Points", "points_as_run", "points_of_plan", "points_of_sweep", "require_sweep"]


@dataclass(frozen=True)
class Points:
    """Points of one sweep as columns: `trial`, then one per axis. A list or mapping as a value is there as JSON text."""

    sweep: str
    model: str
    axes: tuple[str, ...]
    table: pa.Table

    @property
    def trials(self) -> list[str]:
        """The trial of each point; one that several points mean stands there several times."""
        return self.table["trial"].to_pylist()


def points_of_sweep(name: str, store: Store) -> Points:
    """Every point ever planned under a name. BadInput where there is no such name."""
    require_sweep(name, store)
    plan = store.sweep(name)
    return _points(name, plan["model"], [(point["values"], point["trial"]) for point in plan["points"]])


def points_of_plan(plan: Plan) -> list[Points]:
    """The points of a plan, one `Points` for each sweep in it."""
    found: dict[str, list[tuple[Mapping[str, Any], str]]] = {}
    models: dict[str, str] = {}
    for point in plan.points:
        found.setdefault(point.sweep, []).append((point.values, point.trial))
        models[point.sweep] = plan.trials[point.trial].spec.model.name
    return [_points(sweep, models[sweep], rows) for sweep, rows in found.items()]


def points_as_run(plan: Plan, store: Store) -> list[Points]:
    """The points of a plan whose sources cannot be resolved here, with the trials that they were when they were run.

    A point that was never run under its sweep's name keeps its provisional trial, which has no record.
    """
    found = []
    for points in points_of_plan(plan):
        ran = {_key(point["values"]): point["trial"] for point in store.sweep(points.sweep)["points"]}
        own = [point for point in plan.points if point.sweep == points.sweep]
        rows = [(point.values, ran.get(_key(point.values), point.trial)) for point in own]
        found.append(_points(points.sweep, points.model, rows))
    return found


def require_sweep(name: str, store: Store) -> None:
    """BadInput where `name` cannot be a sweep's."""
    if not re.fullmatch(NAME_PATTERN, name):
        known = ", ".join(store.sweeps()) or "none yet"
        raise BadInput(
            f"{name!r} is neither a sweep's name nor a sweep file (.yaml); the store {store.files.name} has {known}"
        )


def _points(sweep: str, model: str, rows: Sequence[tuple[Mapping[str, Any], str]]) -> Points:
    axes = tuple(dict.fromkeys(axis for values, _ in rows for axis in values))
    columns = {axis: _column([values.get(axis) for values, _ in rows]) for axis in axes}
    trials = pa.array([trial for _, trial in rows], pa.string())
    return Points(sweep, model, axes, pa.table({"trial": trials, **columns}))


def _column(values: Sequence[Any]) -> pa.Array:
    """One axis, typed: all numbers, all words, all truth values; anything else as JSON text."""
    kinds = {type(value) for value in values if value is not None}
    match kinds:
        case _ if kinds <= {bool} or kinds <= {str} or kinds <= {int}:
            return pa.array(values)
        case _ if kinds <= {int, float}:
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
        case _:
            return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else str(value)


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, default=_plain)
