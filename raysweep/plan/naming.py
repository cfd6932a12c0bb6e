"""How a person calls a trial: by its sets and by what varies in its sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["trial_name"]


def trial_name(point: Mapping[str, Any], *, varying: Iterable[str]) -> str:
    """The sets of a point in their order, then the values of the other axes that vary: `kvr → id random/none seed 0`."""
    sets = [str(point[axis]) for axis in point if axis.startswith("d_")]
    rest = [axis for axis in varying if not axis.startswith("d_")]
    named = [str(point[axis]) if axis == "mixer" else f"{axis} {point[axis]}" for axis in rest]
    return " ".join([" → ".join(sets), *named])
