"""Who trains what on this cluster, over all sweeps, and whose turn it is: so that a stage which two of them share is
trained by one, and all get their share of the machines.

The claims live in a named actor that outlives the sweeps. A sweep that dies stops giving signs of life; its claims are
then free, and the next that needs such a stage takes it over. Losing the actor loses no work: at worst a stage is
trained twice, and the store keeps the first.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from raysweep.cluster.fair_share import FairShare, Wish

__all__ = ["Claimed", "Claims", "Ledger", "News"]

NAME, NAMESPACE = "raysweep-claims", "raysweep"
BEAT = 3.0  # seconds between two signs of life
LEASE = 20.0  # seconds without one after which a holder is taken for dead
PATIENCE = 120.0  # seconds for which a ledger that does not answer is asked again
AGAIN = 0.5  # seconds between two such questions
REMEMBERED = 100_000  # pieces of news
HEAD = "node:__internal_head__"  # Ray's own resource: 1 on the head, none elsewhere

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a claim: stages that were committed meanwhile, and the first that another holds, with that holder.

    Meanwhile is since the asker joined: of what was committed before, only the store knows whether it is still there.
    Where none is held by another, all the rest are the asker's now.
    """

    there: tuple[str, ...] = ()
    blocked: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class News:
    """What happened to a stage that somebody claimed: it is in the store, or its holder ended without it."""

    stage: str
    committed: bool


class Ledger:
    """The claims themselves: plain bookkeeping, one stage to one holder, in any number of stores."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._holders: dict[tuple[str, str], str] = {}
        self._there: dict[
            tuple[str, str], int
        ] = {}  # what was committed, and how many pieces of news there were before
        self._joined: dict[str, int] = {}  # how many pieces of news there were when a holder came
        self._alive: dict[str, float] = {}
        self._news: list[tuple[str, News]] = []
        self._forgotten = 0
        self._fair_share = FairShare(clock)

    def claim(self, holder: str, store: str, stages: tuple[str, ...]) -> Claimed:
        """Ask for stages, in the order of training: all of them are given, or none."""
        self.beat(holder)
        joined = self._joined[holder]
        there = tuple(stage for stage in stages if self._there.get((store, stage), -1) >= joined)
        wanted = [stage for stage in stages if stage not in there]
        for stage in wanted:
            other = self._holders.get((store, stage), holder)
            if other != holder:
                return Claimed(there, (stage, other))
        for stage in wanted:
            self._holders[store, stage] = holder
            self._there.pop((store, stage), None)  # it is gone again: the asker looked into the store
        return Claimed(there)

    def committed(self, holder: str, store: str, stage: str) -> None:
        """A stage is in the store."""
        self.beat(holder)
        self._holders.pop((store, stage), None)
        self._there[store, stage] = self._told
        self._tell(store, News(stage, committed=True))

    def release(self, holder: str, store: str, stages: Iterable[str]) -> None:
        """Give back what was claimed and not committed."""
        self.beat(holder)
        for stage in stages:
            self._free(holder, store, stage)

    def leave(self, holder: str) -> None:
        """Give back everything."""
        for store, stage in [key for key, other in self._holders.items() if other == holder]:
            self._free(holder, store, stage)
        self._fair_share.leave(holder)
        self._alive.pop(holder, None)
        self._joined.pop(holder, None)
        oldest = min(self._joined.values(), default=self._told)
        self._there = {key: told for key, told in self._there.items() if told >= oldest}

    def news(self, holder: str, store: str, since: int) -> tuple[int, list[News]]:
        """What happened in a store after the piece of news `since`, and the number to ask with next time."""
        self.beat(holder)
        fresh = self._news[max(0, since - self._forgotten) :]
        return self._told, [news for place, news in fresh if place == store]

    def wishes(self, holder: str, wish: Wish) -> None:
        """What a sweep has and wants of the cluster."""
        self.beat(holder)
        self._fair_share.tell(holder, wish)

    def turn(self, holder: str, wish: Wish) -> tuple[str, ...]:
        """Those for whom a sweep has to wait with its next trial; none where it may start it."""
        self.beat(holder)
        return self._fair_share.take(holder, wish)

    def beat(self, holder: str) -> None:
        """A sign of life; whoever gave none for too long is taken for dead."""
        now = self._clock()
        self._alive[holder] = now
        self._joined.setdefault(holder, self._told)
        for other, seen in list(self._alive.items()):
            if now - seen > LEASE:
                self.leave(other)

    @property
    def _told(self) -> int:
        """How many pieces of news there were so far."""
        return self._forgotten + len(self._news)

    def _free(self, holder: str, store: str, stage: str) -> None:
        if self._holders.get((store, stage)) == holder:
            del self._holders[store, stage]
            self._tell(store, News(stage, committed=False))

    def _tell(self, store: str, news: News) -> None:
        self._news.append((store, news))
        if len(self._news) > REMEMBERED:
            self._forgotten += REMEMBERED // 2
            del self._news[: REMEMBERED // 2]


class Claims:
    """One sweep's side: what it claims in its store, and what it hears of others. Leave with `close`."""

    def __init__(self, store: str, *, sweep: str) -> None:
        self._store = store
        self._holder = f"{sweep} ({uuid.uuid4().hex[:6]})"
        self._ledger = _connect()
        self._awaited: set[str] = set()
        self._lost = False
        self._since = self._ask("news", self._store, 0)[0]
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="raysweep-claims", daemon=True)
        self._heart.start()

    def claim(self, stages: tuple[str, ...]) -> Claimed:
        """Ask for all stages that a trial is going to train."""
        claimed = self._ask("claim", self._store, stages) if stages else Claimed()
        if claimed.blocked:
            self._awaited.add(claimed.blocked[0])
        return claimed

    def committed(self, stage: str) -> None:
        """Tell the others that a stage is in the store."""
        self._ask("committed", self._store, stage)

    def release(self, stages: tuple[str, ...]) -> None:
        """Give back what a trial that is over did not commit."""
        if stages:
            self._ask("release", self._store, stages)

    def wishes(self, wish: Wish) -> None:
        """Tell what this sweep has and wants of the cluster."""
        self._ask("wishes", wish)

    def turn(self, wish: Wish) -> tuple[str, ...]:
        """The sweeps for which this one has to wait with its next trial; none where it may start it."""
        return self._ask("turn", wish)

    def news(self) -> list[News]:
        """What happened since the last call. After the loss of all claims, what was waited for is free."""
        self._since, news = self._ask("news", self._store, self._since)
        lost, self._lost = self._lost, False
        free = [News(stage, committed=False) for stage in sorted(self._awaited)] if lost else []
        self._awaited.difference_update(one.stage for one in (*news, *free))
        return [*news, *free]

    def close(self) -> None:
        """Give back everything."""
        self._closed.set()
        self._heart.join()
        self._ask("leave")

    def _ask(self, what: str, *arguments: Any) -> Any:
        """Ask the ledger; one that does not answer is asked again, or made anew, until Ray knows which it is to be."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return ray.get(getattr(self._ledger, what).remote(self._holder, *arguments))
            except RayError as error:
                if time.monotonic() > until:
                    raise
                if not self._lost:
                    _log.warning("the claims of this cluster were lost and begin anew: %s", type(error).__name__)
            time.sleep(AGAIN)
            self._ledger = _connect()
            self._lost = True

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            try:
                ray.get(self._ledger.beat.remote(self._holder))
            except RayError as error:
                _log.debug("no sign of life was given: %s", error)  # the next question connects again


def _connect() -> Any:
    """The ledger of this cluster, made by whoever comes first; on the head, since any other node may be lost."""
    there = {"num_cpus": 0, "resources": {HEAD: 0.001}}
    return (
        ray.remote(Ledger)
        .options(name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, **there)
        .remote()
    )
