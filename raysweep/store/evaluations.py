"""Evaluations in a store, below the model that was evaluated: each made once, and what was made first stays.

    <store>/stages/<slug>-<id>/evals/<name>/     predictions.parquet  record.json
    <store>/models/<slug>-<digest>/evals/<name>/ the same, of a base model

A record lists the evaluations that its folder holds, with their payloads and what came out; the rows of
`predictions.parquet` say which one they belong to. `<name>` is the id of the only one, or any name where a folder holds
several. A folder is written aside and renamed as a whole, its record last, so that it is there once or not at all.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import StoreError
from raysweep.plan.evaluator import Evaluation
from raysweep.plan.identity import ID_LENGTH, digest, fingerprint
from raysweep.store import provenance
from raysweep.store.files import Files

__all__ = ["ANSWERS", "Evaluated", "Evaluations", "home_of_model", "home_of_stage", "write_each"]

ANSWERS = pa.schema(
    [
        ("evaluation", pa.string()),
        ("example", pa.string()),
        ("prompt", pa.string()),
        ("target", pa.string()),
        ("golds", pa.list_(pa.string())),
        ("prediction", pa.string()),
        ("whole", pa.bool_()),
        ("score", pa.float64()),
    ]
)
SCHEMA = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation that was made: its id, what came out (`row`), and one row for each example."""

    id: str
    row: Mapping[str, Any]
    predictions: Sequence[Mapping[str, Any]] = field(default=(), repr=False)


def home_of_stage(folder: str) -> str:
    """The folder below which a stage's evaluations are."""
    return f"stages/{folder}"


def home_of_model(evaluation: Evaluation) -> str:
    """The folder below which a base model's evaluations are; evaluated in other numbers it is another model."""
    described = evaluation.config["model"]
    name = str(described["model"].get("name", "model")).rstrip("/").rsplit("/", 1)[-1]
    slug = "".join(sign if sign.isalnum() or sign in "._" else "-" for sign in name.lower()).strip("-.") or "model"
    return f"models/{slug}-{fingerprint('model', described)}"


class Evaluations:
    """The evaluations of one tree of files; `home` is the folder of the model that was evaluated."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def ids(self, home: str) -> set[str]:
        """The ids of all evaluations of a model, in one listing where each has a folder of its own."""
        names = self._names(home)
        several = [name for name in names if len(name) != ID_LENGTH]
        return {name for name in names if len(name) == ID_LENGTH} | {
            row["id"] for name in several for row in self._rows(home, name)
        }

    def made(self, home: str, wanted: Iterable[str]) -> dict[str, Evaluated]:
        """Those of these evaluations that the store holds whole, with their answers."""
        wanted = set(wanted)
        found: dict[str, Evaluated] = {}
        for name in self._names(home):
            if len(name) == ID_LENGTH and name not in wanted:
                continue
            rows = [row for row in self._rows(home, name) if row["id"] in wanted and row["id"] not in found]
            answers = self._answers(home, name) if rows else {}
            found |= {row["id"]: Evaluated(row["id"], row, answers.get(row["id"], ())) for row in rows}
        return found

    def add(self, home: str, made: Iterable[Evaluated]) -> None:
        """Keep evaluations of a model; of two that make the same one the first stays."""
        for one in made:
            with self._files.aside("evaluation") as folder:
                write(folder / "one", one)
                if not self._files.take_in(folder / "one", _path(home, one.id), last="record.json"):
                    _log.info("evaluation %s was made by another meanwhile; its answers are used", one.id)

    def take_in(self, home: str, folder: Path) -> None:
        """Keep the evaluations that were put into a folder with `write`, one folder each."""
        for one in sorted(folder.iterdir()) if folder.is_dir() else ():
            self._files.take_in(one, _path(home, one.name), last="record.json")

    def _names(self, home: str) -> list[str]:
        return self._files.names(f"{home}/evals")

    def _rows(self, home: str, name: str) -> list[dict[str, Any]]:
        """The rows of a folder whose answers are what its record says; one that is torn is set aside, and said."""
        record = self._record(home, name)
        if record is None:
            return []
        content = self._files.read_bytes(f"{_path(home, name)}/predictions.parquet")
        if content is None or digest(content) != record["predictions"]:
            self._set_aside(home, name, "its predictions.parquet is not what was committed")
            return []
        return record["evaluations"]

    def _record(self, home: str, name: str) -> dict[str, Any] | None:
        try:
            record = self._files.read_json(f"{_path(home, name)}/record.json")
        except StoreError:
            self._set_aside(home, name, "its record is torn")
            return None
        if record is None and self._files.local is not None:  # elsewhere another may be about to write it
            self._set_aside(home, name, "its record is missing")
        if record is not None and record.get("schema") != SCHEMA:
            found = record.get("schema")
            _log.warning("%s has schema %r, this raysweep reads %s; it is not used", _path(home, name), found, SCHEMA)
            return None
        return record

    def _set_aside(self, home: str, name: str, reason: str) -> None:
        _log.warning("%s is not used and will be made again: %s; it was removed", _path(home, name), reason)
        self._files.remove(_path(home, name))

    def _answers(self, home: str, name: str) -> dict[str, list[dict[str, Any]]]:
        table = self._files.read_table(f"{_path(home, name)}/predictions.parquet")
        found: dict[str, list[dict[str, Any]]] = {}
        for row in table.to_pylist() if table is not None else ():
            found.setdefault(row.pop("evaluation"), []).append(row)
        return found


def write(folder: Path, *made: Evaluated) -> None:
    """Write evaluations of one model as a local folder, the record last."""
    folder.mkdir(parents=True)
    rows = [{"evaluation": one.id, **row} for one in made for row in one.predictions]
    columns = {name: [row.get(name) for row in rows] for name in ANSWERS.names}
    pq.write_table(pa.table(columns, schema=ANSWERS), folder / "predictions.parquet")
    record = {
        "schema": SCHEMA,
        "evaluations": [{**one.row, "id": one.id} for one in made],
        "predictions": digest((folder / "predictions.parquet").read_bytes()),
        "provenance": {**provenance.here(), "finished": provenance.timestamp(time.time())},
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def write_each(folder: Path, made: Iterable[Evaluated]) -> None:
    """Write evaluations of one model as they stand below its folder, each in a folder of its own."""
    shutil.rmtree(folder / "evals", ignore_errors=True)
    for one in made:
        write(folder / "evals" / one.id, one)


def _path(home: str, name: str) -> str:
    return f"{home}/evals/{name}"
