"""What a base model knows already: facts are asked once, few-shot, and the answers kept in the store.

A fact is familiar when the model answers it, greedily, in at most 20 new tokens, as one of its answers says (METHOD,
"Unfamiliar"). Facts are asked in batches, in a seeded order, only until enough are found, so an interrupted search goes
on where it was. Every rank makes the same calls and gets the same answers.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raysweep.data.encoding import Question, few_shot_question
from raysweep.data.example import Example
from raysweep.data.examples import candidates, question_key
from raysweep.data.models import identity
from raysweep.data.scoring import SCORERS
from raysweep.data.sources import Source
from raysweep.errors import BadInput, TrialFailed
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.learn.ranks import connect
from raysweep.plan.identity import digest
from raysweep.plan.plan import familiarity_id
from raysweep.store.store import Store
from raysweep.sweep.catalog import ANSWER_IS, DATASETS
from raysweep.sweep.sets import FAMILIAR_TOKENS
from raysweep.sweep.spec import Model, Runtime
from raysweep.sweep.stage import Stage

__all__ = ["Familiarity", "FewShot", "MAX_NEW_TOKENS", "RECIPE", "SHOTS", "bare", "few_shot"]

MAX_NEW_TOKENS = FAMILIAR_TOKENS

_log = logging.getLogger(__name__)
RECIPE = 1  # goes up when the same model and set would be asked otherwise
SHOTS = 8
ENDING = ANSWER_IS.removeprefix("{question}")


class Familiarity:
    """What one model knows, as far as it was asked."""

    def __init__(self, model: Model, base: Path, tokenizer: Any, store: Store) -> None:
        self._model = model
        self._base = base
        self._tokenizer = tokenizer
        self._store = store
        self._shots: dict[tuple[str, int], FewShot] = {}

    def unfamiliar(self, source: Source, examples: Sequence[Example], *, stage: Stage, runtime: Runtime) -> list[bool]:
        """Whether the model does not know each example; those that nobody asked yet are asked now."""
        key = familiarity_id(identity(self._model.name, self._model.revision), source.identity, stage=stage)
        ranks = connect()
        known: dict[str, bool] = ranks.first(lambda: self._store.familiarity(key))
        new = [example for example in examples if example.id not in known]
        if new:
            known |= self._ask(source, new, stage, runtime)
            ranks.first(lambda: self._store.write_familiarity(key, known))
        return [not known[example.id] for example in examples]

    def questions(
        self,
        source: Source,
        examples: Sequence[Example],
        *,
        data_seed: int,
        form: Literal["plain", "chat"] = "plain",
    ) -> tuple[Question, ...]:
        """Examples as they are asked: eight shots of the same set, then the question."""
        shots = self._few_shot(source, data_seed)
        return tuple(
            few_shot_question(example, shots.shots(example), self._tokenizer, form=form) for example in examples
        )

    def _ask(self, source: Source, examples: list[Example], stage: Stage, runtime: Runtime) -> dict[str, bool]:
        _log.info("asking the model about %d facts of %s", len(examples), source.name)
        questions = self.questions(source, examples, data_seed=stage.selection.data_seed)
        engine = Engine(
            self._base,
            training=stage.training,
            total_steps=1,
            runtime=runtime,
            for_training=False,
            trust_remote_code=self._model.trust_remote_code,
        )
        with engine:
            given = answer(engine, self._tokenizer, questions, scorer=SCORERS["exact"], max_new_tokens=MAX_NEW_TOKENS)
        return {one.id: one.score == 1.0 for one in given}

    def _few_shot(self, source: Source, data_seed: int) -> FewShot:
        key = (source.name, data_seed)
        if key not in self._shots:
            self._shots[key] = few_shot(source.name, candidates(source, data_seed=data_seed), data_seed=data_seed)
        return self._shots[key]


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
