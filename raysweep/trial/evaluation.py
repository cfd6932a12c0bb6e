"""Evaluate a model: the questions of a planned evaluation, and the rows that its answers become.

What a trial evaluates is planned (`plan.evaluator`): D_A and a stage's own set after every stage, all earlier stages' own
sets where the matrix says so, and further sets. What an evaluation gave is kept under its id; a trial's tables say besides
where in its chain it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysweep.data.encoding import Question
from raysweep.data.example import Example
from raysweep.data.scoring import SCORERS
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.plan.evaluator import Evaluation
from raysweep.store.evaluations import Evaluated
from raysweep.trial.inputs import Inputs

__all__ = [
    "PLACE",
    "Asked",
    "EarlierAnswers",
    "evaluate",
    "formerly",
    "kept_from_before",
    "prepared",
    "trial_predictions",
    "trial_row",
]

PLACE = ("stage", "of", "set")  # where an evaluation stands in its trial


@dataclass(frozen=True, slots=True)
class Asked:
    """An evaluation with its examples, as they are asked."""

    evaluation: Evaluation
    examples: Sequence[Example]
    questions: Sequence[Question]
    digest: str


def prepared(evaluations: Iterable[Evaluation], inputs: Inputs) -> list[Asked]:
    """Evaluations with their questions; call it before an engine is open, since familiarity may need one of its own."""
    found = []
    for evaluation in evaluations:
        selected, questions = inputs.asked(evaluation)
        found.append(Asked(evaluation, selected.examples, questions, selected.digest))
    return found


class EarlierAnswers:
    """What was answered before to the same examples, of which the latest answer is the likeliest to come again."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[str, str]] = {}

    def add(self, made: Iterable[Evaluated]) -> None:
        """Take note of an evaluation's answers; one of earlier code may not say of which examples they are."""
        for one in made:
            if examples := one.row.get("digest"):
                texts = self._texts.setdefault(examples, {})
                texts |= {row["example"]: row["prediction"] for row in one.predictions}

    def to(self, asked: Asked) -> Mapping[str, str]:
        """Texts by example id."""
        return self._texts.get(asked.digest, {})


def evaluate(engine: Engine, asked: Asked, tokenizer: Any, *, earlier: Mapping[str, str]) -> Evaluated:
    """Ask the model in `engine` and score what it says; every rank calls and gets all answers. `earlier` ones to the same
    questions save time, and change no answer."""
    planned = asked.evaluation
    scorer = SCORERS[planned.scorer]
    given = answer(
        engine,
        tokenizer,
        asked.questions,
        scorer=scorer,
        max_new_tokens=planned.max_new_tokens,
        answers=planned.answers,
        earlier=earlier,
    )
    predictions = [
        {
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
    row = {
        "set": planned.label,
        "of": planned.of,
        "scorer": scorer.name,
        "scorer_version": scorer.version,
        "max_new_tokens": planned.max_new_tokens,
        "accuracy": 100.0 * sum(one.score for one in given) / len(given) if given else None,
        "n": len(given),
        "proven": sum(one.proven for one in given),
        "digest": asked.digest,
        "config": dict(planned.config),
    }
    return Evaluated(planned.id, row, predictions)


def trial_row(planned: Evaluation, made: Evaluated) -> dict[str, Any]:
    """What came out of an evaluation, as a row of one of the trials that it belongs to."""
    told = ("scorer", "scorer_version", "accuracy", "n", "proven")
    return {
        **_place(planned),
        **{name: made.row[name] for name in told},
        "evaluation": planned.id,
        "max_new_tokens": planned.max_new_tokens,
    }


def trial_predictions(planned: Evaluation, made: Evaluated) -> list[Mapping[str, Any]]:
    """The answers of an evaluation, as rows of one of the trials that it belongs to."""
    return [{**row, **_place(planned)} for row in made.predictions]


def formerly(name: str, row: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> Evaluated:
    """An evaluation that earlier code made, from its row and the table of all answers of that stage."""
    own = [
        {key: value for key, value in one.items() if key not in PLACE}
        for one in predictions
        if (one["of"], one["set"]) == (row["of"], row["set"])
    ]
    return Evaluated(name, row, own)


def kept_from_before(
    evals: pa.Table | None,
    predictions: pa.Table | None,
    now: Sequence[Mapping[str, Any]],
    *,
    named: Sequence[Mapping[str, Any]] | None,
    further: Sequence[str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a trial was evaluated on before, and is not asked for `now`: rows of its evaluations and of its answers.

    `named` are the evaluations that its record named; a record of earlier code names none, but the `further` sets.
    """
    taken = {_at(row) for row in now}
    if named is None:
        before = [row for row in _listed(evals) if row["of"] is None and row["set"] in further]
    else:
        ids = {(_at(one), one["id"]) for one in named}
        before = [row for row in _listed(evals) if (_at(row), row.get("evaluation")) in ids]
    rows = [{"evaluation": None, "max_new_tokens": None, **row} for row in before if _at(row) not in taken]
    places = {_at(row) for row in rows}
    return rows, [row for row in _listed(predictions) if _at(row) in places] if rows else []


def _listed(table: pa.Table | None) -> list[dict[str, Any]]:
    return table.to_pylist() if table is not None else []


def _at(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in PLACE)


def _place(planned: Evaluation) -> dict[str, Any]:
    return dict(zip(PLACE, planned.place, strict=True))
