"""One trial on Ray: a TorchTrainer named by the trial's id, in a process that stays between trials or in a worker group.

One-worker trials run their TorchTrainer inside the Tune actor, which stays alive between trials (the warm path): the
imports, the tokenized data and the compiled ops are there already. Trials of several workers, and those with `isolate`,
get Ray Train's own worker group: it places the workers, opens their process group, watches them, and ends them all where
one is lost. Its workers are new for each trial; only the driver that waits for them stays.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cache
from queue import SimpleQueue
from typing import Any

from ray import train, tune
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from raysweep.cluster.attempts import attempt
from raysweep.cluster.capacity import worker_resources
from raysweep.cluster.job_handoff import handed
from raysweep.cluster.metrics import observed
from raysweep.cluster.ray_compat import tell_train_its_cluster
from raysweep.errors import TrialFailed
from raysweep.learn.ranks import meeting_place, torchrun_variables
from raysweep.trial.execute import Report, execute
from raysweep.trial.job import Job

__all__ = ["fit_alone", "group_trainer", "run_in_group", "run_warm", "torchrun_variables"]

COLLECTIVE_SECONDS = 1800  # a collective that takes longer is an error; nothing slow is done inside one
GROUP_SETTINGS = {
    "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": "1",
    "RAY_TRAIN_NCCL_RAS_ACTION": "fail",  # a hang that is certain ends the attempt, instead of a line in a log
}


def run_warm(config: Mapping[str, Any], *, run: str) -> None:
    """A Tune function: fit the trial's trainer in this process."""
    job = handed(run, config["trial"])
    report = observed(job, lambda event: tune.report(dict(event)))
    tune.report(attempt(job, lambda: fit_alone(job, report)))


def run_in_group(config: Mapping[str, Any], *, run: str, storage: str) -> None:
    """A Tune function: fit the trial's trainer on a worker group of Ray Train; `storage` is a place that all nodes see."""
    job = handed(run, config["trial"])
    os.environ |= GROUP_SETTINGS  # of this driver, from where Ray Train takes them to its controller and workers
    trainer = group_trainer(job, storage=storage, callbacks=[TuneReportCallback()])
    tune.report(attempt(job, lambda: trainer.fit().return_value))


def group_trainer(
    job: Job,
    *,
    storage: str,
    callbacks: Sequence[UserCallback] = (),
    loop: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
) -> TorchTrainer:
    """The trainer of a trial on Ray Train's worker group; `loop` is what each rank does, None for the trial itself.

    Attempts are counted by us, so that Ray Train tries once: a lost worker and a bug count apart (`attempts`).
    """
    tell_train_its_cluster()
    resources = worker_resources(job.runtime)
    return TorchTrainer(
        loop or _run_in_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=job.runtime.workers,
            use_gpu=resources.get("GPU", 0) > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=job.trial,
            storage_path=storage,
            callbacks=list(callbacks),
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=2),
        ),
    )


def fit_alone(job: Job, report: Report) -> dict[str, Any]:
    """Fit a trial's trainer in this process, its only rank; the trial's record.

    Ray Train's local mode: it opens a process group of one and runs the loop here, in the thread that all trials of a
    process have in common. The group is closed at the end.
    """
    place = meeting_place()
    done: Future[dict[str, Any]] = Future()
    _trials().put((done, lambda: _fit(job, report, torchrun_variables(port=place.port))))
    return done.result()


def _fit(job: Job, report: Report, variables: Mapping[str, str]) -> dict[str, Any]:
    with _environment(variables):
        trainer = TorchTrainer(
            _run_here,
            train_loop_config={"job": job, "report": report},
            scaling_config=ScalingConfig(num_workers=0),
            run_config=RunConfig(name=job.trial),
        )
        record = trainer.fit().return_value
    _freeze()
    return record


@cache
def _trials() -> SimpleQueue[tuple[Future[Any], Callable[[], Any]]]:
    """What is given to the one thread of this process in which trials run.

    With a thread each, as Tune starts them, memory that one trial frees is kept apart for its thread: 4 to 10 MB a trial.
    """
    given: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
    threading.Thread(target=_run_each, args=(given,), name="trials", daemon=True).start()
    return given


def _run_each(given: SimpleQueue[tuple[Future[Any], Callable[[], Any]]]) -> None:
    while True:
        done, run = given.get()
        try:
            done.set_result(run())
        except BaseException as error:  # it is raised again by who waits
            done.set_exception(error)
        del done, run  # an error holds all that its trial had


def _run_here(config: Mapping[str, Any]) -> dict[str, Any]:
    from raysweep.learn.zero import disconnect

    try:
        return execute(config["job"], report=config["report"])
    finally:
        disconnect()


def _run_in_worker(config: Mapping[str, Any]) -> dict[str, Any]:
    """A rank of a worker group. Raises TrialFailed where several ranks have a result that is no use to any: those that
    got no further than a collective would wait for this one, and an error ends the group."""

    def report(event: Mapping[str, Any]) -> None:
        train.report(dict(event))

    ranks = train.get_context()
    first = ranks.get_world_rank() == 0  # every rank says the same: one of them is enough
    record = execute(config["job"], report=observed(config["job"], report) if first else report)
    if record["status"] == "failed" and ranks.get_world_size() > 1:
        raise TrialFailed(record["error"])
    return record


@cache
def _freeze() -> None:
    """Once in a process: let the garbage collector pass over what is there after the first trial, modules above all.

    An engine is only freed by whole collections, two a trial, and each would look at 700,000 objects for 0.4 seconds.
    """
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables in this process's environment, for one trial only.

    PyTorch puts a hook for uncaught errors round the one there is with every process group: it goes as well.
    """
    before, hook = {name: os.environ.get(name) for name in variables}, sys.excepthook
    os.environ.update(variables)
    try:
        yield
    finally:
        sys.excepthook = hook
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
