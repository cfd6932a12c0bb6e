"""Whether a store holds what its records say: every file is compared with its digest, and what is wrong can be mended.

To mend is to take what is damaged out of use, so that the next run makes it again, or to put it together from what is
there: a trial's tables from the evaluations of its stages. What it costs is what the records say that it took.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raysweep.errors import BadInput, NewerSchema, StoreError
from raysweep.store.evaluations import Evaluated
from raysweep.store.prune import DAY, cost_of
from raysweep.store.schema import checked
from raysweep.store.store import Store
from raysweep.store.sweep_text import read_sweep_text
from raysweep.store.tables import altered_table
from raysweep.sweep.spec import NAME_PATTERN

__all__ = ["Damage", "Walk"]

PLACE = ("stage", "of", "set")  # where an evaluation stands in its trial
_AGAIN = "the next run makes it again"
_LATER = "use the raysweep that wrote it"


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong at a path of the store, what mends it, and what that costs in worker-seconds (None: nothing tells).

    `mend` does it; None where only a person can.
    """

    path: str
    what: str
    remedy: str
    seconds: float | None = 0.0
    mend: Callable[[], object] | None = field(default=None, repr=False, compare=False)


class Walk:
    """All that is to be looked at in a store, or in what some of its sweeps are made of; `names` are theirs."""

    def __init__(self, store: Store, names: Sequence[str] = ()) -> None:
        self._store = store
        folders = store.stage_folders()
        self.sweeps = list(names) or store.files.names("sweeps")
        if unknown := sorted(set(names) - set(store.sweeps())):
            store.sweep(unknown[0])  # says what there is
        plans = {name: plan for name, plan in _plans(store, self.sweeps).items() if names}
        points = [point for plan in plans.values() for point in plan["points"]]
        wanted = {stage for point in points for stage in point["stages"]}
        self.stages = [folder for stage, folder in folders.items() if not names or stage in wanted]
        self.trials = sorted({point["trial"] for point in points}) if names else store.files.names("trials")
        self.models = [] if names else store.files.names("models")
        self._whole = not names

    def __len__(self) -> int:
        return len(self.sweeps) + len(self.stages) + len(self.models) + len(self.trials) + self._whole

    def __iter__(self) -> Iterator[list[Damage]]:
        """The problems of one thing after the other, as many lists as there are things. Stages come before trials."""
        yield from map(self._sweep, self.sweeps)
        yield from map(self._stage, self.stages)
        yield from (self._evaluations(f"models/{name}", None) for name in self.models)
        yield from map(self._trial, self.trials)
        if self._whole:
            yield self._leftovers()

    # ---- sweeps

    def _sweep(self, name: str) -> list[Damage]:
        store, path = self._store, f"sweeps/{name}"
        if not re.fullmatch(NAME_PATTERN, name) or name not in store.sweeps():
            begins_again = any(".torn-" in one for one in store.files.below(path))  # once its file is run
            return (
                []
                if begins_again
                else [Damage(path, "it is no sweep: it has no plan", "remove it by hand, if nobody needs it")]
            )
        found = []
        for at, error in store.submissions.problems(name).items():
            again = "the next run of its file plans it again"
            newer = isinstance(error, NewerSchema)
            found.append(Damage(at, str(error), _LATER) if newer else self._aside(at, str(error), again))
        if not found:
            try:
                store.sweep(name)
            except StoreError as error:
                found.append(Damage(f"{path}/plan", str(error), "remove it by hand, and run its file again"))
        try:
            if store.files.exists(f"{path}/sweep.yaml"):
                read_sweep_text(store.sweep_text(name), name)
        except (BadInput, StoreError) as error:
            found.append(self._aside(f"{path}/sweep.yaml", str(error), "the next run of its file writes it again"))
        for at in store.live_files(name):
            try:
                checked(store.files.read_json(at) or {}, "status", at)
            except NewerSchema as error:
                found.append(Damage(at, str(error), _LATER))
            except StoreError as error:
                found.append(self._aside(at, str(error), "the next run writes it again"))
        return found

    def _aside(self, path: str, what: str, remedy: str) -> Damage:
        return Damage(path, what, f"is set aside; {remedy}", mend=lambda: self._store.files.set_aside(path))

    # ---- stages

    def _stage(self, folder: str) -> list[Damage]:
        store, path = self._store, f"stages/{folder}"
        try:
            record = store.stage_record(folder)
        except NewerSchema as error:
            return [Damage(path, str(error), _LATER)]
        except StoreError as error:
            torn = str(error)
            again = f"the stage is set aside; {_AGAIN}"
            return [Damage(path, torn, again, None, lambda: store.set_aside(folder, "its record is torn"))]
        if record is None:
            return []
        found = self._commit(folder, record)
        return found if found and "curve" in found[0].what else found + self._evaluations(path, record)

    def _commit(self, folder: str, record: Mapping[str, Any]) -> list[Damage]:
        store, path = self._store, f"stages/{folder}"
        stage = store.stage_in(folder)
        if stage is None:
            return []
        seconds = cost_of(record)
        others = record.get("digests", {})
        lost = [self._altered(f"{path}/{record.get('commit')}", {name: one}) for name, one in others.items()]
        besides = [what for what in lost if what and not what.startswith("evals/")]
        if besides:
            again = f"the stage is set aside; {_AGAIN}"
            what = f"curve and the like: {besides[0]}"
            return [Damage(path, what, again, seconds, lambda: store.set_aside(folder, besides[0]))]
        found = []
        if stage.has_weights and (what := self._altered(store.weights_home(stage), record["files"])):
            again = "the weights are set aside; who needs them trains them again"
            found.append(Damage(path, what, again, seconds, lambda: store.set_weights_aside(stage, what)))
        if any(lost) and not store.evaluations.are_dropped(path, record["commit"]):
            what = next(filter(None, lost))
            cost = 0.0 if stage.has_weights and not found else seconds
            again = f"what the stage answered is set aside; {_AGAIN}, from its weights if they are there"
            found.append(Damage(path, what, again, cost, lambda: store.drop_evaluations(folder, record, why=what)))
        return found

    def _altered(self, home: str, files: Mapping[str, str]) -> str | None:
        for name, digest in files.items():
            found = self._store.files.digest(f"{home}/{name}")
            if found != digest:
                return f"{name} is {'missing' if found is None else 'not what was committed'}"
        return None

    def _evaluations(self, home: str, record: Mapping[str, Any] | None) -> list[Damage]:
        cost = 0.0 if record is None or record.get("files") else cost_of(record)
        again = f"the evaluation is set aside; {_AGAIN}"
        return [
            Damage(path, what, again, cost, lambda path=path: self._store.evaluations.set_aside(path))
            for path, what in self._store.evaluations.problems(home).items()
        ]

    # ---- trials

    def _trial(self, trial: str) -> list[Damage]:
        store, path = self._store, f"trials/{trial}/record.json"
        try:
            usable = store.trial_record(trial)
        except NewerSchema as error:
            return [Damage(path, str(error), _LATER)]
        except StoreError as error:
            return [self._aside(path, str(error), f"{_AGAIN} from its stages")]
        if not usable or usable.get("status") != "done":
            return []
        what = altered_table(store.files, trial, usable)
        if what is None:
            return []
        return [Damage(path, what, *self._from_evaluations(trial, usable))]

    def _from_evaluations(self, trial: str, record: Mapping[str, Any]) -> tuple[str, float, Callable[[], object]]:
        """How a trial gets its tables back: from the evaluations of its stages, where they are all there."""
        store = self._store
        tables = assembled(store, record)
        if tables is None:
            cost = sum(cost_of(one) for one in self._to_train(record))
            undone = {name: value for name, value in record.items() if name != "tables"}
            mend = lambda: store.write_trial(trial, {**undone, "status": "stopped"})  # noqa: E731
            return "the trial counts as stopped; the next run evaluates what is missing", cost, mend
        evals, predictions = tables
        mend = lambda: store.commit_trial(trial, record, evals=evals, predictions=predictions)  # noqa: E731
        return "the tables are put together again from the evaluations of its stages", 0.0, mend

    def _to_train(self, record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The records of the trial's stages whose weights were not kept."""
        folders = self._store.stage_folders()
        found = [self._store.stage_in(folders[stage]) for stage in record.get("stages", ()) if stage in folders]
        return [stage.record for stage in found if stage and not stage.has_weights]

    def _leftovers(self) -> list[Damage]:
        before = time.time() - DAY
        return [
            Damage(
                path,
                f"{what}, untouched for a day",
                "it is removed",
                0.0,
                lambda path=path: self._store.files.remove(path),
            )
            for path, what, touched in self._store.leftovers()
            if touched < before
        ]


Tables = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def assembled(store: Store, record: Mapping[str, Any]) -> Tables | None:
    """A finished trial's rows and answers, from the evaluations that its record names; None where one is not to be had."""
    chain, folders = record.get("stages", []), store.stage_folders()
    rows: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    if not record.get("evaluations"):
        return None
    for one in record["evaluations"]:
        after = one["stage"]
        homes = [f"stages/{folders[chain[after - 1]]}"] if after and chain[after - 1] in folders else []
        if not after:
            homes = [f"models/{name}" for name in store.files.names("models")]
        made = _first_made(store, homes, one["id"])
        if made is None:
            return None
        place = {name: one[name] for name in PLACE}
        rows.append({**made.row, **place, "evaluation": one["id"]})
        predictions += [{**row, **place} for row in made.predictions]
    return rows, predictions


def _first_made(store: Store, homes: Sequence[str], name: str) -> Evaluated | None:
    for home in homes:
        if made := store.evaluations.made(home, [name]).get(name):
            return made
    return None


def _plans(store: Store, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    usable = store.usable_sweeps()
    return {name: usable[name] for name in names if name in usable}
