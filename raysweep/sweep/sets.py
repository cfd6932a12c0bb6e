"""The sets that a sweep may name, the catalog's and its own, as far as a grid must know them."""

from __future__ import annotations

from dataclasses import dataclass

from raysweep.errors import BadInput
from raysweep.sweep.catalog import DATASETS, ID, NONE, Dataset
from raysweep.sweep.file import Places
from raysweep.sweep.spec import Evaluate, OwnSet, Sweep

__all__ = ["FAMILIAR", "FAMILIAR_TOKENS", "SetKind", "kinds_of"]

FAMILIAR = "familiar/"  # before a set's name: what the base model knows of it, as an evaluation set
FAMILIAR_TOKENS = 20  # an answer's most, where a model is asked few-shot what it knows


@dataclass(frozen=True, slots=True)
class SetKind:
    """A set: whether it is of facts, whether familiarity selects from it, its scorer, and how many it can have."""

    factoid: bool
    familiarity: bool
    scorer: str | None
    size: int | None


def kinds_of(sweep: Sweep, places: Places) -> dict[str, SetKind]:
    """All sets by name; BadInput where a sweep gives a built-in name to a set of its own."""
    kinds = {
        name: SetKind(
            factoid=one.factoid, familiarity=one.familiarity, scorer=_scorer(one, sweep.evaluate), size=one.size
        )
        for name, one in DATASETS.items()
    }
    for name, own in sweep.sets.items():
        if name in kinds or name in (ID, NONE):
            raise BadInput(f"{places.of(('sets', name))}: sets: {name!r} is a built-in name; give your set another")
        kinds[name] = _own_kind(own)
    return kinds


def _scorer(one: Dataset, evaluate: Evaluate) -> str | None:
    """A set's scorer, or the released code's where a sweep switches that on."""
    switched = evaluate.empty == "right" if one.factoid else evaluate.tasks == "whole_text"
    return one.released_scorer if switched and one.released_scorer else one.scorer


def _own_kind(own: OwnSet) -> SetKind:
    return SetKind(factoid=own.factoid, familiarity=own.factoid, scorer=own.scorer, size=None)
