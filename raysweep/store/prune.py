"""What a store could do without: weights that no pending trial starts from, what broken runs and leases left behind.

Weights of a sweep that says `keep: all` are asked for, whether or not a trial is pending.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raysweep.errors import BadInput
from raysweep.forecast.cost import spent
from raysweep.store.leases import left_by_leases
from raysweep.store.stages import weights_at
from raysweep.store.store import Store
from raysweep.store.sweep_text import read_sweep_text

__all__ = ["Spare", "cost_of", "keeps_all", "needed", "prune", "spare"]

DAY = 86_400.0  # seconds: what was touched since may belong to a run that is under way

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Spare:
    """A folder that could go: its bytes, why, and the worker-seconds that it would take to train it again."""

    path: str
    bytes: int
    why: str
    seconds: float = 0.0
    weights_of: str | None = None


def spare(store: Store, *, untouched_for: float = DAY) -> list[Spare]:
    """Everything that could go: weights first, then leftovers that nobody has touched for so many seconds."""
    wanted, folders = needed(store), store.stage_folders()
    found = [
        Spare(
            f"stages/{folders[name]}/{weights_at(record)}",
            store.weights_size(folders[name]),
            UNUSED,
            cost_of(record),
            folders[name],
        )
        for name, record in store.stage_records().items()
        if record.get("files") and name not in wanted
    ]
    before = time.time() - untouched_for
    found += [
        Spare(path, store.files.size(path), what) for path, what, touched in store.leftovers() if touched < before
    ]
    return found + [Spare(path, size, LEASED) for path, size in left_by_leases(store.files, before=before).items()]


def cost_of(record: Mapping[str, Any]) -> float:
    """Worker-seconds that a stage took; nothing where its record does not tell."""
    try:
        return spent(record)
    except (KeyError, TypeError, ValueError):
        return 0.0


LEASED = "leases of runs that are over"
UNUSED = "weights that no pending trial starts from"


def prune(store: Store, spares: Iterable[Spare]) -> int:
    """Remove these; the bytes that are free now."""
    freed = 0
    for one in spares:
        if one.weights_of is not None:
            store.drop_weights(one.weights_of)
        else:
            store.files.remove(one.path)
        freed += one.bytes
    return freed


def needed(store: Store, *, but: str | None = None) -> set[str]:
    """The stages whose weights somebody asks for, under any name `but` one.

    Those of all trials that were ever planned in this store and are not done; all, where the sweep says `keep: all`. Where a
    plan is damaged, nobody knows what its sweep needs: stages that no other plan names stay.
    """
    wanted: set[str] = set()
    plans = store.usable_sweeps()
    if len(plans) < len(store.sweeps()):
        named = {stage for plan in plans.values() for point in plan["points"] for stage in point["stages"]}
        wanted |= store.stage_folders().keys() - named
    for name, plan in plans.items():
        if name == but:
            continue
        points = plan["points"]
        done = set() if keeps_all(store, name) else store.done({point["trial"] for point in points})
        wanted.update(stage for point in points if point["trial"] not in done for stage in point["stages"])
    return wanted


def keeps_all(store: Store, name: str) -> bool:
    """Whether a sweep, as it was last run, says `keep: all`; one that cannot be read is taken to, and that is said."""
    try:
        return read_sweep_text(store.sweep_text(name), name).get("keep") == "all"
    except BadInput as error:
        _log.warning("%s; the weights of the sweep stay", error)
        return True
