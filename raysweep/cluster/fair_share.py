"""Whose turn it is to start a trial, where several sweeps want more of a cluster than it has.

Higher priority goes first. Sweeps of one priority get equal shares of what each of them takes most of (dominant resource
fairness, Ghodsi et al. 2011), counted in whole trials; of two with equal shares, the one that was served less goes first,
so that sweeps take turns where only one of them fits. What runs is never stopped for another: shares become even as trials
end. What a sweep cannot use, the others get; one that is alone gets all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

__all__ = ["FairShare", "Wish", "targets"]

SLACK = 1e-6  # of a resource: sums of fractions are not exact


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a sweep has and wants: a trial `asks` this much, the cluster has `room`, and `most` trials fit at once.

    `running` trials are handed out, `started` of them are at work, `waiting` ones could start now.
    """

    asks: Mapping[str, float]
    room: Mapping[str, float]
    most: int
    priority: int = 0
    running: int = 0
    started: int = 0
    waiting: int = 0

    @property
    def wanted(self) -> int:
        """How many trials it would have at once, had it the cluster to itself."""
        return min(self.most, self.running + self.waiting)


def targets(wishes: Mapping[str, Wish], *, served: Mapping[str, float]) -> dict[str, int]:
    """How many trials each sweep is to have at once; `served` is what each had so far, as share × seconds."""
    room = _room(wishes)
    free = dict(room)
    given = dict.fromkeys(wishes, 0)

    def share(name: str) -> tuple[float, float]:
        return given[name] * _share(wishes[name], room), served.get(name, 0.0)

    for priority in sorted({wish.priority for wish in wishes.values()}, reverse=True):
        open = [name for name, wish in wishes.items() if wish.priority == priority]
        while open := [name for name in open if given[name] < wishes[name].wanted and _fits(wishes[name].asks, free)]:
            name = min(open, key=share)
            given[name] += 1
            free |= {resource: free[resource] - amount for resource, amount in wishes[name].asks.items()}
    return given


class FairShare:
    """The wishes of all sweeps of a cluster, and who was served how much."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._then = clock()
        self._wishes: dict[str, Wish] = {}
        self._served: dict[str, float] = {}

    def tell(self, sweep: str, wish: Wish) -> None:
        """What a sweep has and wants now; a new one is served as little as the one that was served least."""
        self._count()
        self._served.setdefault(sweep, min(self._served.values(), default=0.0))
        self._wishes[sweep] = wish

    def take(self, sweep: str, wish: Wish) -> tuple[str, ...]:
        """Those for whom this sweep has to wait; none where it may start a trial, which then counts as running.

        One that has nothing to start hears who could use what it holds all the same.
        """
        self.tell(sweep, wish)
        given = targets(self._wishes, served=self._served)
        if not wish.waiting:
            return tuple(name for name, one in self._wishes.items() if name != sweep and one.running < given[name])
        others = tuple(name for name, count in given.items() if count and name != sweep)
        if others and wish.running >= given[sweep]:
            return others
        self._wishes[sweep] = replace(wish, running=wish.running + 1, waiting=max(0, wish.waiting - 1))
        return ()

    def leave(self, sweep: str) -> None:
        """A sweep is over, or dead."""
        self._count()
        self._wishes.pop(sweep, None)
        self._served.pop(sweep, None)

    def _count(self) -> None:
        """Add what everybody had since the last time. A trial that waits for its workers does not count."""
        now = self._clock()
        room = _room(self._wishes)
        for name, wish in self._wishes.items():
            self._served[name] += (now - self._then) * wish.started * _share(wish, room)
        self._then = now


def _room(wishes: Mapping[str, Wish]) -> dict[str, float]:
    """What the cluster has, by the one who saw most of it."""
    room: dict[str, float] = {}
    for wish in wishes.values():
        room |= {name: max(amount, room.get(name, 0.0)) for name, amount in wish.room.items()}
    return room


def _share(wish: Wish, room: Mapping[str, float]) -> float:
    """How much of the resource that it takes most of, one trial takes."""
    return max((amount / room[name] for name, amount in wish.asks.items() if room.get(name)), default=0.0)


def _fits(asks: Mapping[str, float], free: Mapping[str, float]) -> bool:
    return all(amount <= free.get(name, 0.0) + SLACK for name, amount in asks.items())
