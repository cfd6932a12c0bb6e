"""What a trained stage is asked, and the rows that its answers become.

D_A is asked after every stage, a stage's own set after that stage, and the sets under `evaluate` after the last one;
each where its set has a scorer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysweep.data.encoding import Question
from raysweep.data.example import Example
from raysweep.data.scoring import SCORERS
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.plan.plan import Node
from raysweep.sweep.catalog import DATASETS
from raysweep.sweep.sets import FAMILIAR
from raysweep.sweep.spec import Evaluate, OwnSet
from raysweep.sweep.stage import Stage
from raysweep.trial.familiarity import MAX_NEW_TOKENS
from raysweep.trial.inputs import Inputs

__all__ = ["Answered", "Asked", "ask", "label", "to_ask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One set to ask: its label in the tables, the letter of the stage whose set it is (None: beyond the chain), how it
    is scored, and its examples as they are asked."""

    label: str
    of: str | None
    scorer: str
    examples: Sequence[Example]
    questions: Sequence[Question]
    max_new_tokens: int | None


@dataclass(frozen=True, slots=True)
class Answered:
    """One row for the evaluation and one for each example."""

    evaluation: dict[str, Any]
    predictions: list[dict[str, Any]]


def to_ask(
    chain: Sequence[Node], index: int, inputs: Inputs, *, evaluate: Evaluate, sets: Mapping[str, OwnSet]
) -> list[Asked]:
    """What is asked after stage `index`; call it before an engine is open, since familiarity may need one of its own."""
    stages = [node.stage for node in chain[: index + 1]]
    trained = {stage.letter: stage for stage in (stages[0], stages[-1])}
    asked = list(_of_chain(trained.values(), inputs, evaluate, sets))
    if index == len(chain) - 1:
        asked += [_beyond(name, stages[-1], inputs, evaluate, sets) for name in evaluate.sets]
    return asked


def ask(engine: Engine, asked: Asked, tokenizer: Any, *, stage: int) -> Answered:
    """Ask one set of the model in `engine`, after stage number `stage`; every rank calls and gets all answers."""
    scorer = SCORERS[asked.scorer]
    given = answer(engine, tokenizer, asked.questions, scorer=scorer, max_new_tokens=asked.max_new_tokens)
    common = {"stage": stage, "of": asked.of, "set": asked.label}
    predictions = [
        {
            **common,
            "example": one.id,
            "prompt": example.prompt,
            "target": example.target,
            "golds": list(question.golds),
            "prediction": one.text,
            "whole": one.whole,
            "score": one.score,
        }
        for one, question, example in zip(given, asked.questions, asked.examples, strict=True)
    ]
    evaluation = {
        **common,
        "scorer": scorer.name,
        "scorer_version": scorer.version,
        "accuracy": 100.0 * sum(one.score for one in given) / len(given) if given else None,
        "n": len(given),
        "proven": sum(one.proven for one in given),
    }
    return Answered(evaluation, predictions)


def label(stage: Stage) -> str:
    """A stage's set as the grid calls it."""
    return "id" if stage.selection.skip else stage.selection.set


def _of_chain(
    stages: Iterator[Stage], inputs: Inputs, evaluate: Evaluate, sets: Mapping[str, OwnSet]
) -> Iterator[Asked]:
    for stage in stages:
        if scorer := _scorer(stage.selection.set, sets):
            yield Asked(
                label=label(stage),
                of=stage.letter,
                scorer=scorer,
                examples=inputs.own(stage).examples,
                questions=inputs.questions(stage),
                max_new_tokens=evaluate.max_new_tokens,
            )


def _beyond(name: str, stage: Stage, inputs: Inputs, evaluate: Evaluate, sets: Mapping[str, OwnSet]) -> Asked:
    familiar = name.startswith(FAMILIAR)
    examples, questions = inputs.extra(name, stage)
    return Asked(
        label=name,
        of=None,
        scorer="exact" if familiar else _scorer(name, sets) or "exact",
        examples=examples,
        questions=questions,
        max_new_tokens=MAX_NEW_TOKENS if familiar else evaluate.max_new_tokens,
    )


def _scorer(name: str, sets: Mapping[str, OwnSet]) -> str | None:
    return sets[name].scorer if name in sets else DATASETS[name].scorer
