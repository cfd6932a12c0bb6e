"""Bootstrap intervals of cells, from the answers of their trials: seeds and examples are both drawn again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from raysweep.errors import BadInput
from raysweep.report.cells import Cell
from raysweep.report.statistics import bootstrap

__all__ = ["Intervals"]

_SEED = 0  # of the bootstrap: the same records give the same intervals
_OF = {
    "retention": ("a", "last"),
    "accuracy_a1": ("a", "first"),
    "accuracy_b": ("b", "first"),
    "accuracy_c": ("c", "first"),
}


class Intervals:
    """Scores of every trial on the set that a measure is about, one array for each trial, in percent."""

    def __init__(self, predictions: pd.DataFrame, value: str) -> None:
        """Raises BadInput for measures that are not a mean over examples."""
        if value not in _OF:
            raise BadInput(f"there is no interval over examples for {value!r}; there is for {', '.join(_OF)}")
        letter, which = _OF[value]
        rows = predictions[predictions["of"] == letter]
        stages = rows.groupby("trial")["stage"]
        rows = rows[rows["stage"] == stages.transform("max" if which == "last" else "min")]
        self._scores = {
            trial: 100.0 * group.groupby("example")["score"].mean() for trial, group in rows.groupby("trial")
        }

    def add(self, cell: Cell, trials: Iterable[str]) -> Cell:
        """The cell with the interval of its mean; as it is where its trials were not asked the same examples."""
        found = [self._scores[trial] for trial in dict.fromkeys(trials) if trial in self._scores]
        if cell.mean is None or len(found) != cell.n:
            return cell
        together = pd.concat(found, axis=1, join="inner").to_numpy().T
        if not together.size:
            return cell
        interval = bootstrap(np.asarray(together), seed=_SEED)
        return replace(cell, low=interval.low, high=interval.high)
