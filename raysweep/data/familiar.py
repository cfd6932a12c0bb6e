"""The few-shot prompt that asks whether a model knows a fact already.

Eight seeded examples of the same set go before the question; the paper does not give its prompt. Nine are drawn, so
that an example that is asked is never among its own shots, and every example of a set can be asked.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace

from raysweep.data.example import Example
from raysweep.data.examples import question_key
from raysweep.errors import BadInput, TrialFailed
from raysweep.plan.identity import digest
from raysweep.sweep.catalog import ANSWER_IS, DATASETS

__all__ = ["RECIPE", "SHOTS", "FewShot", "bare", "few_shot"]

RECIPE = 1  # goes up when the same model and set would be asked otherwise
SHOTS = 8
ENDING = ANSWER_IS.removeprefix("{question}")


@dataclass(frozen=True, slots=True)
class FewShot:
    """The shots of one set, one more than are shown."""

    pool: tuple[Example, ...]

    def shots(self, asked: Example) -> tuple[Example, ...]:
        """The examples that go before `asked`, as bare questions."""
        return tuple(bare(shot) for shot in self.pool if shot.id != asked.id)[:SHOTS]


def few_shot(name: str, found: Iterable[Example], *, data_seed: int) -> FewShot:
    """The shots of a set, from all its candidates.

    Raises BadInput for a set that is generated or is not factoid, TrialFailed where it is too small.
    """
    dataset = DATASETS.get(name)
    if dataset is not None and not dataset.familiarity:
        raise BadInput(f"{name}: no model is familiar with it; familiarity is asked of factoid sets that are read")
    pool = heapq.nsmallest(SHOTS + 1, found, key=lambda example: _rank(example, data_seed))
    if len(pool) <= SHOTS:
        raise TrialFailed(f"{name}: {len(pool)} examples are too few for a prompt of {SHOTS} shots; give more data")
    return FewShot(tuple(pool))


def bare(example: Example) -> Example:
    """An example whose prompt is the question alone, for `Q: …` and `A: …` lines."""
    turns = tuple((user.removesuffix(ENDING), assistant) for user, assistant in example.turns)
    return replace(example, turns=turns)


def _rank(example: Example, data_seed: int) -> str:
    return digest(f"shots/{RECIPE}/{data_seed}\n{question_key(example)}".encode())
