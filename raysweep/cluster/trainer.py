"""One trial on Ray: a TorchTrainer named by the trial's id, on the warm path or in a worker group.

One-worker trials run their TorchTrainer inside the Tune actor, which stays alive between trials: the imports, the
tokenized data and the compiled ops are there already. Trials of several workers, and those with `isolate`, get Ray
Train's worker group.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from ray import train, tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from raysweep.cluster.attempts import attempt
from raysweep.cluster.capacity import worker_resources
from raysweep.cluster.metrics import observed
from raysweep.execute import Job, execute

__all__ = ["GROUP_DRIVER", "run_in_group", "run_warm"]

GROUP_DRIVER = {"CPU": 0.01}  # a driver only waits; a whole CPU for each would starve the workers it waits for


def run_warm(config: Mapping[str, Any], *, jobs: Mapping[str, Job]) -> None:
    """A Tune function: fit the trial's trainer in this process."""
    job = jobs[config["trial"]]
    with _torchrun_environment():
        trainer = TorchTrainer(
            _run_alone,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=0),
            run_config=RunConfig(name=job.trial),
        )
        tune.report(attempt(job, lambda: trainer.fit().return_value))


def run_in_group(config: Mapping[str, Any], *, jobs: Mapping[str, Job], storage: str) -> None:
    """A Tune function: fit the trial's trainer on a worker group of its own."""
    job = jobs[config["trial"]]
    resources = worker_resources(job.runtime)
    trainer = TorchTrainer(
        _run_in_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.runtime.workers,
            use_gpu=resources.get("GPU", 0) > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=job.trial,
            storage_path=storage,
            callbacks=[TuneReportCallback()],
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=2),
        ),
    )
    tune.report(attempt(job, lambda: trainer.fit().return_value))


def _run_alone(config: Mapping[str, Any]) -> dict[str, Any]:
    from raysweep.learn.ranks import disconnect

    try:
        return execute(config["job"], report=observed(config["job"], lambda event: tune.report(dict(event))))
    finally:
        disconnect()


def _run_in_worker(config: Mapping[str, Any]) -> dict[str, Any]:
    def report(event: Mapping[str, Any]) -> None:
        train.report(dict(event))

    first = train.get_context().get_world_rank() == 0  # every rank says the same: one of them is enough
    return execute(config["job"], report=observed(config["job"], report) if first else report)


@contextlib.contextmanager
def _torchrun_environment() -> Iterator[None]:
    """The variables of a process group of one, for this trial only; a port of its own each time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
