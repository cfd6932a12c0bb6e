"""Intervals of cells: seeds are the unit, and the facts give a bound where all seeds are alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pandas as pd

from raysweep.report.cells import Cell
from raysweep.report.statistics import MIN_SEEDS, difference_interval, seed_interval, too_few

__all__ = ["Intervals"]

_UNEVEN = "no interval where seeds have unequal numbers of trials"
_NO_FACTS = "no interval where all seeds are alike and no facts bound the value"
_OF_A = ("retention", "forgetting")  # stages of D_A


class Intervals:
    """Gives cells their intervals; it knows how many facts stand behind each accuracy of each trial."""

    def __init__(self, evals: pd.DataFrame) -> None:
        """`evals` are rows as `raysweep.evals` gives them."""
        about = evals["of"].astype(object).where(evals["of"].notna(), evals["set"].astype(object))
        self._facts: Mapping[tuple[str, str], int] = {
            (trial, of): int(n) for trial, of, n in zip(evals["trial"], about, evals["n"], strict=True)
        }

    def add(self, cell: Cell, trials: Iterable[str], value: str) -> Cell:
        """The cell with the interval of its mean over seeds, or with the reason why it has none."""
        if cell.mean is None:
            return cell
        if cell.uneven:
            return replace(cell, basis=_UNEVEN)
        if len(cell.by_seed) < MIN_SEEDS:
            return replace(cell, basis=too_few(len(cell.by_seed)))
        interval = difference_interval if value == "forgetting" else seed_interval
        found = interval(cell.by_seed, facts=self._fewest(trials, value))
        if found is None:
            return replace(cell, basis=_NO_FACTS)
        return replace(cell, low=found.low, high=found.high, basis=found.basis)

    def _fewest(self, trials: Iterable[str], value: str) -> int | None:
        """How many facts the value is an accuracy of, the fewest of any trial; None where it is none."""
        about = _about(value)
        counts = {self._facts[trial, about] for trial in trials if about and (trial, about) in self._facts}
        return min(counts, default=None)


def _about(value: str) -> str | None:
    """What an accuracy is about: the letter of a stage's set, or the name of a set beyond the chain."""
    if value in _OF_A or value.startswith(("retention_", "accuracy_a")):
        return "a"
    if found := re.fullmatch(r"accuracy_([b-z])", value):
        return found[1]
    if value.startswith("familiar_"):
        return value.replace("_", "/", 1)
    return value.removeprefix("asked_") if value.startswith("asked_") else None
