"""Stages in a store: committed whole, verified before use, set aside when torn, freed of weights that nobody needs.

    <store>/stages/<slug>-<id>/     record.json   created last, only where there is none, and never written again
                                    <commit>/     weights/ (safetensors)  curve.parquet  evals/  (and whatever is beside)
                                    weights-<commit>.json   the same weights, made again: a commit of their own
                                    dropped-<folder>.json   those weights are gone
                                    evals/        evaluations that were made later (see `evaluations`)

Where the record is, the stage is complete: it names the folder of its commit, `<token>-<random>`, and lists the digests of
all files in it. No two writers share a file: each has a commit of its own, and of two that make the same stage the first
one's record stays. Nobody removes a commit without a record but who made it, `prune` and `verify`, once it is old. Earlier
code put weights and curve beside the record, and rewrote it when the weights went; such stages are read as they are.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import NewerSchema, StoreError
from raysweep.plan.identity import digest
from raysweep.plan.plan import Node
from raysweep.store import provenance
from raysweep.store.checksums import altered, digests
from raysweep.store.evaluations import Evaluated, Evaluations, commit_name, dropped, write
from raysweep.store.files import Files
from raysweep.store.schema import SCHEMAS, checked

__all__ = ["PREDICTIONS", "SCHEMA", "FinishedStage", "Stages", "rows_of"]

SCHEMA = 1  # of the records of trials and sweeps; raised when a field changes its meaning
MEND = "`raysweep verify --repair` says what that costs, and mends it"
_COMMIT = re.compile(r"\d+-[0-9a-f]{12}")
_MADE_AGAIN = re.compile(r"weights-\d+-[0-9a-f]{12}\.json")
_DROPPED = re.compile(r"dropped-.*\.json")

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
    """A stage that the store holds, in its folder under `stages/`: its record, and whether its weights are there.

    `weights` and `files` in the record are those of the weights that are there now, if any are.
    """

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
        return weights_at(self.record)


def rows_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of what a stage was evaluated on at its end, as its record has them."""
    return record.get("metrics", {}).get("evaluations", [])


def weights_at(record: Mapping[str, Any]) -> str:
    """The folder of a record's weights within the stage's."""
    return record.get("weights", "weights")


class Stages:
    """The finished stages of one tree of files, and the evaluations below them and below base models."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.evaluations = Evaluations(files)

    def stage(self, node: Node) -> FinishedStage | None:
        """What the store holds of a stage, or None; a torn record is none, and is said. NewerSchema: nobody may make it."""
        return self._stage_in(_folder(node))

    def stage_in(self, folder: str) -> FinishedStage | None:
        """What a stage's folder holds, or None; a record that cannot be used is none, and is said."""
        record = self._usable_record(folder)
        return FinishedStage(folder, record) if record else None

    def stage_ids(self) -> set[str]:
        """The ids of all complete stages, in one listing."""
        records = self.files.among([f"stages/{name}/record.json" for name in self.stage_folders().values()])
        return {record.split("/")[1].rsplit("-", 1)[1] for record in records}

    def with_weights(self, ids: Iterable[str]) -> set[str]:
        """Those of these stages whose weights were kept."""
        folders = self.stage_folders()
        there = [name for name in ids if name in folders]
        records = self.files.read_each([folders[name] for name in there], self._usable_record)
        return {name for name, record in zip(there, records, strict=True) if record and record.get("files")}

    def stage_folders(self) -> dict[str, str]:
        """The folder of every stage by its id, in one listing; one without a record is not complete."""
        return {name.rsplit("-", 1)[1]: name for name in self.files.names("stages") if "-" in name}

    def stage_record(self, folder: str) -> dict[str, Any] | None:
        """The record in a stage's folder, with what became of its weights since; None where there is none.

        StoreError where it is torn, or of a schema that is not read here.
        """
        record = self._first_record(folder)
        return self._with_weights_now(folder, record) if record else None

    def stage_records(self) -> dict[str, dict[str, Any]]:
        """The records of all finished stages, by id; one that cannot be used is left out, and said."""
        folders = self.stage_folders()
        records = self.files.read_each(list(folders.values()), self._usable_record)
        return {name: record for name, record in zip(folders, records, strict=True) if record}

    def stage_table(self, folder: str, name: str) -> pa.Table | None:
        """`curve` or `predictions` of a stage; one that is not what was committed is none, and is said."""
        path, record = f"stages/{folder}", self._first_record(folder) or {}
        within = f"{record['commit']}/{name}.parquet" if record.get("commit") else f"{name}.parquet"
        known = record.get("digests", {}).get(f"{name}.parquet")
        content = self.files.read_bytes(f"{path}/{within}")
        try:
            if content is None and known is None:
                return None
            if content is not None and known in (None, digest(content)):
                return pq.read_table(pa.BufferReader(content))
        except pa.ArrowException:  # of earlier code, which took no digests
            pass
        _log.warning("%s/%s is missing or not what was committed; %s", path, within, MEND)
        return None

    def former_predictions(self, stage: FinishedStage) -> list[dict[str, Any]]:
        """What a stage answered when earlier code evaluated it, all sets in one table."""
        table = self.stage_table(stage.folder, "predictions")
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
        token: int = 0,
    ) -> FinishedStage:
        """Make `folder` (with `weights/`, or without) this stage's. What another committed first stays and is returned.

        Where this one has weights that the first has not, they become the stage's; evaluations that the first lacks are
        added to it. `token` is the number of the lease under which it was made. `predictions` are answers as earlier code
        kept them.
        """
        name, path = commit_name(token), _stage_path(node)
        _write_rows(folder / "curve.parquet", curve, None)
        if predictions:
            _write_rows(folder / "predictions.parquet", predictions, PREDICTIONS)
        if evaluations:
            write(folder / "evals", *evaluations)
        full = self._full(node, name, record, digests(folder), [one.id for one in evaluations])
        self.files.place(folder, f"{path}/{name}")
        content = (json.dumps(full, indent=1, allow_nan=False, default=str) + "\n").encode()
        while not self.files.create(f"{path}/record.json", content):
            first = self.stage(node)
            if first is not None:
                return self._beside(node, first, full, evaluations)
            self.set_aside(_folder(node), "its record is torn or missing")
        return FinishedStage(_folder(node), full)

    def _full(
        self, node: Node, commit: str, record: Mapping[str, Any], found: Mapping[str, str], evaluations: Sequence[str]
    ) -> dict[str, Any]:
        """A stage's record with the digests of all files that it stands for: `files` are its weights."""
        weights = {name: one for name, one in found.items() if name.startswith("weights/")}
        return {
            "id": node.id,
            "schema": SCHEMAS["stage"][-1],
            "config": node.config,
            **record,
            "commit": commit,
            "evaluations": list(evaluations),
            "weights": f"{commit}/weights",
            "files": weights,
            "digests": {name: one for name, one in found.items() if name not in weights},
        }

    def _beside(
        self, node: Node, first: FinishedStage, full: Mapping[str, Any], evaluations: Sequence[Evaluated]
    ) -> FinishedStage:
        """What a commit adds to the stage that another committed first; without weights to add, its folder goes."""
        path, commit = first.path, full["commit"]
        held = self.evaluations.made(path, [one.id for one in evaluations])
        self.evaluations.add(path, [one for one in evaluations if one.id not in held])
        if full["files"] and not first.has_weights:
            content = (json.dumps(full, indent=1, allow_nan=False, default=str) + "\n").encode()
            self.files.create(f"{path}/weights-{commit}.json", content)
        else:
            _log.info("stage %s was committed by another meanwhile; its bytes are used", node.id)
            self.files.remove(f"{path}/{commit}")
        return self.stage(node) or first

    def weights(self, stage: FinishedStage, into: Path) -> Path | None:
        """A local folder with the verified weights of a finished stage; None where they were dropped, or are altered.

        Altered weights are set aside: the stage's record, curve and answers stay. `into` is where a copy is kept that stands
        elsewhere.
        """
        if not stage.has_weights:
            return None
        wrong = _unfit(stage, folder := self._weights_folder(stage, into))
        if wrong and self.files.local is None:  # the copy may be an old one, or of another store
            shutil.rmtree(folder, ignore_errors=True)
            wrong = _unfit(stage, self._weights_folder(stage, into))
        if not wrong:
            return folder
        now = self.stage_in(stage.folder)
        if now and (now.weights, now.record["files"]) == (
            stage.weights,
            stage.record["files"],
        ):  # else dropped meanwhile
            self.set_weights_aside(stage, wrong)
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

    def set_weights_aside(self, stage: FinishedStage, reason: str) -> None:
        """Take altered weights out of use; whoever needs them makes them again."""
        _log.warning("%s/%s is not used and will be trained again: %s", stage.path, stage.weights, reason)
        self._drop(stage.folder, stage.weights, why=reason)

    def set_aside(self, folder: str, reason: str) -> None:
        """Take a torn stage out of use, its record first; on a local disk it stays, under another name.

        Commits without a record stay: one of them may be another's that is being made.
        """
        path, name = f"stages/{folder}", f"stages/.torn-{folder}-{uuid.uuid4().hex[:6]}"
        where = f"was moved to {name}" if self.files.local else "was removed"
        _log.warning("%s is not used and will be trained again: %s; it %s", path, reason, where)
        named = self._named_commits(folder)
        for one in ["record.json", *self.files.names(path)]:
            if _COMMIT.fullmatch(one) and one not in named:
                continue
            if self.files.local is not None:
                self.files.move(f"{path}/{one}", f"{name}/{one}")
            else:
                self.files.remove(f"{path}/{one}")

    def _named_commits(self, folder: str) -> set[str]:
        """The commits that a stage's records name; a torn record names none."""
        found = set()
        for name in self.files.names(f"stages/{folder}"):
            if name == "record.json" or _MADE_AGAIN.fullmatch(name):
                with contextlib.suppress(StoreError):
                    found.add((self.files.read_json(f"stages/{folder}/{name}") or {}).get("commit"))
        return {str(commit) for commit in found if commit}

    def weights_size(self, folder: str) -> int:
        """Bytes of the weights in a stage's folder."""
        record = self._usable_record(folder)
        return self.files.size(f"stages/{folder}/{weights_at(record)}") if record and record.get("files") else 0

    def drop_weights(self, folder: str) -> None:
        """Free the weights of the finished stage in a folder; its record, curve and answers stay."""
        while (record := self.stage_record(folder)) and record.get("files"):
            self._drop(folder, weights_at(record), why="nobody needed them")

    def drop_evaluations(self, folder: str, record: Mapping[str, Any], *, why: str) -> None:
        """Take out of use what a stage answered at its end: whoever needs it evaluates again."""
        self._drop(folder, f"{record['commit']}/evals", why=why)

    def weights_home(self, stage: FinishedStage) -> str:
        """The folder from which the names of a stage's weights are told."""
        return f"{stage.path}/{stage.weights.rpartition('/')[0]}" if stage.record.get("commit") else stage.path

    def _drop(self, folder: str, within: str, *, why: str) -> None:
        """A marker first, so that what is there is whole."""
        said = {"schema": SCHEMAS["stage"][-1], "gone": within, "why": why, "at": provenance.timestamp(time.time())}
        self.files.create(f"stages/{folder}/{dropped(within)}", (json.dumps(said, indent=1) + "\n").encode())
        self.files.remove(f"stages/{folder}/{within}")

    def leftovers(self) -> list[tuple[str, str, float]]:
        """What broken runs left: its path, what it was, and when it was last written (s)."""
        kinds = {".aside": "a commit that broke off", ".in-flight": "checkpoints of a stage", "stages": "a torn stage"}
        found = [
            (f"{home}/{name}", what)
            for home, what in kinds.items()
            for name in self.files.names(home, hidden=home == "stages")
        ]
        folders = list(self.stage_folders().values())
        found += [
            (path, "a commit that broke off") for each in self.files.read_each(folders, self._unnamed) for path in each
        ]
        return [(path, what, self.files.touched(path)) for path, what in found]

    def _unnamed(self, folder: str) -> list[str]:
        """Commits in a stage's folder that no record names, and weights that were to go and did not."""
        path = f"stages/{folder}"
        names = self.files.names(path)
        commits = [name for name in names if _COMMIT.fullmatch(name)]
        if not commits and not any(map(_DROPPED.fullmatch, names)):
            return []
        named = self._named_commits(folder)
        gone = [f"{name}/weights" for name in commits if name in named and dropped(f"{name}/weights") in names]
        gone += ["weights"] if dropped("weights") in names and "weights" in names else []
        unnamed = [name for name in commits if name not in named]
        return [f"{path}/{name}" for name in [*unnamed, *gone] if self.files.exists(f"{path}/{name}")]

    # ---- records

    def _stage_in(self, folder: str) -> FinishedStage | None:
        try:
            record = self.stage_record(folder)
        except NewerSchema:
            raise
        except StoreError as error:
            _log.warning("%s", error)
            return None
        return FinishedStage(folder, record) if record else None

    def _usable_record(self, folder: str) -> dict[str, Any] | None:
        try:
            return self.stage_record(folder)
        except StoreError as error:
            _log.warning("%s", error)
            return None

    def _first_record(self, folder: str) -> dict[str, Any] | None:
        """The record in a stage's folder as it was committed."""
        path = f"stages/{folder}/record.json"
        record = self.files.read_json(path)
        if record is None:
            return None
        checked(record, "stage", path)
        if problem := _misfit(folder, record):
            raise StoreError(f"{self.files.name}/{path}: not a stage's record: {problem}")
        return record

    def _with_weights_now(self, folder: str, record: dict[str, Any]) -> dict[str, Any]:
        """The record with the weights that are there: its own, or those that were made again after it lost them."""
        names = set(self.files.names(f"stages/{folder}"))
        if record.get("commit") and dropped(f"{record['commit']}/evals") in names:
            record = {**record, "evaluations": []}
        if record.get("files") and dropped(weights_at(record)) not in names:
            return record
        again = [
            name for name in names if _MADE_AGAIN.fullmatch(name) and dropped(f"{name[8:-5]}/weights") not in names
        ]
        for name in sorted(again, key=_token, reverse=True):
            made = self._made_again(folder, name)
            if made is not None:
                return {**record, "weights": made["weights"], "files": made["files"]}
        return {**record, "files": {}}

    def _made_again(self, folder: str, name: str) -> dict[str, Any] | None:
        path = f"stages/{folder}/{name}"
        try:
            made = self.files.read_json(path)
            checked(made or {}, "stage", path)
        except StoreError as error:
            _log.warning("%s", error)
            return None
        whole = made and isinstance(made.get("files"), dict) and made.get("weights") == f"{name[8:-5]}/weights"
        return made if whole else None

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
        with contextlib.suppress(FileNotFoundError):  # another rank was faster
            for old in list(home.iterdir()):
                if not old.name.isdigit() or int(old.name) <= token:
                    shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody of a higher token is at work
            home.rmdir()


def _folder(node: Node) -> str:
    return f"{node.slug}-{node.id}"


def _stage_path(node: Node) -> str:
    return f"stages/{_folder(node)}"


def _token(name: str) -> tuple[int, str]:
    """The number of the lease in the name of weights that were made again, to sort by."""
    return int(name.split("-")[1]), name


def _unfit(stage: FinishedStage, folder: Path) -> str | None:
    """What is wrong with weights; earlier code gave their names from the stage's folder on."""
    above = 1 if stage.record.get("commit") else len(PurePosixPath(stage.weights).parts)
    return altered(folder.parents[above - 1], stage.record["files"])


def _misfit(folder: str, record: Mapping[str, Any]) -> str | None:
    """What a stage's record says that no record of this folder can say."""
    if not isinstance(record.get("id"), str) or not folder.endswith(f"-{record['id']}"):
        return f"it is that of {record.get('id')!r}"
    kinds = {"config": dict, "metrics": dict, "files": dict, "digests": dict, "commit": str, "weights": str}
    wrong = [name for name, kind in kinds.items() if name in record and not isinstance(record[name], kind)]
    rows = rows_of(record) if not wrong else []
    if not wrong and not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        wrong = ["metrics.evaluations"]
    return f"its {wrong[0]} is damaged" if wrong else None


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema | None) -> None:
    names = schema.names if schema else list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    pq.write_table(pa.table(columns, schema=schema), path)
