"""The schedule on virtual time: how long a plan takes on a cluster that is not here, with failures and preemptions.

What decides is the very `Schedule` that hands out trials on a cluster; only the stages do not really train.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from raysweep.plan.schedule import Schedule

__all__ = ["CALM", "Disturbances", "Simulation", "lower_bound", "simulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbances:
    """What befalls a cluster: a slot is preempted every `preempted_every` seconds on average and is away for `away`;
    a share `failing` of all stages ends in an error that trying again does not heal. Work is lost back to the last
    checkpoint."""

    preempted_every: float | None = None
    away: float = 600.0
    failing: float = 0.0
    checkpoint_every: float = 600.0


CALM = Disturbances()


@dataclass(slots=True, kw_only=True)
class Simulation:
    """What came out: seconds of virtual time and of work, and how many trials and stages were what.

    `idle` is the share of all slots' time in which no trial had them, `kept` the most stages whose weights other
    trials still needed at once, `decided` the mean real seconds that the schedule took for a hand-out, `slowest` the most.
    """

    makespan: float = 0.0
    work: float = 0.0
    lost: float = 0.0
    idle: float = 0.0
    kept: int = 0
    decided: float = 0.0
    slowest: float = 0.0
    done: int = 0
    failed: int = 0
    dropped: int = 0
    preemptions: int = 0
    trained: Counter[str] = field(default_factory=Counter)


def simulate(
    chains: Mapping[str, tuple[str, ...]],
    seconds: Mapping[str, float],
    *,
    slots: int,
    done_stages: Iterable[str] = (),
    expected: Mapping[str, float] | None = None,
    per_trial: float = 0.0,
    give_up_after: int = 2,
    disturbances: Disturbances = CALM,
    seed: int = 0,
) -> Simulation:
    """Run a plan on `slots` trials at once. `seconds` is how long each stage takes, `expected` what the schedule thinks
    that it takes (the same where not given), `per_trial` what every trial takes beside its stages."""
    schedule = Schedule(chains, done_stages=done_stages, costs=expected or seconds, slots=slots)
    return _Cluster(schedule, chains, seconds, slots, per_trial, give_up_after, disturbances, seed).run()


def lower_bound(
    chains: Mapping[str, tuple[str, ...]], seconds: Mapping[str, float], *, slots: int, done_stages: Iterable[str] = ()
) -> float:
    """The seconds below which no order can come: all distinct work on all slots, or the longest chain."""
    done = set(done_stages)
    missing = {stage for chain in chains.values() for stage in chain} - done
    longest = max(
        (sum(seconds[stage] for stage in chain if stage in missing) for chain in chains.values()), default=0.0
    )
    return max(longest, sum(seconds[stage] for stage in missing) / slots)


class _Cluster:
    """Slots, the trials on them, and what happens next."""

    def __init__(
        self,
        schedule: Schedule,
        chains: Mapping[str, tuple[str, ...]],
        seconds: Mapping[str, float],
        slots: int,
        per_trial: float,
        give_up_after: int,
        disturbances: Disturbances,
        seed: int,
    ) -> None:
        self._schedule = schedule
        self._chains = chains
        self._left = dict(seconds)
        self._slots = self._free = slots
        self._per_trial = per_trial
        self._give_up_after = give_up_after
        self._disturbances = disturbances
        self._random = random.Random(seed)
        self._now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, str, str]] = []
        self._paths: dict[str, deque[str]] = {}
        self._interrupted: deque[str] = deque()
        self._wanted = Counter(stage for chain in chains.values() for stage in chain[:-1])
        self._kept: set[str] = set()
        self._decisions: list[float] = []
        self._told = Simulation()

    def run(self) -> Simulation:
        self._fill()
        while self._events:
            self._now, _, what, trial = heapq.heappop(self._events)
            match what:
                case "trained":
                    self._trained(trial)
                case "over":
                    self._over(trial)
                case "failed":
                    self._failed(trial)
                case "preempted":
                    self._preempted(trial)
                case "back":
                    self._free += 1
            self._fill()
        return self._summed()

    def _fill(self) -> None:
        while self._free and (trial := self._hand_out()):
            self._free -= 1
            self._begin_stage(trial)

    def _hand_out(self) -> str | None:
        """A trial that lost its slot comes before a new one: it holds its stages."""
        if self._interrupted:
            return self._interrupted.popleft()
        began = time.perf_counter()
        trial = self._schedule.next()
        self._decisions.append(time.perf_counter() - began)
        if trial is not None:
            self._paths[trial] = deque(self._schedule.path(trial))
        return trial

    def _begin_stage(self, trial: str) -> None:
        path = self._paths[trial]
        if not path:
            self._after(self._per_trial, "over", trial)
            return
        takes, odds = self._left[path[0]], self._disturbances
        ends = self._random.expovariate(1 / odds.preempted_every) if odds.preempted_every else takes
        if ends < takes:
            self._lose(path[0], ends)
            self._after(ends, "preempted", trial)
        elif self._random.random() < odds.failing:
            self._told.lost += takes
            self._after(takes, "failed", trial)
        else:
            self._told.work += takes
            self._after(takes, "trained", trial)

    def _lose(self, stage: str, ran: float) -> None:
        kept = ran - ran % self._disturbances.checkpoint_every
        self._left[stage] -= kept
        self._told.work += kept
        self._told.lost += ran - kept

    def _trained(self, trial: str) -> None:
        stage = self._paths[trial].popleft()
        self._told.trained[stage] += 1
        self._schedule.committed(stage)
        if self._wanted[stage]:
            self._kept.add(stage)
            self._told.kept = max(self._told.kept, len(self._kept))
        self._begin_stage(trial)

    def _over(self, trial: str) -> None:
        self._schedule.finished(trial)
        self._told.done += 1
        self._leave(trial)

    def _failed(self, trial: str) -> None:
        dropped = self._schedule.failed(trial, give_up_after=self._give_up_after)
        self._told.failed += 1
        self._told.dropped += len(dropped)
        self._leave(trial)
        for other in dropped:
            self._want_no_more(other)

    def _preempted(self, trial: str) -> None:
        self._told.preemptions += 1
        self._interrupted.append(trial)
        self._after(self._disturbances.away, "back", "")

    def _leave(self, trial: str) -> None:
        self._free += 1
        del self._paths[trial]
        self._told.makespan = self._now
        self._want_no_more(trial)

    def _want_no_more(self, trial: str) -> None:
        for stage in self._chains[trial][:-1]:
            self._wanted[stage] -= 1
            if not self._wanted[stage]:
                self._kept.discard(stage)

    def _after(self, seconds: float, what: str, trial: str) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._order), what, trial))

    def _summed(self) -> Simulation:
        told = self._told
        whole = self._slots * told.makespan
        busy = told.work + told.lost + self._per_trial * told.done
        told.idle = max(0.0, 1.0 - busy / whole) if whole else 0.0
        told.decided = sum(self._decisions) / len(self._decisions) if self._decisions else 0.0
        told.slowest = max(self._decisions, default=0.0)
        return told
