"""Records of trials as columns; what cannot be read is a row that says so, never a row that is missing.

A record is read again only when its time or size has changed since it was last read; one written within two seconds
of being read counts as changed next time, since two writes may share a time stamp. A trial that says `done` is looked at
again each time: where a table that its record names is missing or was altered, its row says so.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cache
from typing import Any

import pyarrow as pa

from raysweep.errors import StoreError
from raysweep.store.files import read_record
from raysweep.store.schema import refused
from raysweep.store.store import Store
from raysweep.store.tables import TABLES, lost_tables, stamps_of

__all__ = ["NAMED", "NEVER", "UNREADABLE", "WRITTEN", "read_records"]

UNREADABLE = "unreadable"
WRITTEN = ("_written", "_bytes")  # the stamp that a row was read under
NAMED = ("_folder", "_evals", "_predictions")  # the tables that its record names: their folder, and the bytes of each
NEVER = 0  # a stamp that no file has
_SETTLED = 2_000_000_000  # ns
_AT_ONCE = 16
_TIME = pa.timestamp("us", tz="UTC")
_KNOWN = {"trial": pa.string(), "status": pa.string(), "error": pa.string(), "commit": pa.string(), "machine": pa.string(),
          "attempts": pa.int64(), "preemptions": pa.int64(), "started": _TIME, "finished": _TIME,
          WRITTEN[0]: pa.int64(), WRITTEN[1]: pa.int64(),
          NAMED[0]: pa.string(), NAMED[1]: pa.int64(), NAMED[2]: pa.int64()}  # fmt: skip
_BY_PREFIX = {"stopped_by_": pa.string(), "memorized_": pa.bool_(), "reused_": pa.bool_(), "steps_": pa.int64(),
              "tokens_": pa.int64(), "accuracy_": pa.float64(), "retention": pa.float64(), "forgetting": pa.float64(),
              "familiar_": pa.float64(), "asked_": pa.float64(), "loss_": pa.float64(), "epochs_": pa.float64(),
              "seconds_": pa.float64(), "restated_": pa.int64()}  # fmt: skip

_log = logging.getLogger(__name__)


def read_records(store: Store, trials: Sequence[str], known: pa.Table | None) -> tuple[pa.Table, int]:
    """One row for each of these trials that has a record, and how many rows are not those of `known`.

    `known` holds rows of an earlier call; those whose record was not written since are taken from it.
    """
    known = known if known is not None and _certain(known) else None
    wanted = list(dict.fromkeys(trials))
    stamps = store.trial_stamps(wanted)
    place = {trial: row for row, trial in enumerate(known["trial"].to_pylist())} if known is not None else {}
    written = list(zip(*(known[name].to_pylist() for name in WRITTEN), strict=True)) if known is not None else []
    doubtful = _doubtful(store, known)
    kept: list[int] = []
    changed: list[tuple[str, tuple[int, int] | None]] = []
    began = time.time_ns()
    for trial, stamp in zip(wanted, stamps, strict=True):
        row = place.get(trial)
        if row is not None and stamp is not None and written[row] == stamp and trial not in doubtful:
            kept.append(row)
        elif stamp is not None or store.files.local is None:
            changed.append((trial, stamp))
    rows = _read_all(store, changed, began)
    count = max(len(rows), len(place) - len(kept))
    if known is None or not kept:
        return _told(_table(rows)), count
    same = known if len(kept) == len(place) else known.take(pa.array(kept, pa.int64()))
    whole = _joined(same, _table(rows)) if rows else same
    return _told(whole) if whole is not None else read_records(store, wanted, None)[0], count


def _doubtful(store: Store, known: pa.Table | None) -> set[str]:
    """The trials among known rows whose tables are not as their records left them, by a look at the files alone."""
    if known is None or NAMED[0] not in known.column_names:
        return set()
    rows = [row for row in known.select(["trial", WRITTEN[0], *NAMED]).to_pylist() if row[NAMED[0]]]
    paths = [f"trials/{row['trial']}/{row[NAMED[0]]}/{name[1:]}.parquet" for row in rows for name in NAMED[1:]]
    stamps = iter(stamps_of(store.files, paths).values())
    found = set()
    for row in rows:
        for name in NAMED[1:]:
            stamp = next(stamps)
            if stamp is None or stamp[1] != row[name] or stamp[0] > row[WRITTEN[0]]:
                found.add(row["trial"])
    return found


def _read_all(store: Store, changed: Sequence[tuple[str, tuple[int, int] | None]], began: int) -> list[dict[str, Any]]:
    """The rows of these records: one after the other from a disk, many at once from where each takes its time."""
    if store.files.local is not None:
        found = [_read(store, trial, stamp, began) for trial, stamp in changed]
    else:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(lambda one: _read(store, *one, began), changed))
    return [row for row in found if row is not None]


def _read(store: Store, trial: str, stamp: tuple[int, int] | None, began: int) -> dict[str, Any] | None:
    try:
        content = store.trial_bytes(trial)
    except StoreError as problem:
        _log.warning("%s", problem)
        return {"trial": trial, "status": UNREADABLE, "error": str(problem), **dict.fromkeys(WRITTEN, NEVER)}
    if content is None:
        return None
    row = _with_its_tables(store, trial, content, _row(trial, content))
    settled = stamp is not None and stamp[0] < began - _SETTLED
    written, size = stamp if settled else (NEVER, NEVER)
    return {"trial": trial, WRITTEN[0]: written, WRITTEN[1]: size, **row}


def _with_its_tables(store: Store, trial: str, content: bytes, row: dict[str, Any]) -> dict[str, Any]:
    """A row that says done with the tables that its record names, or the row that says which one is lost."""
    record = read_record(content) if row["status"] == "done" else None
    if not record or not record.get("tables"):  # earlier code named none
        return row
    try:
        problem = lost_tables(store.files, {trial: record}).get(trial)
        named = (record["tables"]["folder"], *(record["tables"]["bytes"][f"{name}.parquet"] for name in TABLES))
    except (KeyError, TypeError, AttributeError):
        problem = f"trials/{trial}/record.json names no tables"
    if problem is None:
        return row | dict(zip(NAMED, named, strict=True))
    _log.warning("trial %s is not done: %s; run the sweep again, or `raysweep verify --repair`", trial, problem)
    error = f"{problem}; run again: it is put together from what is stored"
    return {"status": UNREADABLE, "error": error, **dict.fromkeys(WRITTEN, NEVER)}


def _row(trial: str, content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
        return _fields(trial, record)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as problem:
        reason = problem.args[0] if isinstance(problem, _Unfit) else "it is torn or not a record"
        _log.warning("trials/%s/record.json cannot be used: %s", trial, reason)
        return {"status": UNREADABLE, "error": f"trials/{trial}/record.json: {reason}; remove the file and run again"}


class _Unfit(ValueError):
    """A record that is whole, but not one that this version can count."""


def _fields(trial: str, record: Mapping[str, Any]) -> dict[str, Any]:
    if problem := refused(record, "trial"):
        raise _Unfit(problem)
    if record.get("id", trial) != trial:
        raise _Unfit(f"it is the record of {record['id']!r}")
    metrics = {name: _value(name, value) for name, value in (record.get("metrics") or {}).items()}
    return metrics | {
        "status": _text(record["status"]),
        "error": record.get("error") and _text(record["error"]),
        "attempts": int(record.get("attempts", 0)),
        "preemptions": int(record.get("preemptions", 0)),
        **{name: (record.get("provenance") or {}).get(name) for name in ("commit", "machine")},
        "started": _moment(record.get("started")),
        "finished": _moment(record.get("finished")),
    }


def _value(name: str, value: Any) -> Any:
    """A measure as its column holds it; _Unfit where it is of another kind."""
    kind = _kind(name)
    if value is None:
        return None
    if kind == pa.string():
        return _text(value)
    if kind == pa.bool_() and not isinstance(value, bool):
        raise _Unfit(f"{name} is {value!r}, not true or false")
    if kind in (pa.int64(), pa.float64()):
        return _number(name, value, whole=kind == pa.int64())
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def _number(name: str, value: Any, *, whole: bool) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or (whole and value != int(value)):
        raise _Unfit(f"{name} is {value!r}, not a number")
    return int(value) if whole else float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unfit(f"{value!r} stands where a word should")
    return value


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


@cache
def _kind(name: str) -> pa.DataType | None:
    """The type of a column; None where its values tell."""
    return _KNOWN.get(name) or next((kind for prefix, kind in _BY_PREFIX.items() if name.startswith(prefix)), None)


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    names = dict.fromkeys([*_KNOWN, *(name for row in rows for name in row)])
    return pa.table({name: _array(name, [row.get(name) for row in rows]) for name in names})


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    kind = _kind(name)
    if kind is not None:
        return pa.array(values, kind)
    if all(value is None or isinstance(value, int | float) for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _certain(known: pa.Table) -> bool:
    """Whether all columns have the types that their names or numbers give: what others hold depends on all rows."""
    return not any(_kind(field.name) is None and field.type == pa.string() for field in known.schema)


def _joined(one: pa.Table, other: pa.Table) -> pa.Table | None:
    """Both tables' rows; None where the new ones make a column of numbers one of words."""
    shared = [name for name in one.column_names if name in other.column_names]
    if any(one.schema.field(name).type != other.schema.field(name).type for name in shared):
        return None
    return pa.concat_tables([one, other], promote_options="default")


def _told(table: pa.Table) -> pa.Table:
    """Without measures that no record has (any more)."""
    empty = [name for name in table.column_names if name not in _KNOWN and table[name].null_count == table.num_rows]
    return table.drop_columns(empty) if empty else table
