"""How many trials a cluster can hold at once, and whether it can hold one at all."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping

import ray

from raysweep.cluster.autoscaler import NodeKind, growing_nodes, machines_to_come
from raysweep.errors import BadInput
from raysweep.sweep.spec import Runtime

__all__ = ["GROUP_DRIVER", "NodeKind", "at_once", "fitted", "is_warm", "nodes_of_cluster", "worker_resources"]

POLL_SECONDS = 1.0
GROUP_DRIVER = {"CPU": 0.01}  # a driver only waits; a whole CPU for each would starve the workers it waits for

_log = logging.getLogger(__name__)


def nodes_of_cluster(*, waiting: Callable[[list[str]], None] = lambda machines: None) -> list[NodeKind]:
    """The nodes of the Ray that is connected: what its autoscaler may start, or what is here where it has none.

    Machines of one's own that `ray up` is still setting up are waited for: nobody knows yet what they have. `waiting`
    hears their addresses, again and again.
    """
    if growing := growing_nodes():
        return growing
    _wait_for_machines(waiting)
    return [NodeKind(node["Resources"], 1) for node in ray.nodes() if node["Alive"]]


def _wait_for_machines(waiting: Callable[[list[str]], None]) -> None:
    said: list[str] = []
    while coming := machines_to_come():
        waiting(coming)
        if coming != said:
            _log.warning("waiting for %s of the cluster file; `ray status` says how far they are", ", ".join(coming))
            said = coming
        time.sleep(POLL_SECONDS)


def fitted(runtime: Runtime, nodes: Iterable[NodeKind]) -> Runtime:
    """A runtime with what its file leaves open: a GPU for each worker where the cluster has any, or may have."""
    if runtime.gpus_per_worker is not None:
        return runtime
    any_gpu = any(node.resources.get("GPU", 0) for node in nodes)
    return runtime.model_copy(update={"gpus_per_worker": 1.0 if any_gpu else 0.0})


def is_warm(runtime: Runtime) -> bool:
    """Whether a trial runs in a process that stays for the next one: with one worker, unless trials are to be isolated.

    All others have Ray Train's worker group, and a driver that waits for it.
    """
    return runtime.workers == 1 and not runtime.isolate


def worker_resources(runtime: Runtime) -> dict[str, float]:
    """What one worker of a trial asks of Ray.

    A worker of Ray Train's group asks for a little less than a CPU by default, so that the driver has room beside it on a
    machine with as many cores as workers.
    """
    resources = {"CPU": runtime.cpus_per_worker or (1.0 if is_warm(runtime) else 0.9)}
    return resources | ({"GPU": runtime.gpus_per_worker} if runtime.gpus_per_worker else {})


def at_once(runtime: Runtime, nodes: Iterable[NodeKind]) -> int:
    """How many trials fit the cluster side by side, grown as far as it may grow; `runtime.max_trials` at most.

    Raises BadInput where not even one does, and says what it asks for and what is there: Ray would wait for ever.
    """
    nodes = list(nodes)
    asked = worker_resources(runtime)
    room = sum(_fitting(asked, node.resources) * node.count for node in nodes)
    if room < runtime.workers:
        raise BadInput(
            f"runtime.workers: a trial asks for {runtime.workers} worker(s) of {_shown(asked)} each, and this cluster has "
            f"room for {room} ({_largest(nodes, asked)}); lower runtime.workers, cpus_per_worker or gpus_per_worker, or add nodes"
        )
    fitting = room // runtime.workers
    if not is_warm(runtime):
        fitting = min(fitting, _with_drivers(asked["CPU"] * runtime.workers, nodes))
    if fitting == 0:
        raise BadInput(
            f"runtime.cpus_per_worker: {runtime.workers} worker(s) of {asked['CPU']:g} CPU take all that this cluster has, and "
            f"each trial's driver needs {GROUP_DRIVER['CPU']:g} beside them; leave cpus_per_worker out (0.9), or lower it"
        )
    return min(fitting, runtime.max_trials or fitting)


def _with_drivers(cpus: float, nodes: Iterable[NodeKind]) -> int:
    """How many trials whose workers take so many CPUs leave one to each of their drivers, on whatever node."""
    there = sum(node.resources.get("CPU", 0.0) * node.count for node in nodes)
    return math.floor(there / (cpus + GROUP_DRIVER["CPU"]) + 1e-9)


def _fitting(asked: Mapping[str, float], node: Mapping[str, float]) -> int:
    return math.floor(min(node.get(name, 0.0) / amount for name, amount in asked.items()) + 1e-9)


def _largest(nodes: Iterable[NodeKind], asked: Mapping[str, float]) -> str:
    most = {name: max((node.resources.get(name, 0.0) for node in nodes), default=0.0) for name in asked}
    return f"its largest node has {_shown(most)}"


def _shown(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
