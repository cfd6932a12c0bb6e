"""Whose turn it is to start a trial, where several sweeps of one store run on one cluster.

Higher `runtime.priority` goes first: a sweep starts no further trial as long as one of higher priority has trials that
could run and do not. Among equals, who came first has what it has, and Ray's own queue decides about the rest. What runs
is never stopped for another. A sweep that waits for its turn and has nothing running gives back its last process too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray

from raysweep.sweep.spec import Runtime

__all__ = ["Turns"]

LOOK = 10.0  # seconds between two looks at what others want
HEAD = "node:__internal_head__"  # Ray's own resource: 1 on the head, none elsewhere


class Turns:
    """One sweep's side: what it says of itself, and for whom it waits. `others` reads what other runs say."""

    def __init__(
        self,
        *,
        sweep: str,
        priority: int,
        most: int,
        cluster: str,
        others: Callable[[], Iterable[Mapping[str, Any]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = {"sweep": sweep, "priority": priority, "cluster": cluster}
        self.most = most
        self._others = others
        self._clock = clock
        self._looked = float("-inf")
        self._wants = True  # it would not be here else
        self.behind: tuple[str, ...] = ()

    @classmethod
    def of(cls, sweep: str, runtime: Runtime, *, most: int, others: Callable[[], Iterable[Mapping[str, Any]]]) -> Turns:
        """The turns of a sweep on the cluster of this process, where `most` of its trials fit at once."""
        return cls(sweep=sweep, priority=runtime.priority, most=most, cluster=_this_cluster(), others=others)

    def has(self, *, running: int, started: int, waiting: int) -> None:
        """How many trials are handed out, how many of them are at work, and how many could start now."""
        self._wants = started < min(self.most, running + waiting)

    def says(self) -> dict[str, Any]:
        """What goes into this run's sign of life."""
        return {**self._own, "wants": self._wants}

    def look(self) -> tuple[str, ...]:
        """The sweeps of higher priority for which this one has to wait now."""
        now = self._clock()
        if now - self._looked >= LOOK:
            self._looked = now
            self.behind = tuple(sorted({one["sweep"] for one in self._others() if self._goes_before(one)}))
        return self.behind

    def _goes_before(self, other: Mapping[str, Any]) -> bool:
        same = other.get("cluster") == self._own["cluster"]
        return same and bool(other.get("wants")) and other["priority"] > self._own["priority"]


def _this_cluster() -> str:
    """What the cluster of this process is called by all that run there: its head node's id."""
    return next(node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"])
