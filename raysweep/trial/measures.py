"""The numbers of a trial, from its evaluations and the records of its stages: DESIGN's columns, named once, here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysweep.store.store import FinishedStage

__all__ = ["of_trial"]

_OF_STAGE = ("steps", "epochs", "loss", "seconds", "tokens")


def of_trial(
    stages: Sequence[tuple[FinishedStage, bool]], rows: Sequence[Mapping[str, Any]], *, letters: Sequence[str]
) -> dict[str, Any]:
    """Columns of a trial whose stages are done; each stage comes with whether it was reused, `rows` are the evaluations.

    `accuracy_a1` is θ_A on D_A, `retention` θ_last on D_A, `forgetting` their difference in points, `accuracy_<letter>`
    a later stage's model on its own set. All accuracies in [0, 100]; None where there is nothing to score.
    """
    own = {(row["stage"], row["of"]): row["accuracy"] for row in rows if row["of"]}
    metrics: dict[str, Any] = {}
    if letters[0] == "a":
        metrics |= _of_memory([own.get((position, "a")) for position in range(1, len(letters) + 1)])
    for position, letter in enumerate(letters, start=1):
        if letter != "a":
            metrics[f"accuracy_{letter}"] = own.get((position, letter))
    for position, ((stage, reused), letter) in enumerate(zip(stages, letters, strict=True), start=1):
        metrics |= _of_stage(stage.record, position, reused, own.get((position, letter)))
    return metrics | _beyond(rows, last=len(letters))


def _beyond(rows: Sequence[Mapping[str, Any]], *, last: int) -> dict[str, float | None]:
    """Sets beyond the chain's own: `familiar/popqa` is the column familiar_popqa, `popqa` is asked_popqa.

    That is the last model's. Where they are evaluated after every stage, familiar_popqa_1 is θ_A's, and familiar_popqa_0
    the base model's.
    """
    further = [(_column(row["set"]), row) for row in rows if row["of"] is None]
    every = {f"{name}_{row['stage']}": row["accuracy"] for name, row in further if _is_on_base(rows)}
    return every | {name: row["accuracy"] for name, row in further if row["stage"] == last}


def _is_on_base(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row["stage"] == 0 for row in rows)


def _column(name: str) -> str:
    return name.replace("/", "_") if "/" in name else f"asked_{name}"


def _of_memory(on_d_a: list[float | None]) -> dict[str, float | None]:
    """What is known of D_A after each stage."""
    first, last = on_d_a[0], on_d_a[-1]
    after = {f"retention_{position}": value for position, value in enumerate(on_d_a[1:], start=2) if len(on_d_a) > 2}
    lost = first - last if first is not None and last is not None else None
    return {"accuracy_a1": first, "retention": last, "forgetting": lost, **after}


def _of_stage(record: Mapping[str, Any], position: int, reused: bool, accuracy: float | None) -> dict[str, Any]:
    """A stage's own numbers; whether it memorized its set is as this trial evaluates it."""
    own = {f"{name}_{position}": record["metrics"].get(name) for name in _OF_STAGE}
    return {
        **own,
        f"restated_{position}": _restated(record),
        f"stopped_by_{position}": record["stopped_by"],
        f"memorized_{position}": record["memorized"] if accuracy is None else accuracy >= 100.0,
        f"reused_{position}": reused,
    }


def _restated(record: Mapping[str, Any]) -> int | None:
    """How many of a stage's examples say a fact of D_A again; None where nothing could, or nobody counted."""
    counted = [part.get("restated") for part in record["data"].values() if part]
    return sum(filter(None, counted)) if any(count is not None for count in counted) else None
