"""The numbers of a trial, from the records of its stages: DESIGN's columns, named once, here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysweep.store.store import FinishedStage

__all__ = ["of_trial"]

_OF_STAGE = ("steps", "epochs", "loss", "seconds", "tokens")


def of_trial(stages: Sequence[tuple[FinishedStage, bool]], *, letters: Sequence[str]) -> dict[str, Any]:
    """Columns of a trial whose stages are done; each stage comes with its letter, and whether it was reused.

    `accuracy_a1` is θ_A on D_A, `retention` θ_last on D_A, `forgetting` their difference in points, `accuracy_<letter>`
    a later stage's model on its own set. All accuracies in [0, 100]; None where there is nothing to score.
    """
    accuracies = [_accuracies(stage.record) for stage, _ in stages]
    metrics: dict[str, Any] = {}
    if letters[0] == "a":
        metrics |= _of_memory([found.get("a") for found in accuracies])
    for letter, found in zip(letters, accuracies, strict=True):
        if letter != "a":
            metrics[f"accuracy_{letter}"] = found.get(letter)
    for position, (stage, reused) in enumerate(stages, start=1):
        metrics |= _of_stage(stage.record, position, reused)
    return metrics | _beyond(stages[-1][0].record)


def _beyond(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Sets beyond the chain's own: `familiar/popqa` is the column familiar_popqa, `popqa` is asked_popqa."""
    rows = [row for row in record["metrics"]["evaluations"] if row["of"] is None]
    names = [row["set"].replace("/", "_") if "/" in row["set"] else f"asked_{row['set']}" for row in rows]
    return {name: row["accuracy"] for name, row in zip(names, rows, strict=True)}


def _of_memory(on_d_a: list[float | None]) -> dict[str, float | None]:
    """What is known of D_A after each stage."""
    first, last = on_d_a[0], on_d_a[-1]
    after = {f"retention_{position}": value for position, value in enumerate(on_d_a[1:], start=2) if len(on_d_a) > 2}
    lost = first - last if first is not None and last is not None else None
    return {"accuracy_a1": first, "retention": last, "forgetting": lost, **after}


def _of_stage(record: Mapping[str, Any], position: int, reused: bool) -> dict[str, Any]:
    own = {f"{name}_{position}": record["metrics"].get(name) for name in _OF_STAGE}
    return {
        **own,
        f"restated_{position}": _restated(record),
        f"stopped_by_{position}": record["stopped_by"],
        f"memorized_{position}": record["memorized"],
        f"reused_{position}": reused,
    }


def _restated(record: Mapping[str, Any]) -> int | None:
    """How many of a stage's examples say a fact of D_A again; None where nothing could, or nobody counted."""
    counted = [part.get("restated") for part in record["data"].values() if part]
    return sum(filter(None, counted)) if any(count is not None for count in counted) else None


def _accuracies(record: Mapping[str, Any]) -> dict[str, float]:
    return {row["of"]: row["accuracy"] for row in record["metrics"]["evaluations"] if row["of"]}
