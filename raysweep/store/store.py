"""The store: finished stages and trial records, by id. It alone knows a path.

    <store>/stages/<slug>-<id>/     record.json  <commit>/ weights/ (safetensors)  curve.parquet  evals/
    <store>/models/<slug>-<digest>/ evals/ (of a base model)
    <store>/trials/<id>/            record.json  <commit>/ evals.parquet  predictions.parquet
    <store>/sweeps/<name>/          sweep.yaml (the latest)  plan/ (all points ever planned under this name, and the contrasts
                                    that it was run for: a file for each submission that added something)
                                    pins/ (a hub commit in each file)
                                    status/<run>.json (its last sign of life: for people, never the truth)
                                    trials.parquet (its dataframe as last read: made from the records, never the truth)
    <store>/calibrations/<id>.json  what a machine takes for a few steps of a model: for estimates

What a stage or a trial is, its record says, and it is written last; a trial's also says how far it is (`status`), and
which evaluations it is made of: its tables repeat them, for those who read many trials. How stages are committed and kept
is in `stages`, how evaluations are in `evaluations`.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysweep.errors import BadInput, NewerSchema, StoreError
from raysweep.plan.plan import Plan, contrast_digest
from raysweep.store.files import Files
from raysweep.store.provenance import timestamp
from raysweep.store.schema import checked, is_trial, is_whole_plan
from raysweep.store.stages import PREDICTIONS, SCHEMA, FinishedStage, Stages
from raysweep.store.submissions import Submissions, point_key
from raysweep.store.sweep_text import read_sweep_text
from raysweep.store.tables import lost_tables, read_table, write_tables
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
_log = logging.getLogger(__name__)

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
        """The record of a trial; None where it never started, or where its record is torn, which is said.

        NewerSchema where a later raysweep wrote it: nobody may overwrite it.
        """
        try:
            return self.trial_record(trial)
        except NewerSchema:
            raise
        except StoreError as error:
            _log.warning("%s", error)
            return None

    def trial_record(self, trial: str) -> dict[str, Any] | None:
        """The same; StoreError where it is torn."""
        path = f"trials/{trial}/record.json"
        record = self.files.read_json(path)
        if record is not None and not is_trial(checked(record, "trial", path)):
            raise StoreError(f"{self.files.name}/{path}: not a trial's record; remove the file and run again")
        return record

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
        with self.files.aside("trial") as folder:
            tables = write_tables(
                folder / "tables", {"evals": (evals, EVALS), "predictions": (predictions, PREDICTIONS)}
            )
            self.files.place(folder / "tables", f"trials/{trial}/{tables['folder']}")
        self.write_trial(trial, {**record, "tables": tables})

    def trial_table(self, trial: str, name: str) -> pa.Table | None:
        """`evals` or `predictions` of a finished trial; one that is not what was committed is none, and is said."""
        try:
            record = self.trial(trial)
        except NewerSchema as error:
            _log.warning("%s", error)
            return None
        return read_table(self.files, trial, record, name) if record else None

    def done(self, trials: Iterable[str]) -> set[str]:
        """Those of these trials whose record says done, and whose tables are there."""
        return set(self.finished(trials))

    def finished(self, trials: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The records of those of these trials whose record says done, and whose tables are there.

        One that has lost a table is not done, and that is said: it is put together again from its evaluations.
        """
        there = sorted(set(self.files.names("trials")).intersection(trials))
        records = zip(there, self.files.read_each(there, self._usable_trial), strict=True)
        done = {trial: record for trial, record in records if record and record.get("status") == "done"}
        for trial, problem in lost_tables(self.files, done).items():
            _log.warning(
                "trial %s is not done: %s; running it again puts it together from what is stored", trial, problem
            )
            del done[trial]
        return done

    def refuse_newer(self, trials: Iterable[str]) -> None:
        """NewerSchema where a later raysweep wrote the record of one of these trials, which a run would overwrite."""
        there = sorted(set(self.files.names("trials")).intersection(trials))
        self.files.read_each(there, self.trial)

    def _usable_trial(self, trial: str) -> dict[str, Any] | None:
        try:
            return self.trial(trial)
        except NewerSchema as error:
            _log.warning("%s", error)
            return None

    def trial_stamps(self, trials: Sequence[str]) -> list[tuple[int, int] | None]:
        """When each trial's record was last written (ns) and its bytes; None where there is none or it cannot be told."""
        return self.files.stamps([f"trials/{trial}/record.json" for trial in trials])

    def trial_bytes(self, trial: str) -> bytes | None:
        """A trial's record as it is on disk, torn or not."""
        return self.files.read_bytes(f"trials/{trial}/record.json")

    # ---- sweeps

    def sweeps(self) -> list[str]:
        """The names of all sweeps that were ever run here; whatever else lies among them is passed over."""
        return self.submissions.sweeps()

    def usable_sweeps(self) -> dict[str, dict[str, Any]]:
        """The plans of all sweeps by name; a damaged one harms its own sweep alone: it is left out, and said."""
        found = {}
        for name in self.sweeps():
            try:
                found[name] = self.sweep(name)
            except StoreError as error:
                _log.warning("%s", error)
        return found

    def sweep(self, name: str) -> dict[str, Any]:
        """The plan of a sweep: its points so far. BadInput where there is no such name, StoreError where it is damaged."""
        found = self.submissions.union(name) if re.fullmatch(NAME_PATTERN, name) else None
        if found is None:
            known = ", ".join(self.sweeps()) or "none yet"
            raise BadInput(f"no sweep {name!r} in the store {self.files.name}; there are: {known}")
        is_whole_plan(found, f"{self.files.name}/sweeps/{name}/plan")
        return found

    def sweep_stamp(self, name: str) -> tuple[int, int] | None:
        """When a sweep's plan was last written (ns) and its bytes."""
        return self.submissions.stamp(name)

    def sweep_text(self, name: str) -> str:
        """The latest sweep file that was run under this name; bytes that are no text stay in it, as what YAML refuses."""
        return (self.files.read_bytes(f"sweeps/{name}/sweep.yaml") or b"").decode(errors="surrogateescape")

    def compacted(self, name: str) -> bytes | None:
        """The dataframe of a sweep as it was last written, in parquet: a copy of the records, for speed and for others."""
        return self.files.read_bytes(f"sweeps/{name}/trials.parquet")

    def write_compacted(self, name: str, content: bytes) -> None:
        """Replace the compacted dataframe of a sweep."""
        self.files.write_bytes(f"sweeps/{name}/trials.parquet", content)

    def live(self, name: str) -> dict[str, Any] | None:
        """What the last run of a sweep said of how far it is, with the time when it said so; None where it never did.

        One that is under way comes before one that has ended since. What is damaged is passed over, and said.
        """
        said = [one for one in self.files.read_each(self.live_files(name), self._live) if one]
        return max(said, key=lambda one: (one.get("state") == "running", str(one.get("updated"))), default=None)

    def write_live(self, name: str, said: Mapping[str, Any], *, run: str) -> None:
        """Say how far a run of a sweep is. What runs that have ended said goes when a new one says its first."""
        path = f"sweeps/{name}/status/{run}.json"
        if run not in self._told:
            self._told.add(run)
            for other in self.live_files(name)[1:]:
                if other != path and (self._live(other) or {}).get("state") != "running":
                    self.files.remove(other)
        self.files.write_json(path, {"schema": SCHEMA, **said})

    def live_files(self, name: str) -> list[str]:
        """Where the runs of a sweep say how far they are; the first is that of earlier code, and may be missing."""
        home = f"sweeps/{name}/status"
        return [f"{home}.json", *(f"{home}/{file}" for file in self.files.names(home) if file.endswith(".json"))]

    def _live(self, path: str) -> dict[str, Any] | None:
        try:
            said = checked(self.files.read_json(path) or {}, "status", path)
            return {name: value for name, value in said.items() if name != "schema"} or None
        except StoreError as error:  # for people, never the truth
            _log.warning("%s; it is passed over: the records say how far the sweep is", error)
            return None

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
