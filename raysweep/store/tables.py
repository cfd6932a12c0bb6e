"""The tables of a trial: evaluations and answers, below a folder of their own commit, which the trial's record names.

    <store>/trials/<id>/   record.json   <commit>/ evals.parquet  predictions.parquet

So no two writers share a file, and a record never stands for the tables of another. Earlier code put them beside the record.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.plan.identity import digest
from raysweep.store.checksums import digests
from raysweep.store.evaluations import commit_name
from raysweep.store.files import Files

__all__ = ["TABLES", "altered_table", "lost_tables", "read_table", "stamps_of", "table_paths", "write_tables"]

TABLES = ("evals", "predictions")
_MEND = "running the trial again, or `raysweep verify --repair`, puts it together from what is stored"

_MANY = 64

_log = logging.getLogger(__name__)


def write_tables(folder: Path, tables: Mapping[str, tuple[Sequence[Mapping[str, Any]], pa.Schema]]) -> dict[str, Any]:
    """Write a trial's tables into a new local folder; what its record says of them."""
    folder.mkdir(parents=True)
    for name, (rows, schema) in tables.items():
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), folder / f"{name}.parquet")
    sizes = {f"{name}.parquet": (folder / f"{name}.parquet").stat().st_size for name in tables}
    return {"folder": commit_name(0), "digests": digests(folder), "bytes": sizes}


def table_paths(trial: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Where the tables are that a trial's record stands for, by name."""
    named = _named(record)
    folder = f"trials/{trial}/{named['folder']}" if named else f"trials/{trial}"
    return {name: f"{folder}/{name}.parquet" for name in TABLES}


def read_table(files: Files, trial: str, record: Mapping[str, Any], name: str) -> pa.Table | None:
    """A trial's table; None where its record names none, or one that is not what was committed, which is said."""
    path, known = table_paths(trial, record)[name], _named(record).get("digests", {}).get(f"{name}.parquet")
    content = files.read_bytes(path)
    if content is None and known is None and record.get("status") != "done":
        return None
    try:
        if content is not None and known in (None, digest(content)):
            return pq.read_table(pa.BufferReader(content))
    except pa.ArrowException:  # of earlier code, which took no digests
        pass
    _log.warning("%s is %s; %s", path, "missing" if content is None else "not what was committed", _MEND)
    return None


def lost_tables(files: Files, done: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What is wrong with the tables of finished trials, by trial: one is missing, is shorter than it was, or was altered.

    A table is read only where it was written after the record that stands for it.
    """
    paths = {
        trial: [f"trials/{trial}/record.json", *table_paths(trial, record).values()] for trial, record in done.items()
    }
    stamps = stamps_of(files, [path for each in paths.values() for path in each])
    found = {}
    for trial, (record, *tables) in paths.items():
        for path in tables:
            if problem := _problem(files, path, _named(done[trial]), stamps[path], stamps[record]):
                found[trial] = f"{path} {problem}"
                break
    return found


def altered_table(files: Files, trial: str, record: Mapping[str, Any]) -> str | None:
    """What is wrong with the tables of a finished trial, read as a whole; None where nothing is."""
    named = _named(record).get("digests", {})
    for name, path in table_paths(trial, record).items():
        content = files.read_bytes(path)
        if content is None:
            return f"{path} is missing"
        if not _is_table(content) if not named else digest(content) != named.get(f"{name}.parquet"):
            return f"{path} is not what was committed"
    return None


def _is_table(content: bytes) -> bool:
    try:
        pq.read_table(pa.BufferReader(content))
    except pa.ArrowException:
        return False
    return True


def _problem(
    files: Files,
    path: str,
    named: Mapping[str, Any],
    stamp: tuple[int, int] | None,
    of_record: tuple[int, int] | None,
) -> str | None:
    name = path.rsplit("/", 1)[1]
    if stamp is None:
        return "is missing"
    if not named:
        return None
    if stamp[1] != named["bytes"].get(name):
        return "is not what was committed"
    if of_record is not None and stamp[0] <= of_record[0]:
        return None
    content = files.read_bytes(path)
    return (
        None if content is not None and digest(content) == named["digests"].get(name) else "is not what was committed"
    )


def _named(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a trial's record says of its tables; nothing where earlier code wrote it."""
    return record.get("tables") or {}


def stamps_of(files: Files, paths: Iterable[str]) -> dict[str, tuple[int, int] | None]:
    """When each of these files was written (ns) and its bytes: one look each, elsewhere one listing of all if they are many."""
    wanted = list(paths)
    if files.local is not None:
        return dict(zip(wanted, files.stamps(wanted), strict=True))
    there = files.looked_at(wanted) if len(wanted) < _MANY else files.below("trials")
    return {path: there.get(path) for path in wanted}
