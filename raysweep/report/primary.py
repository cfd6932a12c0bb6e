"""The contrast that a sweep is run for: whether it was fixed before the run, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raysweep.errors import BadInput
from raysweep.plan.plan import Plan, contrast_digest
from raysweep.report.compare import compare_mixers, is_of
from raysweep.report.frame import SweepSource
from raysweep.report.long import predictions_of
from raysweep.report.points import Points
from raysweep.store.store import Store
from raysweep.sweep.spec import Contrast

__all__ = ["Primary", "Said", "primaries_of", "primary_rows", "report_primary"]

Said = Mapping[str, Contrast | None]  # what files say now, by their sweep's name


@dataclass(frozen=True, slots=True)
class Primary:
    """A sweep's contrast (None where it was taken away), whether it was fixed before any trial was done, and how it came
    about."""

    sweep: str
    contrast: Contrast | None
    fixed: bool
    history: str


def primaries_of(sources: Sequence[SweepSource], store: Store, *, said: Said) -> list[Primary]:
    """The contrasts of these sweeps, those that have or had one: as the file says where it is named, else as last run."""
    there = set(store.sweeps())
    names = dict.fromkeys(name for source in sources for name in _names(source))
    found = []
    for name in names:
        recorded = store.sweep(name).get("primary", []) if name in there else []
        contrast = said[name] if name in said else _last(recorded)
        if contrast or recorded:
            found.append(_primary(name, contrast, recorded))
    return found


def primary_rows(primary: Primary, predictions: pd.DataFrame, *, margin: float | None) -> pd.DataFrame:
    """The rows of `compare_mixers` that a contrast is about: a family of their own only if it was fixed before the run."""
    if primary.contrast is None:
        raise BadInput(f"{primary.sweep} has no primary contrast; {primary.history}")
    where, given = primary.contrast.where, margin if margin is not None else primary.contrast.margin
    rows = compare_mixers(predictions, *primary.contrast.mixers, margin=given, primary=where if primary.fixed else None)
    chosen = rows[[is_of(row, where) for row in rows.to_dict(orient="records")]]
    return chosen.drop(columns="primary", errors="ignore").reset_index(drop=True)


def report_primary(sources: Sequence[SweepSource], store: Store, *, said: Said) -> list[str]:
    """What stands before any other result: each contrast, what came out, and how it was fixed."""
    lines = []
    for primary in primaries_of(sources, store, said=said):
        own = [source for source in sources if primary.sweep in _names(source)]
        lines += [*_results(primary, own, store), f"primary: {primary.history}"]
    return lines


def _results(primary: Primary, sources: Sequence[SweepSource], store: Store) -> list[str]:
    if primary.contrast is None:
        return []
    about = _described(primary.contrast)
    predictions = predictions_of(sources, store)
    try:
        rows = primary_rows(primary, predictions[predictions["sweep"] == primary.sweep], margin=None)
    except BadInput:
        return [f"primary: {about}: nothing finished yet"]
    return [f"primary: {about}: {_told(row, len(rows))}" for row in rows.to_dict(orient="records")]


def _told(row: Mapping[str, Any], of: int) -> str:
    axes = ", ".join(f"{name} {row[name]}" for name in list(row)[: list(row).index("n_examples")])
    where = f"{axes}: " if of > 1 else ""
    if pd.isna(row["p"]):
        return f"{where}{row['difference']:+.1f} points; {row['verdict']}"
    interval = f"[{row['low']:.1f}, {row['high']:.1f}]"
    told = f"{where}{row['difference']:+.1f} points {interval}, p {row['p_corrected']:.2g}, {row['n_seeds']} seeds"
    return f"{told}: {row['verdict']}"


def _primary(name: str, contrast: Contrast | None, recorded: Sequence[Mapping[str, Any]]) -> Primary:
    digest = contrast_digest(contrast) if contrast else None
    if not recorded:
        return Primary(name, contrast, False, f"({digest}) is not in the record of {name}: nothing was run with it")
    last = recorded[-1]
    parts = [_step(step, place, recorded) for place, step in enumerate(recorded)]
    if digest != last["hash"]:
        parts.append(f"changed in the file to {digest or 'none'} since it was last run")
    fixed = digest == last["hash"] and last["done"] == 0 and digest is not None
    return Primary(name, contrast, fixed, "; ".join(parts))


def _step(step: Mapping[str, Any], place: int, recorded: Sequence[Mapping[str, Any]]) -> str:
    """How one entry of the record came about; a change says what stood there before."""
    when = "before any trial was done" if step["done"] == 0 else f"after {step['done']} trials were done"
    if place == 0:
        return f"({step['hash']}) fixed {step['at'][:10]}, {when}"
    before = recorded[place - 1]["contrast"]
    was = _described(Contrast.model_validate(before)) if before else "none"
    return f"changed to {step['hash'] or 'none'} {step['at'][:10]}, {when}; it was {was}"


def _last(recorded: Sequence[Mapping[str, Any]]) -> Contrast | None:
    last = recorded[-1]["contrast"] if recorded else None
    return Contrast.model_validate(last) if last else None


def _described(contrast: Contrast) -> str:
    where = ", ".join(f"{axis} {value}" for axis, value in contrast.where.items())
    return f"{contrast.mixers[1]} − {contrast.mixers[0]}" + (f" ({where})" if where else "")


def _names(source: SweepSource) -> list[str]:
    match source:
        case Plan():
            return list(dict.fromkeys(point.sweep for point in source.points))
        case Points(sweep=name) | str(name):
            return [name]
