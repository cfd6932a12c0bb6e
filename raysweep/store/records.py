"""The records of stages and trials, as JSON: what was done, how, by what code, and what came out."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysweep.errors import RaysweepError
from raysweep.store import provenance

__all__ = [
    "done_trial",
    "failed_trial",
    "finished_stage",
    "gives_up",
    "halved_trial",
    "lost_trial",
    "lost_too_often",
    "signature_of",
    "tally",
    "trial_header",
]


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
    *,
    point: Mapping[str, Any],
    model: str,
    stages: Sequence[str],
    before: Mapping[str, Any],
    began: float,
    run: str = "",
) -> dict[str, Any]:
    """What every record of a trial says, however far it is; `before` is the record that the attempt before left.

    `attempts` and `preemptions` count over all runs, `of_run` in this one. What the trial was evaluated on before, it keeps.
    """
    counts = tally(before, run=run)
    known = {name: before[name] for name in ("evaluations", "evaluated", "tables") if name in before}
    return {
        **known,
        "point": dict(point),
        "model": model,
        "stages": list(stages),
        "attempts": before.get("attempts", 0) + 1,
        "preemptions": before.get("preemptions", 0) + _is_lost(before, run=run),
        "run": run,
        "of_run": counts,
        "started": provenance.timestamp(began),
        "provenance": provenance.here(),
    }


def tally(before: Mapping[str, Any], *, run: str) -> dict[str, int]:
    """How many attempts of one run ended with an error, and how many were lost: killed from outside, or with their node."""
    told = before.get("of_run", {}) if run and before.get("run") == run else {}
    lost = told.get("preemptions", 0) + _is_lost(before, run=run)
    return {"failures": told.get("failures", 0), "preemptions": lost}


def _is_lost(before: Mapping[str, Any], *, run: str) -> bool:
    """Whether an attempt of this run left a record that still says `running`: its process had no time for another word."""
    told = before.get("status") == "running" and not before.get("halved")
    return bool(run) and before.get("run") == run and told


def lost_trial(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an attempt that was lost: what the processes beside the lost one raised then is nobody's bug."""
    said = ("signature", "repeated", "error", "traceback", "finished")
    failures = record["of_run"]["failures"] - (record["status"] == "failed")
    kept = {name: value for name, value in record.items() if name not in said}
    return {**kept, "status": "running", "of_run": {**record["of_run"], "failures": failures}}


def halved_trial(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an attempt that ended for the next one to take half the tokens at once: neither a bug nor a loss."""
    return {**lost_trial(record), "halved": True}


def lost_too_often(header: Mapping[str, Any], *, most: int) -> dict[str, Any] | None:
    """The record of a trial that is not tried again, since its processes were lost more than `most` times in this run."""
    lost = header["of_run"]["preemptions"]
    if lost <= most:
        return None
    error = (
        f"its process or its node was lost {lost} times in this run, and runtime.max_preemptions allows {most}; where it is "
        "memory that it runs out of (`dmesg` of the node, Ray's dashboard), lower runtime.micro_batch or set runtime.offload"
    )
    return {**header, "status": "failed", "error": error, "finished": provenance.timestamp(time.time())}


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
    header: Mapping[str, Any],
    *,
    metrics: Mapping[str, Any],
    reused: Sequence[str],
    evaluations: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The record of a finished trial: `evaluations` are those that it is made of, each with its place in the chain.

    `evaluated` are the sets beyond the chain's own among them.
    """
    return {
        **header,
        "status": "done",
        "error": None,
        "reused": list(reused),
        "evaluations": [dict(one) for one in evaluations],
        "evaluated": sorted({one["set"] for one in evaluations if one["of"] is None}),
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
    counts = header["of_run"]
    return {
        **header,
        "of_run": {**counts, "failures": counts["failures"] + 1},
        "status": "failed",
        "signature": signature,
        "repeated": bool(header.get("run")) and _mark(before) == (header["run"], signature),
        "error": text if ours else f"{type(error).__name__}: {text}",
        "traceback": None if ours else traceback.format_exc(),
        "finished": provenance.timestamp(time.time()),
    }
