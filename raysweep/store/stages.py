"""Stages in a store: committed whole, verified before use, set aside when torn, freed of weights that nobody needs.

    <store>/stages/<slug>-<id>/     weights/ (safetensors)  curve.parquet  evals/  record.json

A stage is written aside and renamed as a whole, its record last: where the record is, the stage is complete. Where
there is no rename (a bucket), `weights/` holds a folder for each commit, and the record, written last, says which one
counts. What the stage was evaluated on is in `evals/`, a folder for each evaluation (see `evaluations`); those made by the
training itself come with the stage. Earlier code put all answers into one `predictions.parquet` beside the record.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import StoreError
from raysweep.plan.plan import Node
from raysweep.store.checksums import altered, digests
from raysweep.store.evaluations import Evaluated, Evaluations, write_each
from raysweep.store.files import Files

__all__ = ["PREDICTIONS", "SCHEMA", "FinishedStage", "Stages", "rows_of"]

SCHEMA = 1  # of the records; raised when a field changes its meaning

PREDICTIONS = pa.schema(
    [
        ("stage", pa.int32()),
        ("of", pa.string()),
        ("set", pa.string()),
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
class FinishedStage:
    """A stage that the store holds, in its folder under `stages/`: its record, and whether its weights are there."""

    folder: str
    record: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The stage's id."""
        return self.record["id"]

    @property
    def path(self) -> str:
        """The stage's folder within the store."""
        return f"stages/{self.folder}"

    @property
    def has_weights(self) -> bool:
        """Whether the weights were kept."""
        return bool(self.record.get("files"))

    @property
    def weights(self) -> str:
        """The folder of the weights within the stage's."""
        return self.record.get("weights", "weights")

    @property
    def evaluated(self) -> set[str]:
        """The sets beyond those of its chain that earlier code evaluated at its end, in rows without an id."""
        return {row["set"] for row in rows_of(self.record) if row["of"] is None and "evaluation" not in row}

    def adds_to(self, other: FinishedStage) -> bool:
        """Whether this has what another training of the same stage lacks: weights, or answers without an id."""
        return (self.has_weights and not other.has_weights) or bool(self.evaluated - other.evaluated)


def rows_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of what a stage was evaluated on at its end, as its record has them."""
    return record.get("metrics", {}).get("evaluations", [])


class Stages:
    """The finished stages of one tree of files, and the evaluations below them and below base models."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.evaluations = Evaluations(files)

    def stage(self, node: Node) -> FinishedStage | None:
        """What the store holds of a stage, or None; a torn record is none, and is said."""
        return self.stage_in(_folder(node))

    def stage_in(self, folder: str) -> FinishedStage | None:
        """What a stage's folder holds, or None; a torn record is none, and is said."""
        record = self._whole_record(folder)
        return FinishedStage(folder, record) if record else None

    def stage_ids(self) -> set[str]:
        """The ids of all complete stages, in one listing."""
        records = self.files.among([f"stages/{name}/record.json" for name in self.stage_folders().values()])
        return {record.split("/")[1].rsplit("-", 1)[1] for record in records}

    def with_weights(self, ids: Iterable[str]) -> set[str]:
        """Those of these stages whose weights were kept."""
        folders = self.stage_folders()
        there = [name for name in ids if name in folders]
        records = self.files.read_each([folders[name] for name in there], self._whole_record)
        return {name for name, record in zip(there, records, strict=True) if record and record.get("files")}

    def stage_folders(self) -> dict[str, str]:
        """The folder of every stage by its id, in one listing; one without a record is not complete."""
        return {name.rsplit("-", 1)[1]: name for name in self.files.names("stages") if "-" in name}

    def stage_record(self, folder: str) -> dict[str, Any] | None:
        """The record in a stage's folder, or None."""
        return self.files.read_json(f"stages/{folder}/record.json")

    def stage_records(self) -> dict[str, dict[str, Any]]:
        """The records of all finished stages, by id; a torn one is left out, and said."""
        folders = self.stage_folders()
        records = self.files.read_each(list(folders.values()), self._whole_record)
        return {name: record for name, record in zip(folders, records, strict=True) if record}

    def _whole_record(self, folder: str) -> dict[str, Any] | None:
        try:
            return self.stage_record(folder)
        except StoreError as error:
            _log.warning("%s", error)
            return None

    def stage_table(self, folder: str, name: str) -> pa.Table | None:
        """`curve` or `predictions` of a stage."""
        return self.files.read_table(f"stages/{folder}/{name}.parquet")

    def former_predictions(self, stage: FinishedStage) -> list[dict[str, Any]]:
        """What a stage answered when earlier code evaluated it, all sets in one table."""
        table = self.files.read_table(f"{stage.path}/predictions.parquet")
        return table.to_pylist() if table is not None else []

    @contextlib.contextmanager
    def aside(self) -> Iterator[Path]:
        """A local folder in which a stage is put together before it is committed."""
        with self.files.aside("stage") as folder:
            yield folder

    def commit_stage(
        self,
        node: Node,
        folder: Path,
        record: Mapping[str, Any],
        *,
        curve: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]] = (),
        evaluations: Sequence[Evaluated] = (),
    ) -> FinishedStage:
        """Make `folder` (with `weights/`, or without) this stage's. What another committed first stays and is returned.

        Only where this one has weights that the first has not, it takes the first one's place. Evaluations that the first
        lacks are added to it. `predictions` are answers as earlier code kept them.
        """
        _write_rows(folder / "curve.parquet", curve, None)
        if predictions:
            _write_rows(folder / "predictions.parquet", predictions, PREDICTIONS)
        write_each(folder, evaluations)
        weights = "weights" if self.files.local else _gather(folder)
        files = {"weights": weights, "files": digests(folder, "weights")}
        full = {"id": node.id, "schema": SCHEMA, "config": node.config, **record, **files}
        finished = FinishedStage(_folder(node), full)
        Files(folder).write_json("record.json", full)
        while not self.files.take_in(folder, _stage_path(node), last="record.json"):
            first = self.stage(node)
            if first is None:
                self.set_aside(_folder(node), "its record is torn or missing")
            else:
                self.evaluations.take_in(_stage_path(node), folder / "evals")
                if not finished.adds_to(first):
                    _log.info("stage %s was committed by another meanwhile; its bytes are used", node.id)
                    return first
                return self._replace(node, folder, finished, first)
        return finished

    def _replace(self, node: Node, folder: Path, finished: FinishedStage, first: FinishedStage) -> FinishedStage:
        """Put a stage in the place of its first commit, whose rows of evaluations stay in the record."""
        shutil.rmtree(folder / "evals", ignore_errors=True)
        own = rows_of(finished.record)
        rows = [*own, *(row for row in rows_of(first.record) if row not in own)]
        record = {**finished.record, "metrics": {**finished.record.get("metrics", {}), "evaluations": rows}}
        Files(folder).write_json("record.json", record)
        self.files.put(folder, _stage_path(node), last="record.json")
        return FinishedStage(finished.folder, record)

    def weights(self, stage: FinishedStage, into: Path) -> Path | None:
        """A local folder with the verified weights of a finished stage; None where they were dropped, or are altered.

        A stage with altered weights is set aside. `into` is where a copy is kept that stands elsewhere.
        """
        if not stage.has_weights:
            return None
        wrong = self._unfit(stage, folder := self._weights_folder(stage, into))
        if wrong and self.files.local is None:  # the copy may be an old one, or of another store
            shutil.rmtree(folder, ignore_errors=True)
            wrong = self._unfit(stage, self._weights_folder(stage, into))
        if not wrong:
            return folder
        now = self.stage_in(stage.folder)
        if now and now.record["files"] == stage.record["files"]:  # else they were dropped meanwhile, or made anew
            self.set_aside(stage.folder, wrong)
        return None

    def _weights_folder(self, stage: FinishedStage, into: Path) -> Path:
        path = f"{stage.path}/{stage.weights}"
        if self.files.local is not None:
            return self.files.local / path
        folder = into / stage.id / stage.weights
        if not folder.is_dir():
            with contextlib.suppress(FileNotFoundError):  # then they are found to be missing
                self.files.bring(path, folder)
        return folder

    def _unfit(self, stage: FinishedStage, folder: Path) -> str | None:
        return altered(folder.parents[len(PurePosixPath(stage.weights).parts) - 1], stage.record["files"])

    def set_aside(self, folder: str, reason: str) -> None:
        """Take a torn or altered stage out of use; on a local disk it stays, under another name."""
        path, name = f"stages/{folder}", f"stages/.torn-{folder}-{uuid.uuid4().hex[:6]}"
        where = f"was moved to {name}" if self.files.local else "was removed"
        _log.warning("%s is not used and will be trained again: %s; it %s", path, reason, where)
        if self.files.local:
            with contextlib.suppress(FileNotFoundError):
                (self.files.local / path).rename(self.files.local / name)
        else:
            self.files.remove(f"{path}/record.json")
            self.files.remove(path)

    def weights_size(self, folder: str) -> int:
        """Bytes of the weights in a stage's folder."""
        return self.files.size(f"stages/{folder}/weights")

    def drop_weights(self, folder: str) -> None:
        """Free the weights of the finished stage in a folder; its record, curve and answers stay."""
        record = self.stage_record(folder)
        if record and record.get("files"):
            self.files.write_json(f"stages/{folder}/record.json", {**record, "files": {}})
            self.files.remove(f"stages/{folder}/weights")

    def leftovers(self) -> list[tuple[str, str, float]]:
        """What broken runs left: its path, what it was, and when it was last written (s)."""
        kinds = {".aside": "a commit that broke off", ".in-flight": "checkpoints of a stage", "stages": "a torn stage"}
        return [
            (f"{home}/{name}", what, self.files.touched(f"{home}/{name}"))
            for home, what in kinds.items()
            for name in self.files.names(home, hidden=home == "stages")
        ]

    def models(self) -> Path:
        """The local folder for base models that are built or converted here."""
        return self.files.beside / "models"

    @contextlib.contextmanager
    def in_flight(self, node: Node, token: int = 0) -> Iterator[Path]:
        """This machine's folder for checkpoints of a stage that is being trained, below the lease's token.

        Gone once the stage is done, with those of lower tokens. It stays when the block raises, so that the next attempt
        goes on from there.
        """
        home = self.files.beside / ".in-flight" / node.id
        folder = home / str(token)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        for old in list(home.iterdir()):
            if not old.name.isdigit() or int(old.name) <= token:
                shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody of a higher token is at work
            home.rmdir()


def _folder(node: Node) -> str:
    return f"{node.slug}-{node.id}"


def _stage_path(node: Node) -> str:
    return f"stages/{_folder(node)}"


def _gather(folder: Path) -> str:
    """Put the weights into a folder of their own below `weights/`, so that no two commits share a name; its name."""
    own = f"weights/{uuid.uuid4().hex[:12]}"
    if (folder / "weights").is_dir():
        (folder / "weights").rename(folder / "apart")
        (folder / "weights").mkdir()
        (folder / "apart").rename(folder / own)
    return own


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema | None) -> None:
    names = schema.names if schema else list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    pq.write_table(pa.table(columns, schema=schema), path)
