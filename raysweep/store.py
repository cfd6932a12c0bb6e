"""The store: finished stages and trial records, by id. It alone knows a path.

    <store>/stages/<slug>-<id>/     weights/ (safetensors)  curve.parquet  predictions.parquet  record.json
    <store>/trials/<id>/            evals.parquet  predictions.parquet  record.json
    <store>/sweeps/<name>/          sweep.yaml (the latest)  plan.json (all points ever planned under this name)
                                    status.json (the last sign of life of its run: for people, never the truth)
                                    trials.parquet (its dataframe as last read: made from the records, never the truth)

A stage is written aside and renamed as a whole, its record last: where the record is, the stage is complete. Where
there is no rename (a bucket), `weights/` holds a folder for each commit, and the record, written last, says which one
counts. A trial's record also says how far it is (`status`).
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.errors import BadInput, StoreError
from raysweep.files import Files
from raysweep.intact import altered, digests
from raysweep.plan import Node, Plan
from raysweep.spec import NAME_PATTERN

__all__ = ["EVALS", "PREDICTIONS", "SCHEMA", "FinishedStage", "Store"]

SCHEMA = 1  # of the records; raised when a field changes its meaning

EVALS = pa.schema(
    [
        ("stage", pa.int32()),
        ("of", pa.string()),
        ("set", pa.string()),
        ("scorer", pa.string()),
        ("scorer_version", pa.int32()),
        ("accuracy", pa.float64()),
        ("n", pa.int32()),
        ("proven", pa.int32()),
    ]
)
PREDICTIONS = pa.schema(
    [
        ("stage", pa.int32()),
        ("of", pa.string()),
        ("set", pa.string()),
        ("example", pa.string()),
        ("prompt", pa.string()),
        ("target", pa.string()),
        ("prediction", pa.string()),
        ("score", pa.float64()),
    ]
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinishedStage:
    """A stage that the store holds: its record, and whether its weights are there."""

    node: Node
    record: Mapping[str, Any]

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
        """The sets that were asked at its end."""
        return {row["set"] for row in self.record["metrics"]["evaluations"]}

    def adds_to(self, other: FinishedStage) -> bool:
        """Whether this has what another training of the same stage lacks: weights, or answers."""
        return (self.has_weights and not other.has_weights) or self.evaluated > other.evaluated


class Store:
    """A store at a local folder or a URL."""

    def __init__(self, url: str | Path) -> None:
        self.files = Files(url)
        self.url = self.files.url

    @property
    def absolute_url(self) -> str:
        """The store's place as a worker in another folder must name it."""
        return str(self.files.local) if self.files.local else self.url

    # ---- stages

    def stage(self, node: Node) -> FinishedStage | None:
        """What the store holds of a stage, or None; a torn record is none, and is said."""
        try:
            record = self.files.read_json(f"{_stage_path(node)}/record.json")
        except StoreError as error:
            _log.warning("%s", error)
            return None
        return FinishedStage(node, record) if record else None

    def stage_ids(self) -> set[str]:
        """The ids of all complete stages, in one listing."""
        records = self.files.among([f"stages/{name}/record.json" for name in self.stage_folders().values()])
        return {record.split("/")[1].rsplit("-", 1)[1] for record in records}

    def stage_folders(self) -> dict[str, str]:
        """The folder of every stage by its id, in one listing; one without a record is not complete."""
        return {name.rsplit("-", 1)[1]: name for name in self.files.names("stages") if "-" in name}

    def stage_record(self, folder: str) -> dict[str, Any] | None:
        """The record in a stage's folder, or None."""
        return self.files.read_json(f"stages/{folder}/record.json")

    def stage_table(self, folder: str, name: str) -> pa.Table | None:
        """`curve` or `predictions` of a stage."""
        return self.files.read_table(f"stages/{folder}/{name}.parquet")

    def stage_predictions(self, node: Node) -> pa.Table | None:
        """What a finished stage answered when it was evaluated."""
        return self.files.read_table(f"{_stage_path(node)}/predictions.parquet")

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
        predictions: Sequence[Mapping[str, Any]],
    ) -> FinishedStage:
        """Make `folder` (with `weights/`, or without) this stage's. What another committed first stays and is returned.

        Only where this one has weights or answers that the first has not, it takes the first one's place.
        """
        _write_rows(folder / "curve.parquet", curve, None)
        _write_rows(folder / "predictions.parquet", predictions, PREDICTIONS)
        weights = "weights" if self.files.local else _gather(folder)
        files = {"weights": weights, "files": digests(folder, "weights")}
        full = {"id": node.id, "schema": SCHEMA, "config": node.config, **record, **files}
        finished = FinishedStage(node, full)
        Files(folder).write_json("record.json", full)
        while not self.files.take_in(folder, _stage_path(node), last="record.json"):
            first = self.stage(node)
            if first is None:
                self.set_aside(node, "its record is torn or missing")
            elif not finished.adds_to(first):
                _log.info("stage %s was committed by another meanwhile; its bytes are used", node.id)
                return first
            else:
                self.files.put(folder, _stage_path(node), last="record.json")
                break
        return finished

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
        now = self.stage(stage.node)
        if now and now.record["files"] == stage.record["files"]:  # else they were dropped meanwhile, or made anew
            self.set_aside(stage.node, wrong)
        return None

    def _weights_folder(self, stage: FinishedStage, into: Path) -> Path:
        path = f"{_stage_path(stage.node)}/{stage.weights}"
        if self.files.local is not None:
            return self.files.local / path
        folder = into / stage.node.id / stage.weights
        if not folder.is_dir():
            with contextlib.suppress(FileNotFoundError):  # then they are found to be missing
                self.files.bring(path, folder)
        return folder

    def _unfit(self, stage: FinishedStage, folder: Path) -> str | None:
        return altered(folder.parents[len(PurePosixPath(stage.weights).parts) - 1], stage.record["files"])

    def set_aside(self, node: Node, reason: str) -> None:
        """Take a torn or altered stage out of use; on a local disk it stays, under another name."""
        path, name = _stage_path(node), f"stages/.torn-{node.slug}-{node.id}-{uuid.uuid4().hex[:6]}"
        where = f"was moved to {name}" if self.files.local else "was removed"
        _log.warning("%s is not used and will be trained again: %s; it %s", path, reason, where)
        if self.files.local:
            with contextlib.suppress(FileNotFoundError):
                (self.files.local / path).rename(self.files.local / name)
        else:
            self.files.remove(f"{path}/record.json")
            self.files.remove(path)

    def drop_weights(self, node: Node) -> None:
        """Free the weights of a finished stage; its record, curve and answers stay."""
        if (stage := self.stage(node)) and stage.has_weights:
            self.files.write_json(f"{_stage_path(node)}/record.json", {**stage.record, "files": {}})
            self.files.remove(f"{_stage_path(node)}/weights")

    def models(self) -> Path:
        """The local folder for base models that are built or converted here."""
        return self.files.beside / "models"

    @contextlib.contextmanager
    def in_flight(self, node: Node) -> Iterator[Path]:
        """The local folder for checkpoints of a stage that is being trained; gone once the stage is done.

        It stays when the block raises, so that the next attempt goes on from there.
        """
        folder = self.files.beside / ".in-flight" / node.id
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)

    # ---- what models know

    def familiarity(self, key: str) -> dict[str, bool]:
        """Which facts a model was found to know, by example id; nothing where it was not asked yet."""
        return self.files.read_json(f"familiarity/{key}.json") or {}

    def write_familiarity(self, key: str, known: Mapping[str, bool]) -> None:
        """Keep what a model knows."""
        self.files.write_json(f"familiarity/{key}.json", known)

    # ---- trials

    def trial(self, trial: str) -> dict[str, Any] | None:
        """The record of a trial, or None where it never started."""
        return self.files.read_json(f"trials/{trial}/record.json")

    def write_trial(self, trial: str, record: Mapping[str, Any]) -> None:
        """Write how far a trial is."""
        self.files.write_json(f"trials/{trial}/record.json", {"id": trial, "schema": SCHEMA, **record})

    def commit_trial(
        self,
        trial: str,
        record: Mapping[str, Any],
        *,
        evals: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write a finished trial: its tables, then the record that makes them count."""
        self.files.write_rows(f"trials/{trial}/evals.parquet", evals, EVALS)
        self.files.write_rows(f"trials/{trial}/predictions.parquet", predictions, PREDICTIONS)
        self.write_trial(trial, record)

    def trial_table(self, trial: str, name: str) -> pa.Table | None:
        """`evals` or `predictions` of a finished trial."""
        return self.files.read_table(f"trials/{trial}/{name}.parquet")

    def done(self, trials: Iterable[str]) -> set[str]:
        """Those of these trials whose record says done."""
        there = set(self.files.names("trials"))
        return {trial for trial in trials if trial in there and (self.trial(trial) or {}).get("status") == "done"}

    def trial_stamps(self, trials: Sequence[str]) -> list[tuple[int, int] | None]:
        """When each trial's record was last written (ns) and its bytes; None where there is none or it cannot be told."""
        return self.files.stamps([f"trials/{trial}/record.json" for trial in trials])

    def trial_bytes(self, trial: str) -> bytes | None:
        """A trial's record as it is on disk, torn or not."""
        return self.files.read_bytes(f"trials/{trial}/record.json")

    # ---- sweeps

    def sweeps(self) -> list[str]:
        """The names of all sweeps that were ever run here."""
        plans = self.files.among([f"sweeps/{name}/plan.json" for name in self.files.names("sweeps")])
        return [plan.split("/")[1] for plan in plans]

    def sweep(self, name: str) -> dict[str, Any]:
        """The plan of a sweep: its points so far. BadInput where there is no such name."""
        found = self.files.read_json(f"sweeps/{name}/plan.json") if re.fullmatch(NAME_PATTERN, name) else None
        if found is None:
            known = ", ".join(self.sweeps()) or "none yet"
            raise BadInput(f"no sweep {name!r} in the store {self.files.name}; there are: {known}")
        return found

    def sweep_stamp(self, name: str) -> tuple[int, int] | None:
        """When a sweep's plan was last written (ns) and its bytes."""
        return self.files.stamps([f"sweeps/{name}/plan.json"])[0]

    def sweep_text(self, name: str) -> str:
        """The latest sweep file that was run under this name."""
        return (self.files.read_bytes(f"sweeps/{name}/sweep.yaml") or b"").decode()

    def compacted(self, name: str) -> bytes | None:
        """The dataframe of a sweep as it was last written, in parquet: a copy of the records, for speed and for others."""
        return self.files.read_bytes(f"sweeps/{name}/trials.parquet")

    def write_compacted(self, name: str, content: bytes) -> None:
        """Replace the compacted dataframe of a sweep."""
        self.files.write_bytes(f"sweeps/{name}/trials.parquet", content)

    def live(self, name: str) -> dict[str, Any] | None:
        """What the last run of a sweep said of how far it is, with the time when it said so; None where it never did."""
        return self.files.read_json(f"sweeps/{name}/status.json")

    def write_live(self, name: str, said: Mapping[str, Any]) -> None:
        """Say how far a run of a sweep is."""
        self.files.write_json(f"sweeps/{name}/status.json", said)

    def record_sweep(self, name: str, *, digest: str, model: str, text: str, plan: Plan) -> None:
        """Add a plan's points to a sweep; BadInput where the name stands for another model or other settings."""
        known = self.files.read_json(f"sweeps/{name}/plan.json")
        if known and known["settings"] != digest:
            raise BadInput(
                f"the name {name!r} stands in the store {self.files.name} for another model or other settings ({known['model']}); "
                f"give this sweep another name, such as {name}-2, or use another --store"
            )
        points = {_key(point): point for point in (known or {}).get("points", [])}
        for point in plan.points:
            if point.sweep == name:
                row = {
                    "values": dict(point.values),
                    "trial": point.trial,
                    "stages": list(plan.trials[point.trial].stages),
                }
                points[_key(row)] = row
        self.files.write_bytes(f"sweeps/{name}/sweep.yaml", text.encode())
        self.files.write_json(
            f"sweeps/{name}/plan.json",
            {"name": name, "schema": SCHEMA, "settings": digest, "model": model, "points": list(points.values())},
        )


def _key(point: Mapping[str, Any]) -> str:
    return repr(sorted((axis, repr(value)) for axis, value in point["values"].items()))


def _stage_path(node: Node) -> str:
    return f"stages/{node.slug}-{node.id}"


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
