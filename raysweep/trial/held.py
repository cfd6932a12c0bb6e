"""What a store holds of the evaluations of a model, so that nobody asks the model again.

An evaluation may be there under its own id; in a stage's record, where earlier code made it; or as answers that an earlier
version of its scorer scored. Where those are whole they are scored again, without any model: another evaluation of the same
answers, kept beside the one that it was made of. A cut answer may have gone on to what the new version looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from raysweep.data.scoring import SCORERS
from raysweep.plan.evaluator import Evaluation
from raysweep.store.answered import Answered
from raysweep.store.evaluations import Evaluated, home_of_model, home_of_stage
from raysweep.store.store import FinishedStage, Store
from raysweep.trial.evaluation import formerly

__all__ = ["held_of_model", "held_of_stage", "is_rescorable"]

Made = Callable[[Sequence[Evaluation]], dict[str, Evaluated]]


def held_of_stage(
    store: Store, stage: FinishedStage, planned: Sequence[Evaluation], answered: Answered
) -> dict[str, Evaluated]:
    """Those of these evaluations of a stage that the store holds, with their answers; what is scored again is kept there."""
    return _held(store, home_of_stage(stage.folder), planned, lambda these: _made(store, stage, these, answered))


def held_of_model(store: Store, planned: Sequence[Evaluation]) -> dict[str, Evaluated]:
    """The same of a base model."""
    if not planned:
        return {}
    home = home_of_model(planned[0])
    return _held(store, home, planned, lambda these: store.evaluations.made(home, [one.id for one in these]))


def is_rescorable(store: Store, stage: FinishedStage, planned: Evaluation, answered: Answered) -> bool:
    """Whether the store holds whole answers to an evaluation of a stage, scored by an earlier version of its rule."""
    return _whole_answers(planned, lambda these: _made(store, stage, these, answered)) is not None


def _held(store: Store, home: str, planned: Sequence[Evaluation], made: Made) -> dict[str, Evaluated]:
    held = made(planned)
    again = {
        one.id: _scored_again(one, found)
        for one in planned
        if one.id not in held and (found := _whole_answers(one, made))
    }
    store.evaluations.add(home, again.values())
    return {**held, **again}


def _made(
    store: Store, stage: FinishedStage, planned: Sequence[Evaluation], answered: Answered
) -> dict[str, Evaluated]:
    held = store.evaluations.made(home_of_stage(stage.folder), [one.id for one in planned])
    former = {one.id: answered.former_row(stage.record, one) for one in planned if one.id not in held}
    if any(former.values()):
        rows = store.former_predictions(stage)
        held |= {one: formerly(one, row, rows) for one, row in former.items() if row}
    return held


def _whole_answers(planned: Evaluation, made: Made) -> Evaluated | None:
    """The answers to an evaluation as the latest earlier version of its scorer scored them, where all are whole."""
    for before in planned.earlier_versions():
        found = made([before]).get(before.id)
        if found is not None and found.predictions and _all_whole(found.predictions):
            return found
    return None


def _all_whole(predictions: Iterable[Any]) -> bool:
    return all(row.get("whole") and row.get("golds") is not None for row in predictions)


def _scored_again(planned: Evaluation, before: Evaluated) -> Evaluated:
    score = SCORERS[planned.scorer].score
    predictions = [{**row, "score": score(row["prediction"], row["golds"])} for row in before.predictions]
    row = {
        **before.row,
        "scorer_version": planned.scorer_version,
        "max_new_tokens": planned.max_new_tokens,
        "accuracy": 100.0 * sum(one["score"] for one in predictions) / len(predictions),
        "config": dict(planned.config),
        "rescored_from": before.id,
    }
    row.pop("evaluation", None)
    return Evaluated(planned.id, row, predictions)
