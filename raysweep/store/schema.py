"""Which schemas of which records this code reads: a newer one is refused in one clear line, and harms nothing else.

A schema is raised when a field of that kind of record changes its meaning; earlier ones stay readable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysweep.errors import NewerSchema, StoreError

__all__ = ["SCHEMAS", "checked", "is_plan", "is_trial", "is_whole_plan", "refused"]

SCHEMAS: Mapping[str, tuple[int, ...]] = {
    "stage": (1, 2),  # 2: the files of a commit are below its own folder, which the record names
    "evaluation": (1, 2),  # 2: the same
    "trial": (1,),
    "plan": (1,),
    "status": (1,),
}


def checked(record: dict[str, Any], kind: str, path: str) -> dict[str, Any]:
    """A record of a kind, whose schema this code reads; NewerSchema where it does not. One that says none is of the first."""
    if problem := refused(record, kind):
        raise NewerSchema(f"{path}: {problem}")
    return record


def refused(record: Mapping[str, Any], kind: str) -> str | None:
    """Why a record of a kind is not read, and what to do; None where it is."""
    found, reads = record.get("schema", 1), SCHEMAS[kind]
    if type(found) is int and found in reads:
        return None
    told = record.get("provenance")
    versions = told.get("versions") if isinstance(told, dict) else None
    version = versions.get("raysweep") if isinstance(versions, dict) else None
    wrote = f" (version {version})" if version else ""
    shown = " and ".join(map(str, reads))
    return f"it has schema {found!r}, this raysweep reads {shown}: use the raysweep that wrote it{wrote}"


def is_trial(record: Mapping[str, Any]) -> bool:
    """Whether the fields of a trial's record are of the kinds that those who read them count on."""
    kinds = {"point": dict, "stages": list, "metrics": dict, "evaluations": list, "evaluated": list, "tables": dict}
    told = {name: record[name] for name in kinds if record.get(name) is not None}
    if not isinstance(record.get("status"), str) or not all(isinstance(told[name], kinds[name]) for name in told):
        return False
    tables = told.get("tables")
    named = not tables or isinstance(tables.get("folder"), str)
    whole = not tables or all(isinstance(tables.get(name), dict) for name in ("digests", "bytes"))
    return named and whole and all(isinstance(one, dict) for one in told.get("evaluations", ()))


def is_plan(plan: Mapping[str, Any], path: str) -> None:
    """StoreError where a mapping is no part of a sweep's plan: it has no points, or one is damaged."""
    points = plan.get("points")
    named = all(isinstance(plan.get(name, ""), str) for name in _NAMED)
    if not named or not isinstance(points, list) or not all(map(_is_point, points)):
        raise StoreError(_NO_PLAN.format(path))


def is_whole_plan(plan: Mapping[str, Any], path: str) -> None:
    """StoreError where all parts of a plan together lack its settings, or a point's trial and stages."""
    if not {*_NAMED} <= plan.keys() or not all({"trial", "stages"} <= point.keys() for point in plan["points"]):
        raise StoreError(_NO_PLAN.format(path))


_NAMED = ("name", "settings", "model")
_NO_PLAN = "{}: not the plan of a sweep; remove the file and run the sweep again: its finished trials are kept"


def _is_point(point: Any) -> bool:
    if not isinstance(point, dict) or not isinstance(point.get("values"), dict):
        return False
    stages = point.get("stages", [])
    return (
        isinstance(point.get("trial", ""), str)
        and isinstance(stages, list)
        and all(isinstance(stage, str) for stage in stages)
    )
