"""How many trials a cluster can hold at once, and whether it can hold one at all."""

from __future__ import annotations

import math

import ray

from raysweep.cluster.trainer import worker_resources
from raysweep.errors import BadInput
from raysweep.execute import Job

__all__ = ["at_once"]


def at_once(job: Job) -> int:
    """How many trials like this one fit the cluster side by side, `runtime.max_trials` at most.

    Raises BadInput where not even one does, and says what it asks for and what is there: Ray would wait for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = worker_resources(job)
    workers = sum(_fitting(asked, node) for node in nodes)
    if workers < job.runtime.workers:
        raise BadInput(
            f"runtime.workers: a trial asks for {job.runtime.workers} worker(s) of {_shown(asked)} each, and this cluster has room "
            f"for {workers} on {len(nodes)} node(s); lower runtime.workers, cpus_per_worker or gpus_per_worker, or add nodes"
        )
    fitting = workers // job.runtime.workers
    return min(fitting, job.runtime.max_trials or fitting)


def _fitting(asked: dict[str, float], node: dict[str, float]) -> int:
    return math.floor(min(node.get(name, 0.0) / amount for name, amount in asked.items()) + 1e-9)


def _shown(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
