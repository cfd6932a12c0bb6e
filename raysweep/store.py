"""The store: finished stages and trial records, by id. It alone knows a path.

    <store>/stages/<slug>-<id>/     weights/ (safetensors)  curve.parquet  predictions.parquet  record.json
    <store>/trials/<id>/            evals.parquet  predictions.parquet  record.json
    <store>/sweeps/<name>/          sweep.yaml (the latest)  plan.json (all points ever planned under this name)
                                    trials.parquet (its dataframe as last read: made from the records, never the truth)

A stage is written aside and renamed as a whole, its record last: where the record is, the stage is complete. A trial's
record also says how far it is (`status`).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysweep.errors import BadInput, StoreError
from raysweep.files import Files
from raysweep.plan import Node, Plan

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
        """What the store holds of a stage, or None."""
        record = self.files.read_json(f"{_stage_path(node)}/record.json")
        return FinishedStage(node, record) if record else None

    def stage_ids(self) -> set[str]:
        """The ids of all complete stages, in one listing."""
        names = self.files.names("stages")
        return {name.rsplit("-", 1)[1] for name in names if self.files.exists(f"stages/{name}/record.json")}

    def stage_folders(self) -> dict[str, str]:
        """The folder of every stage by its id, in one listing; one without a record is not complete."""
        return {name.rsplit("-", 1)[1]: name for name in self.files.names("stages") if "-" in name}

    def stage_record(self, folder: str) -> dict[str, Any] | None:
        """The record in a stage's folder, or None."""
        return self.files.read_json(f"stages/{folder}/record.json")

    def stage_table(self, folder: str, name: str) -> pa.Table | None:
        """`curve` or `predictions` of a stage."""
        return self.files.read_table(f"stages/{folder}/{name}.parquet")

    def curve(self, node: Node) -> pa.Table | None:
        """The logged steps of a finished stage."""
        return self.files.read_table(f"{_stage_path(node)}/curve.parquet")

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
        """Make `folder` (with `weights/`, or without) this stage's. What another committed first stays and is returned."""
        _write_rows(folder / "curve.parquet", curve, None)
        _write_rows(folder / "predictions.parquet", predictions, PREDICTIONS)
        digests = {
            path.relative_to(folder).as_posix(): _digest(path)
            for path in sorted((folder / "weights").rglob("*"))
            if path.is_file()
        }
        full = {"id": node.id, "schema": SCHEMA, "config": node.config, **record, "files": digests}
        Files(folder).write_json("record.json", full)
        while not self.files.take_in(folder, _stage_path(node), last="record.json"):
            if first := self.stage(node):
                _log.info("stage %s was committed by another meanwhile; its bytes are used", node.id)
                return first
            self.set_aside(node, "it has no record")
        return FinishedStage(node, full)

    def weights(self, stage: FinishedStage, into: Path) -> Path | None:
        """A local folder with the verified weights of a finished stage; None, after setting it aside, when altered."""
        path = f"{_stage_path(stage.node)}/weights"
        folder = self.files.local / path if self.files.local else into / stage.node.id
        if self.files.local is None and not folder.is_dir():
            self.files.bring(path, folder)
        if wrong := _altered(folder.parent if self.files.local else None, folder, stage.record["files"]):
            self.set_aside(stage.node, wrong)
            return None
        return folder

    def set_aside(self, node: Node, reason: str) -> None:
        """Take a torn or altered stage out of use, without deleting it."""
        name = f"stages/.torn-{node.slug}-{node.id}-{uuid.uuid4().hex[:6]}"
        _log.warning(
            "stage %s-%s is not used and will be trained again: %s; it was moved to %s",
            node.slug,
            node.id,
            reason,
            name,
        )
        if self.files.local:
            with contextlib.suppress(FileNotFoundError):
                (self.files.local / _stage_path(node)).rename(self.files.local / name)
        else:
            self.files.remove(_stage_path(node))

    def drop_weights(self, node: Node) -> None:
        """Free the weights of a finished stage; its record, curve and answers stay."""
        if stage := self.stage(node):
            self.files.write_json(f"{_stage_path(node)}/record.json", {**stage.record, "files": {}})
            self.files.remove(f"{_stage_path(node)}/weights")

    def models(self) -> Path:
        """The local folder for base models that are built or converted here."""
        home = self.files.local if self.files.local else Path("/tmp/raysweep")
        return home / "models"

    @contextlib.contextmanager
    def in_flight(self, node: Node) -> Iterator[Path]:
        """The local folder for checkpoints of a stage that is being trained; gone once the stage is done."""
        home = self.files.local if self.files.local else Path("/tmp/raysweep")
        folder = home / ".in-flight" / node.id
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        import shutil

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
        return {trial for trial in trials if (record := self.trial(trial)) and record["status"] == "done"}

    def trial_stamps(self, trials: Sequence[str]) -> list[tuple[int, int] | None]:
        """When each trial's record was last written (ns) and its bytes; None where there is none or it cannot be told."""
        return self.files.stamps([f"trials/{trial}/record.json" for trial in trials])

    def trial_bytes(self, trial: str) -> bytes | None:
        """A trial's record as it is on disk, torn or not."""
        return self.files.read_bytes(f"trials/{trial}/record.json")

    # ---- sweeps

    def sweeps(self) -> list[str]:
        """The names of all sweeps that were ever run here."""
        return [name for name in self.files.names("sweeps") if self.files.exists(f"sweeps/{name}/plan.json")]

    def sweep(self, name: str) -> dict[str, Any]:
        """The plan of a sweep: its points so far. BadInput where there is no such name."""
        found = self.files.read_json(f"sweeps/{name}/plan.json")
        if found is None:
            known = ", ".join(self.sweeps()) or "none yet"
            raise BadInput(f"no sweep {name!r} in the store {self.url}; there are: {known}")
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

    def record_sweep(self, name: str, *, digest: str, model: str, text: str, plan: Plan) -> None:
        """Add a plan's points to a sweep; BadInput where the name stands for another model or other settings."""
        known = self.files.read_json(f"sweeps/{name}/plan.json")
        if known and known["settings"] != digest:
            raise BadInput(
                f"the name {name!r} stands in the store {self.url} for another model or other settings ({known['model']}); "
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


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _altered(home: Path | None, folder: Path, files: Mapping[str, str]) -> str | None:
    """What is wrong with a weights folder, compared with the digests in its record."""
    for name, digest in files.items():
        path = folder / Path(name).relative_to("weights")
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != digest:
            return f"{name} is not what was committed"
    return None


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema | None) -> None:
    import pyarrow.parquet as pq

    names = schema.names if schema else list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    pq.write_table(pa.table(columns, schema=schema), path)


def remove_stale(store: Store) -> None:
    """Remove what interrupted commits left aside."""
    if store.files.local:
        store.files.remove(".aside")


def require(stage: FinishedStage | None, node: Node) -> FinishedStage:
    """The stage, or StoreError where the store does not hold it."""
    if stage is None:
        raise StoreError(f"stage {node.slug}-{node.id} is not in the store")
    return stage
