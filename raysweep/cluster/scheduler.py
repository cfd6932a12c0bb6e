"""What a sweep takes of a cluster that it shares, and how it gives way: its wish, and the scheduler that Tune runs it with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler

from raysweep.cluster.capacity import NodeKind, worker_resources
from raysweep.cluster.fair_share import Wish
from raysweep.sweep.spec import Runtime

__all__ = ["FairShareScheduler", "wish_of"]


def wish_of(runtime: Runtime, nodes: Sequence[NodeKind], *, most: int) -> Wish:
    """What one trial takes, and what the cluster has of that, grown as far as it may grow; nothing runs or waits yet."""
    each = worker_resources(runtime)
    room = {name: sum(node.resources.get(name, 0.0) * node.count for node in nodes) for name in each}
    asks = {name: amount * runtime.workers for name, amount in each.items()}
    return Wish(asks=asks, room=room, most=most, priority=runtime.priority)


class FairShareScheduler(FIFOScheduler):
    """First in, first out; the idle process that Tune keeps for a next trial goes while this sweep is `behind` others.

    Else it would hold a place for good that they wait for.
    """

    def __init__(self, behind: Callable[[], Sequence[str]]) -> None:
        super().__init__()
        self._behind = behind

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its scheduler for a restore, which we never do: the store knows what is done."""
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Tune asks in every round."""
        if self._behind():
            tune_controller._cleanup_cached_actors(force_all=True)  # Tune has no public word for it
        return super().choose_trial_to_run(tune_controller)
