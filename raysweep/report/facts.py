"""What a page says of sweeps besides their numbers: how far they are, what they share, what failed, how they were made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from raysweep.errors import StoreError
from raysweep.report.frame import SweepSource, axes_of
from raysweep.report.long import stages_of
from raysweep.store.store import Store

__all__ = ["failures", "provenance", "sharing", "slowest", "status"]

_MOST = 50  # trials in a list
_SLOWEST = 10
_READ = 300  # records read for what they say of versions and data


def status(frame: pd.DataFrame) -> dict[str, int]:
    """How many trials have which status, in a fixed order; those that none has are left out."""
    counts = frame.drop_duplicates("trial")["status"].value_counts(sort=False)
    return {str(name): int(count) for name, count in counts.items() if count}


def sharing(sources: Sequence[SweepSource], frame: pd.DataFrame, store: Store) -> dict[str, int]:
    """Points, trials, distinct stages, how many of them are finished, and the trainings that no sharing would take."""
    chains = stages_of(sources, store)
    own = [chains[trial] for trial in frame["trial"].unique() if trial in chains]
    distinct = {stage for chain in own for stage in chain}
    return {
        "points": len(frame),
        "trials": len(own),
        "stages": len(distinct),
        "stages_done": len(distinct & store.stage_ids()),
        "stages_unshared": sum(len(chain) for chain in own),
    }


def slowest(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The trials that trained longest, without stages that they reused: trial, point, seconds."""
    once = frame.drop_duplicates("trial")
    seconds = sum((_own_seconds(once, column) for column in once.columns if column.startswith("seconds_")), start=0.0)
    if isinstance(seconds, float):
        return []
    longest = seconds[seconds > 0].sort_values(ascending=False).head(_SLOWEST)
    return [{**_named(once.loc[index], once), "seconds": round(float(value), 1)} for index, value in longest.items()]


def failures(frame: pd.DataFrame) -> dict[str, Any]:
    """Failed trials and unreadable records: how many, and of the first ones trial, point, attempts and first error line."""
    once = frame.drop_duplicates("trial")
    bad = once[once["status"].isin(["failed", "unreadable"])]
    rows = [
        {**_named(row, once), "attempts": int(row["attempts"]), "error": _first_line(row["error"])}
        for _, row in bad.head(_MOST).iterrows()
    ]
    return {"count": len(bad), "rows": rows}


def provenance(sources: Sequence[SweepSource], frame: pd.DataFrame, store: Store) -> dict[str, Any]:
    """Commits and versions of the code, machines, and the digests of the data, from the records of finished work."""
    done = frame[frame["status"] == "done"].drop_duplicates("trial")
    trials = done["trial"].head(_READ).tolist()
    found = [record for trial in trials if (record := _trial(store, trial))]
    made = [record.get("provenance") or {} for record in found]
    return {
        "commits": _counted(done["commit"].dropna()),
        "versions": _versions(made),
        "machines": _counted(one["machine"] for one in made if one.get("machine")),
        "engines": [],
        "data": [],
        "read": len(found),
        "of": len(done),
    } | _of_stages(sources, trials, store)


def _of_stages(sources: Sequence[SweepSource], trials: Sequence[str], store: Store) -> dict[str, Any]:
    chains, folders = stages_of(sources, store), store.stage_folders()
    stages = dict.fromkeys(stage for trial in trials for stage in chains.get(trial, ()) if stage in folders)
    records = [record for stage in list(stages)[:_READ] if (record := _stage(store, folders[stage]))]
    return {"data": _digests(records), "engines": _counted(_engine(record) for record in records)}


def _digests(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each set and mixing source once with its digest; the same name with several digests stands there several times."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        config, data = record.get("config") or {}, record.get("data") or {}
        names = {
            "set": (config.get("set") or {}).get("set"),
            "mixing": (config.get("mixing") or {}).get("source"),
        }
        for role, name in names.items():
            if name and (of := data.get(role)):
                rows.setdefault(
                    (f"{name}", of["digest"]),
                    {"name": name, "role": role, "examples": of["examples"], "digest": of["digest"]},
                )
    return sorted(rows.values(), key=lambda row: (row["role"] != "set", row["name"], row["digest"]))


def _engine(record: dict[str, Any]) -> str:
    engine = record.get("engine") or {}
    parts = [f"ZeRO {engine.get('zero_stage')}", f"{engine.get('world_size')} worker(s)"]
    return ", ".join([*parts, *(str(engine[name]) for name in ("precision", "backend", "device") if engine.get(name))])


def _versions(made: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """Every version of every package that some record names."""
    found: dict[str, dict[str, None]] = {}
    for one in made:
        for package, version in (one.get("versions") or {}).items():
            found.setdefault(package, {})[str(version)] = None
    return [(package, ", ".join(versions)) for package, versions in found.items()]


def _trial(store: Store, trial: str) -> dict[str, Any] | None:
    try:
        record = json.loads(store.trial_bytes(trial) or b"null")
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _stage(store: Store, folder: str) -> dict[str, Any] | None:
    try:
        return store.stage_record(folder)
    except StoreError:
        return None


def _counted(values: Iterable[Any]) -> list[tuple[str, int]]:
    return [(str(value), count) for value, count in Counter(values).most_common()]


def _own_seconds(frame: pd.DataFrame, column: str) -> pd.Series:
    seconds = frame[column].astype(float).fillna(0.0)
    reused = f"reused_{column.removeprefix('seconds_')}"
    return seconds.where(~frame[reused].fillna(False).astype(bool), 0.0) if reused in frame else seconds


def _named(row: pd.Series, frame: pd.DataFrame) -> dict[str, Any]:
    point = ", ".join(f"{axis} {row[axis]}" for axis in axes_of(frame) if axis in frame and not pd.isna(row[axis]))
    return {"trial": row["trial"], "point": point}


def _first_line(error: Any) -> str:
    return str(error).splitlines()[0] if isinstance(error, str) and error else ""
