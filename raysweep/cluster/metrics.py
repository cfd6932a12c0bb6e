"""What running trials tell Ray's metrics, and so its dashboard and Prometheus: loss, pace and memory, stage by stage.

Every name begins with `ray_raysweep_` there; the tags are sweep, trial, stage and set.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ray.util.metrics import Gauge

from raysweep.trial.execute import Report
from raysweep.trial.job import Job
from raysweep.trial.pace import Pace

__all__ = ["observed"]

TAGS = ("sweep", "trial", "stage", "set")
GAUGES = {
    "loss": "Mean loss of a target token at the last step.",
    "step": "Steps that the stage has done.",
    "steps": "Steps that the stage has at most.",
    "tokens_per_second": "Tokens trained on a second, since the event before.",
    "peak_memory_bytes": "The most that a finished stage took: on its GPU, or in all on a CPU.",
}


def observed(job: Job, report: Report) -> Report:
    """`report`, with what it is given put into Ray's metrics as well."""
    pace = Pace()

    def tell(event: Mapping[str, Any]) -> None:
        tags = {"sweep": job.sweep, "trial": job.trial, "stage": str(event.get("stage")), "set": str(event.get("set"))}
        for name, value in {**_measures(event), **pace.measure(event)}.items():
            _gauge(name).set(value, tags)
        report(event)

    return tell


def _measures(event: Mapping[str, Any]) -> dict[str, float]:
    match event["event"]:
        case "train":
            return {name: float(event[name]) for name in ("loss", "step", "steps")}
        case "committed":
            return {"peak_memory_bytes": float(event["peak_memory"])}
        case _:
            return {}


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(f"raysweep_{name}", GAUGES[name], TAGS)
