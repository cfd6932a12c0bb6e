"""Evaluations in a store, below the model that was evaluated: each made once, and what was made first stays.

    <store>/stages/<slug>-<id>/<commit>/evals/   predictions.parquet  record.json    made by the training itself
    <store>/stages/<slug>-<id>/evals/<name>/     record.json  <commit>/predictions.parquet     made later
    <store>/models/<slug>-<digest>/evals/<name>/ the same, of a base model

A record lists the evaluations that it stands for, with their payloads and what came out, and the digest of their answers;
the rows of `predictions.parquet` say which evaluation they belong to. Those of a training count with its stage's record,
which lists the digests of both files. One that is made later has a record of its own, `<name>` is its id: the record is
created last, only where there is none, and names the folder of its own commit, so that no two writers share a file.
Earlier code put `predictions.parquet` beside that record.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import NewerSchema, StoreError
from raysweep.plan.evaluator import Evaluation
from raysweep.plan.identity import ID_LENGTH, digest, fingerprint
from raysweep.store import provenance
from raysweep.store.files import Files, read_record
from raysweep.store.schema import SCHEMAS, checked

__all__ = ["ANSWERS", "Evaluated", "Evaluations", "commit_name", "dropped", "home_of_model", "home_of_stage", "write"]

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
        """The ids of all evaluations of a model; their answers are not read."""
        names = self.names(home)
        several = [name for name in names if len(name) != ID_LENGTH]
        found = {name for name in names if len(name) == ID_LENGTH}
        found |= {row["id"] for name in several for row in self._rows(_Kept(self._files, home, name))}
        record = self._stage_record(home)
        own = record.get("evaluations", ())
        return found | (set() if not own or self.are_dropped(home, record["commit"]) else set(own))

    def names(self, home: str) -> list[str]:
        """The folders of evaluations that were made later and have a record, whole or not."""
        there = [f"{home}/evals/{name}/record.json" for name in self._files.names(f"{home}/evals")]
        return [path.split("/")[-2] for path in self._files.among(there)] if there else []

    def made(self, home: str, wanted: Iterable[str]) -> dict[str, Evaluated]:
        """Those of these evaluations that the store holds whole, with their answers."""
        wanted = set(wanted)
        found: dict[str, Evaluated] = {}
        for kept in self._kept(home, wanted):
            rows = [row for row in self._rows(kept) if row["id"] in wanted and row["id"] not in found]
            answers = kept.answers() if rows else {}
            found |= {row["id"]: Evaluated(row["id"], row, answers.get(row["id"], ())) for row in rows}
        return found

    def add(self, home: str, made: Iterable[Evaluated]) -> None:
        """Keep evaluations of a model; of two that make the same one the first stays."""
        for one in made:
            commit = commit_name(0)
            with self._files.aside("evaluation") as folder:
                record = write(folder / "one", one)
                (folder / "one" / "record.json").unlink()
                self._files.place(folder / "one", f"{home}/evals/{one.id}/{commit}")
            content = (json.dumps({**record, "folder": commit}, indent=1, default=str) + "\n").encode()
            while not self._files.create(f"{home}/evals/{one.id}/record.json", content):
                if self._stays(_Kept(self._files, home, one.id)):
                    _log.info("evaluation %s was made by another meanwhile; its answers are used", one.id)
                    self._files.remove(f"{home}/evals/{one.id}/{commit}")
                    break

    def problems(self, home: str) -> dict[str, str]:
        """What is wrong with each folder of evaluations of a model, by its path; those of a training are its stage's."""
        found = {}
        for name in self.names(home):
            kept = _Kept(self._files, home, name)
            if problem := kept.problem():
                found[kept.path] = problem
        return found

    def set_aside(self, path: str) -> None:
        """Take an evaluation that was made later, at this path, out of use: its record goes first, then what it named."""
        home, _, name = path.rpartition("/evals/")
        _Kept(self._files, home, name).remove()

    def are_dropped(self, home: str, commit: str) -> bool:
        """Whether what a stage answered at its end was set aside."""
        return self._files.exists(f"{home}/{dropped(f'{commit}/evals')}")

    def _kept(self, home: str, wanted: Collection[str]) -> Iterator[_Kept]:
        """Where these evaluations may be: with the stage's own commit, and in folders of their own."""
        record = self._stage_record(home)
        own = wanted & {*record.get("evaluations", ())}
        if own and not self.are_dropped(home, record["commit"]):
            yield _Kept(self._files, home, commit=record["commit"], digests=record.get("digests", {}))
        for name in self.names(home):
            if len(name) != ID_LENGTH or name in wanted:
                yield _Kept(self._files, home, name)

    def _stage_record(self, home: str) -> dict[str, Any]:
        if not home.startswith("stages/"):
            return {}
        try:
            return self._files.read_json(f"{home}/record.json") or {}
        except StoreError:  # those who want the stage itself say so
            return {}

    def _rows(self, kept: _Kept) -> list[dict[str, Any]]:
        """The rows of a folder whose answers are what its record says; one that is not is set aside, and said."""
        problem = kept.problem()
        if problem is None:
            return kept.record["evaluations"]
        if isinstance(problem, _Newer):
            _log.warning("%s is not used: %s", kept.path, problem)
            return []
        _log.warning("%s is not used and will be made again: %s%s", kept.path, problem, kept.remove())
        return []

    def _stays(self, kept: _Kept) -> bool:
        """Whether a record that is there is left as it is; one that is torn goes."""
        return bool(self._rows(kept)) or kept.is_there()


class _Newer(str):
    """Why a record that a later raysweep wrote is not read."""


class _Kept:
    """One folder of evaluations: where its record and its answers are, and whether they are what was committed."""

    def __init__(
        self,
        files: Files,
        home: str,
        name: str | None = None,
        *,
        commit: str = "",
        digests: Mapping[str, str] | None = None,
    ) -> None:
        self._files = files
        self._digests = digests
        self.path = f"{home}/{commit}/evals" if name is None else f"{home}/evals/{name}"

    @cached_property
    def record(self) -> dict[str, Any]:
        """Its record; StoreError where that is torn or missing."""
        path = f"{self.path}/record.json"
        content = self._files.read_bytes(path)
        if content is None:
            raise StoreError("its record is missing")
        if self._digests is not None and digest(content) != self._digests.get("evals/record.json"):
            raise StoreError("its record is not what was committed")
        found = read_record(content)
        if found is None:
            raise StoreError("its record is torn")
        checked(found, "evaluation", path)
        if not isinstance(found.get("predictions"), str) or not _are_rows(found.get("evaluations")):
            raise StoreError("its record is torn")
        return found

    def problem(self) -> str | None:
        """What is wrong with it; None where nothing is."""
        try:
            self.record  # noqa: B018 — read
        except NewerSchema as error:
            return _Newer(error)
        except StoreError as error:
            return str(error)
        if self._content is None or digest(self._content) != self.record["predictions"]:
            return "its predictions.parquet is not what was committed"
        return None

    def answers(self) -> dict[str, list[dict[str, Any]]]:
        """The answers of each evaluation, one row an example."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in pq.read_table(pa.BufferReader(self._content)).to_pylist():
            found.setdefault(row.pop("evaluation"), []).append(row)
        return found

    def remove(self) -> str:
        """Take it out of use, unless it is part of a stage's commit; what is to be said of that."""
        if self._digests is not None:
            return ""
        self._files.remove(f"{self.path}/record.json")
        self._files.remove(self._answers_at)
        return "; it was removed"

    def is_there(self) -> bool:
        """Whether there is a record, of whatever kind."""
        return self._files.exists(f"{self.path}/record.json")

    @cached_property
    def _content(self) -> bytes | None:
        return self._files.read_bytes(self._answers_at)

    @property
    def _answers_at(self) -> str:
        try:
            commit = self.record.get("folder")
        except StoreError:
            commit = None
        return f"{self.path}/{commit}/predictions.parquet" if commit else f"{self.path}/predictions.parquet"


def _are_rows(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows)


def dropped(within: str) -> str:
    """The file that says that a folder within a stage's is gone: its weights, or what it answered at its end."""
    return f"dropped-{within.replace('/', '-')}.json"


def commit_name(token: int) -> str:
    """A new name for the folder of one commit: the number of the lease that it was made under, and what no other has."""
    return f"{token}-{uuid.uuid4().hex[:12]}"


def write(folder: Path, *made: Evaluated) -> dict[str, Any]:
    """Write evaluations of one model as a new local folder, the record last; the record."""
    folder.mkdir(parents=True)
    rows = [{"evaluation": one.id, **row} for one in made for row in one.predictions]
    columns = {name: [row.get(name) for row in rows] for name in ANSWERS.names}
    pq.write_table(pa.table(columns, schema=ANSWERS), folder / "predictions.parquet")
    record = {
        "schema": SCHEMAS["evaluation"][-1],
        "evaluations": [{**one.row, "id": one.id} for one in made],
        "predictions": digest((folder / "predictions.parquet").read_bytes()),
        "provenance": {**provenance.here(), "finished": provenance.timestamp(time.time())},
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
    return record
