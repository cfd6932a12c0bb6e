"""The records of stages and trials, as JSON: what was done, how, by what code, and what came out."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysweep import provenance
from raysweep.errors import RaysweepError

__all__ = ["done_trial", "failed_trial", "finished_stage", "gives_up", "signature_of", "trial_header"]


def finished_stage(
    *,
    slug: str,
    letter: str,
    outcome: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
    engine: Mapping[str, Any],
    began: float,
) -> dict[str, Any]:
    """A stage's record; `memorized` says whether its own set is answered without an error, None where it has no scorer."""
    own = [row["accuracy"] for row in evaluations if row["of"] == letter]
    metrics = ("steps", "epochs", "loss", "tokens", "seconds", "peak_memory")
    return {
        "slug": slug,
        "engine": dict(engine),
        "metrics": {**{name: outcome[name] for name in metrics}, "evaluations": list(evaluations)},
        "stopped_by": outcome["stopped_by"],
        "memorized": own[0] >= 100.0 if own else None,
        "data": dict(data),
        "provenance": {
            **provenance.here(),
            "started": provenance.timestamp(began),
            "finished": provenance.timestamp(time.time()),
        },
    }


def trial_header(
    *, point: Mapping[str, Any], model: str, stages: Sequence[str], attempts: int, began: float, run: str = ""
) -> dict[str, Any]:
    """What every record of a trial says, however far it is."""
    return {
        "point": dict(point),
        "model": model,
        "stages": list(stages),
        "attempts": attempts,
        "run": run,
        "started": provenance.timestamp(began),
        "provenance": provenance.here(),
    }


def gives_up(before: Mapping[str, Any], *, run: str) -> bool:
    """Whether a trial is not tried again in this run: its last two attempts in it ended in the same place."""
    return before.get("status") == "failed" and bool(before.get("repeated")) and before.get("run") == run


def signature_of(error: BaseException) -> str:
    """What makes two errors the same: their kind, and the line that raised them. Their texts may name a step or a port."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"
    return f"{type(error).__name__} at {where}"


def _mark(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record.get("run"), record.get("signature")


def done_trial(
    header: Mapping[str, Any], *, metrics: Mapping[str, Any], reused: Sequence[str], evaluated: Sequence[str]
) -> dict[str, Any]:
    """The record of a finished trial; `evaluated` are the sets that were asked beyond its chain's own."""
    return {
        **header,
        "status": "done",
        "error": None,
        "reused": list(reused),
        "evaluated": list(evaluated),
        "metrics": dict(metrics),
        "finished": provenance.timestamp(time.time()),
    }


def failed_trial(header: Mapping[str, Any], error: Exception, *, before: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a trial that ended with an error; one of ours speaks for itself, others keep their traceback.

    `repeated` says whether the attempt before, whose record is `before`, ended in the same place of the same run.
    """
    ours = isinstance(error, RaysweepError)
    text = str(error) or type(error).__name__
    signature = signature_of(error)
    return {
        **header,
        "status": "failed",
        "signature": signature,
        "repeated": bool(header.get("run")) and _mark(before) == (header["run"], signature),
        "error": text if ours else f"{type(error).__name__}: {text}",
        "traceback": None if ours else traceback.format_exc(),
        "finished": provenance.timestamp(time.time()),
    }
