"""A running sweep's sign of life in the store: where `raysweep status` looks, from any machine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray

from raysweep.cluster.capacity import NodeKind, worker_resources
from raysweep.errors import StoreError
from raysweep.store import provenance
from raysweep.sweep.spec import Runtime

__all__ = ["Heartbeat", "room"]

SECONDS = 5.0  # between two writes
JOB = "RAYSWEEP_JOB"  # set by `raysweep submit`: the job that this process is

_log = logging.getLogger(__name__)


class Heartbeat:
    """Writes what `look` says, now and then; a write that fails is logged, and the sweep goes on."""

    def __init__(self, write: Callable[[Mapping[str, Any]], None], look: Callable[[], Mapping[str, Any]]) -> None:
        self._write = write
        self._look = look
        self._last = float("-inf")

    def beat(self) -> None:
        """Write, unless that was done a moment ago."""
        if time.monotonic() - self._last >= SECONDS:
            self._put("running")

    def end(self, *, stopped: bool) -> None:
        """The last word."""
        self._put("stopped" if stopped else "ended")

    def _put(self, state: str) -> None:
        self._last = time.monotonic()
        header = {"state": state, "updated": provenance.timestamp(time.time()), "job": os.environ.get(JOB)}
        try:
            self._write({**header, **self._look()})
        except (OSError, StoreError) as error:
            _log.warning("how far the sweep is could not be written: %s", error)


def room(runtime: Runtime, nodes: Iterable[NodeKind]) -> dict[str, Any]:
    """What one trial asks of the cluster, what of it is there and free, and whether `nodes` are more than there are yet."""
    asked = worker_resources(runtime)
    total, free = ray.cluster_resources(), ray.available_resources()
    return {
        "workers": runtime.workers,
        "asks": asked,
        "free": {name: free.get(name, 0.0) for name in asked},
        "total": {name: total.get(name, 0.0) for name in asked},
        "growing": any(_most(nodes, name) > total.get(name, 0.0) for name in asked),
    }


def _most(nodes: Iterable[NodeKind], resource: str) -> float:
    return sum(node.resources.get(resource, 0.0) * node.count for node in nodes)
