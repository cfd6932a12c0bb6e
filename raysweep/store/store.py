"""The store: finished stages and trial records, by id. It alone knows a path.

    <store>/stages/<slug>-<id>/     weights/ (safetensors)  curve.parquet  evals/  record.json
    <store>/models/<slug>-<digest>/ evals/ (of a base model)
    <store>/trials/<id>/            evals.parquet  predictions.parquet  record.json
    <store>/sweeps/<name>/          sweep.yaml (the latest)  plan.json (all points ever planned under this name,
                                    and the contrasts that it was run for)
                                    status.json (the last sign of life of its run: for people, never the truth)
                                    trials.parquet (its dataframe as last read: made from the records, never the truth)
    <store>/calibrations/<id>.json  what a machine takes for a few steps of a model: for estimates

What a stage or a trial is, its record says, and it is written last; a trial's also says how far it is (`status`), and
which evaluations it is made of: its tables repeat them, for those who read many trials. How stages are committed and kept
is in `stages`, how evaluations are in `evaluations`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysweep.errors import BadInput
from raysweep.plan.plan import Plan, contrast_digest
from raysweep.store.files import Files
from raysweep.store.provenance import timestamp
from raysweep.store.stages import PREDICTIONS, SCHEMA, FinishedStage, Stages
from raysweep.store.sweep_text import read_sweep_text
from raysweep.sweep.spec import NAME_PATTERN, Contrast

__all__ = ["EVALS", "PREDICTIONS", "SCHEMA", "UNKNOWN_LIMIT", "FinishedStage", "Store", "earlier_limit"]

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
        ("evaluation", pa.string()),
        ("max_new_tokens", pa.int32()),
    ]
)
UNKNOWN_LIMIT = "unknown"  # of a sweep that earlier code ran: its file cannot be read any more


class Store(Stages):
    """A store at a local folder or a URL."""

    def __init__(self, url: str | Path) -> None:
        super().__init__(Files(url))
        self.url = self.files.url

    @property
    def absolute_url(self) -> str:
        """The store's place as a worker in another folder must name it."""
        return str(self.files.local) if self.files.local else self.url

    # ---- what models know

    def familiarity(self, key: str) -> dict[str, bool]:
        """Which facts a model was found to know, by example id; nothing where it was not asked yet."""
        return self.files.read_json(f"familiarity/{key}.json") or {}

    def write_familiarity(self, key: str, known: Mapping[str, bool]) -> None:
        """Keep what a model knows."""
        self.files.write_json(f"familiarity/{key}.json", known)

    # ---- how fast machines are

    def calibrations(self) -> list[dict[str, Any]]:
        """What `plan --calibrate` has timed, one for each model, runtime and kind of machine."""
        found = (self.files.read_json(f"calibrations/{name}") for name in self.files.names("calibrations"))
        return [one for one in found if one]

    def write_calibration(self, name: str, told: Mapping[str, Any]) -> None:
        """Keep a calibration, in place of an earlier one of that name."""
        self.files.write_json(f"calibrations/{name}.json", {**told, "made": timestamp(time.time())})

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
        return set(self.finished(trials))

    def finished(self, trials: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The records of those of these trials whose record says done."""
        there = sorted(set(self.files.names("trials")).intersection(trials))
        records = zip(there, self.files.read_each(there, self.trial), strict=True)
        return {trial: record for trial, record in records if record and record.get("status") == "done"}

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

    def record_sweep(
        self, name: str, *, digest: str, model: str, text: str, plan: Plan, primary: Contrast | None = None
    ) -> None:
        """Add a plan's points to a sweep; BadInput where the name stands for another model or other settings.

        `primary` is the contrast that it is run for: what it was before stays in the record too.
        """
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
        earlier = earlier_limit(known, self.sweep_text(name)) if known else None
        record = {
            "name": name,
            "schema": SCHEMA,
            "settings": digest,
            "model": model,
            "points": list(points.values()),
            "evaluations": True,  # from here on, evaluations have ids
            "earlier": earlier,
        }
        if contrasts := self._contrasts(known or {}, primary, [point["trial"] for point in points.values()]):
            record["primary"] = contrasts
        self.files.write_json(f"sweeps/{name}/plan.json", record)
        self.files.write_bytes(f"sweeps/{name}/sweep.yaml", text.encode())

    def pins(self, name: str) -> dict[str, str]:
        """The hub commits that a sweep was first planned with, by repository."""
        return self.files.read_json(f"sweeps/{name}/pins.json") or {}

    def pin(self, name: str, commits: Mapping[str, str]) -> None:
        """Note commits for a sweep; what was noted before stays."""
        known = self.pins(name)
        if new := {key: commit for key, commit in commits.items() if key not in known}:
            self.files.write_json(f"sweeps/{name}/pins.json", {**new, **known})

    def _contrasts(
        self, known: Mapping[str, Any], primary: Contrast | None, trials: Sequence[str]
    ) -> list[dict[str, Any]]:
        """All contrasts that a sweep was ever said to be run for, each with the number of trials that were done then."""
        said = list(known.get("primary", []))
        digest = contrast_digest(primary) if primary else None
        if digest == (said[-1]["hash"] if said else None):
            return said
        contrast = primary.model_dump(mode="json") if primary else None
        return [
            *said,
            {"hash": digest, "contrast": contrast, "at": timestamp(time.time()), "done": len(self.finished(trials))},
        ]


def earlier_limit(plan: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    """The stages that a sweep named when earlier code ran it, and the token limit that its file gave (None: none).

    Noted in the plan at the sweep's first run by code that gives evaluations ids; before, its file says it. A sweep that
    was never run by earlier code has none.
    """
    if plan.get("evaluations"):
        return plan.get("earlier")
    stages = sorted({stage for point in plan["points"] for stage in point["stages"]})
    try:
        evaluate = read_sweep_text(text, plan["name"]).get("evaluate")
    except BadInput:
        return {"stages": stages, "max_new_tokens": UNKNOWN_LIMIT}
    return {"stages": stages, "max_new_tokens": evaluate.get("max_new_tokens") if isinstance(evaluate, dict) else None}


def _key(point: Mapping[str, Any]) -> str:
    return repr(sorted((axis, repr(value)) for axis, value in point["values"].items()))
