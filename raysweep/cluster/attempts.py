"""One attempt at a trial, and what its end means: done, a bug, or a loss that is nobody's fault.

A process that is killed from outside, or goes with its node, leaves a record that says `running`; the next attempt of the
run reads it as a loss. Bugs are counted against `runtime.max_failures`, losses against `runtime.max_preemptions`. The
counts are in the trial's record (`store.records`), since the one who counts may be lost itself; Tune only tries again.

Where a worker of several has no room for a micro-batch, the attempt ends and the next one goes on from the last checkpoint
with half the tokens at once. It cannot do so by itself: the others are inside a collective call of that step, which nobody
can leave. That counts as neither, and ends by itself: at one example the trial fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train import PreemptionError, WorkerGroupError

from raysweep.errors import TrialFailed
from raysweep.learn.engine import OutOfRoom
from raysweep.store import records
from raysweep.store.store import Store
from raysweep.trial.job import Job

__all__ = ["attempt", "is_loss", "tries"]

HALVINGS = 20  # from the most tokens of a micro-batch down to one
LOSSES = (RayActorError, NodeDiedError, OutOfMemoryError, WorkerCrashedError, PreemptionError)


def attempt(job: Job, fit: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of the record that `fit` returns. What another attempt may mend is raised, for Tune to start one.

    `final` in the summary of a failure says that the same would happen to another trial at the same stage.
    """
    try:
        record = fit()
        return {**_summary(record), "final": record["of_run"]["preemptions"] <= job.runtime.max_preemptions}
    except Exception as error:
        if result := _result(error):
            return {**_summary(_failed(job, result)), "final": True}
        record = _account(job, error)
        if record.get("status") == "failed" and record["of_run"]["failures"] > job.runtime.max_failures:
            return {**_summary(record), "final": False}
        raise


def is_loss(error: BaseException) -> bool:
    """Whether an attempt ended since a process of it was killed or its node is gone, and not by an error of its own.

    Where one worker of a group is lost, the others fail with it: one loss among their errors is enough.
    """
    if isinstance(error, WorkerGroupError):
        return any(is_loss(one) for one in error.worker_failures.values())
    return isinstance(getattr(error, "health_check_failure", error), LOSSES)


def tries(job: Job) -> int:
    """How often Tune may start a trial again at most: one more than our own counts allow, so that they have the last word."""
    return job.runtime.max_failures + job.runtime.max_preemptions + HALVINGS + 1


def _result(error: Exception) -> TrialFailed | None:
    """What a worker of a group knows to fail again, whatever the others then raised."""
    return next((one for one in _raised(error) if isinstance(one, TrialFailed)), None)


def _raised(error: Exception) -> Iterable[BaseException]:
    """What the workers of a group raised."""
    return error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()


def _failed(job: Job, result: TrialFailed) -> dict[str, Any]:
    """The trial's record, which says so also where another worker's error came first."""
    record = Store(job.store).trial(job.trial) or {}
    if record.get("status") == "failed" and record["error"] == str(result):
        return record
    header = record if record.get("run") == job.run else _header(job, record)
    return _written(Store(job.store), job, records.failed_trial(header, result, before={}))


def _account(job: Job, error: Exception) -> dict[str, Any]:
    """The trial's record after an attempt that raised: written here where the attempt could not."""
    store = Store(job.store)
    record = store.trial(job.trial) or {}
    begun = bool(job.run) and record.get("run") == job.run
    if any(isinstance(one, OutOfRoom) for one in _raised(error)):
        return _written(store, job, records.halved_trial(record)) if begun else record
    if is_loss(error):
        return _written(store, job, records.lost_trial(record)) if begun else record
    if begun and record["status"] == "failed":
        return record
    header = record if begun else _header(job, record)
    return _written(store, job, records.failed_trial(header, _own(error), before={}))


def _header(job: Job, before: Mapping[str, Any]) -> dict[str, Any]:
    stages = [node.id for node in job.chain]
    return records.trial_header(
        point=job.point, model=job.model.name, stages=stages, before=before, began=time.time(), run=job.run
    )


def _written(store: Store, job: Job, record: dict[str, Any]) -> dict[str, Any]:
    store.write_trial(job.trial, record)
    return record


def _own(error: Exception) -> Exception:
    """What a worker raised, rather than what its group makes of it."""
    return next(iter(error.worker_failures.values()), error) if isinstance(error, WorkerGroupError) else error


def _summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """The little of a record that the driver shows; the record itself is in the store."""
    return {"status": record["status"], "error": record.get("error"), "metrics": record.get("metrics", {})}
