"""The store: finished stages and trial records, by id. It alone knows a path.

    <store>/stages/<slug>-<id>/     weights/ (safetensors)  curve.parquet  evals/  record.json
    <store>/models/<slug>-<digest>/ evals/ (of a base model)
    <store>/trials/<id>/            evals.parquet  predictions.parquet  record.json
    <store>/sweeps/<name>/          sweep.yaml (the latest)  plan/ (all points ever planned under this name, and the contrasts
                                    that it was run for: a file for each submission that added something)
                                    pins/ (a hub commit in each file)
                                    status/<run>.json (its last sign of life: for people, never the truth)
                                    trials.parquet (its dataframe as last read: made from the records, never the truth)

What a stage or a trial is, its record says, and it is written last; a trial's also says how far it is (`status`), and
which evaluations it is made of: its tables repeat them, for those who read many trials. How stages are committed and kept
is in `stages`, how evaluations are in `evaluations`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysweep.errors import BadInput, StoreError
from raysweep.plan.plan import Plan, contrast_digest
from raysweep.store.files import Files
from raysweep.store.provenance import timestamp
from raysweep.store.stages import PREDICTIONS, SCHEMA, FinishedStage, Stages
from raysweep.store.submissions import Submissions, point_key
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
        self.submissions = Submissions(self.files)
        self._told: set[str] = set()  # the runs whose status was written here
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
        return self.submissions.sweeps()

    def sweep(self, name: str) -> dict[str, Any]:
        """The plan of a sweep: its points so far. BadInput where there is no such name."""
        found = self.submissions.union(name) if re.fullmatch(NAME_PATTERN, name) else None
        if found is None:
            known = ", ".join(self.sweeps()) or "none yet"
            raise BadInput(f"no sweep {name!r} in the store {self.files.name}; there are: {known}")
        return found

    def sweep_stamp(self, name: str) -> tuple[int, int] | None:
        """When a sweep's plan was last written (ns) and its bytes."""
        return self.submissions.stamp(name)

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
        """What the last run of a sweep said of how far it is, with the time when it said so; None where it never did.

        One that is under way comes before one that has ended since.
        """
        paths = [f"sweeps/{name}/status.json", *self._live_files(name)]
        said = [one for one in self.files.read_each(paths, self._live) if one]
        return max(said, key=lambda one: (one.get("state") == "running", str(one.get("updated"))), default=None)

    def write_live(self, name: str, said: Mapping[str, Any], *, run: str) -> None:
        """Say how far a run of a sweep is. What runs that have ended said goes when a new one says its first."""
        path = f"sweeps/{name}/status/{run}.json"
        if run not in self._told:
            self._told.add(run)
            for other in self._live_files(name):
                if other != path and (self._live(other) or {}).get("state") != "running":
                    self.files.remove(other)
        self.files.write_json(path, said)

    def _live_files(self, name: str) -> list[str]:
        return [f"sweeps/{name}/status/{file}" for file in self.files.names(f"sweeps/{name}/status")]

    def _live(self, path: str) -> dict[str, Any] | None:
        try:
            return self.files.read_json(path) if path.endswith(".json") else None
        except StoreError:
            return None  # for people, never the truth

    def record_sweep(
        self, name: str, *, digest: str, model: str, text: str, plan: Plan, primary: Contrast | None = None
    ) -> None:
        """Add a plan's points to a sweep; BadInput where the name stands for another model or other settings.

        `primary` is the contrast that it is run for: what it was before stays in the record too.
        """
        points = [
            {"values": dict(point.values), "trial": point.trial, "stages": list(plan.trials[point.trial].stages)}
            for point in plan.points
            if point.sweep == name
        ]

        def submission(known: Mapping[str, Any] | None) -> dict[str, Any] | None:
            """What is new, over what is known; None where nothing is."""
            if known and known["settings"] != digest:
                raise BadInput(
                    f"the name {name!r} stands in the store {self.files.name} for another model or other settings "
                    f"({known['model']}); give this sweep another name, such as {name}-2, or use another --store"
                )
            there = {point_key(point): point for point in (known or {}).get("points", [])}
            new = [point for point in points if there.get(point_key(point)) != point]
            trials = [point["trial"] for point in {**there, **{point_key(point): point for point in new}}.values()]
            contrasts = self._contrasts(known or {}, primary, trials)
            if known and known.get("evaluations") and not new and not contrasts:
                return None
            record = {"name": name, "schema": SCHEMA, "settings": digest, "model": model, "points": new}
            if not (known and known.get("evaluations")):
                record |= {
                    "evaluations": True,  # from here on, evaluations have ids
                    "earlier": earlier_limit(known, self.sweep_text(name)) if known else None,
                }
            return {**record, "primary": contrasts} if contrasts else record

        self.submissions.add(name, submission)
        self.files.write_bytes(f"sweeps/{name}/sweep.yaml", text.encode())

    def pins(self, name: str) -> dict[str, str]:
        """The hub commits that a sweep was first planned with, by repository."""
        home = f"sweeps/{name}/pins"
        files = [f"{home}/{file}" for file in self.files.names(home) if file.endswith(".json")]
        pins = {
            key: one for pin in self.files.read_each(files, self.files.read_json) for key, one in (pin or {}).items()
        }
        return pins | (self.files.read_json(f"{home}.json") or {})

    def pin(self, name: str, commits: Mapping[str, str]) -> None:
        """Note commits for a sweep, each repository's in a file of its own; what was noted before stays."""
        known = self.pins(name)
        for key, commit in commits.items():
            if key not in known:
                file = sha256(key.encode()).hexdigest()[:16]
                self.files.create(f"sweeps/{name}/pins/{file}.json", json.dumps({key: commit}).encode())

    def _contrasts(
        self, known: Mapping[str, Any], primary: Contrast | None, trials: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The contrast that a sweep is run for from now on, with the number of trials that were done then; none as before."""
        said = list(known.get("primary", []))
        digest = contrast_digest(primary) if primary else None
        if digest == (said[-1]["hash"] if said else None):
            return []
        contrast = primary.model_dump(mode="json") if primary else None
        return [
            {"hash": digest, "contrast": contrast, "at": timestamp(time.time()), "done": len(self.finished(trials))}
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
