"""Which trial goes next: never a stage twice, never a wait for a stage while something else could run.

Pure bookkeeping over ids, so the very code that hands out trials on a cluster can be run on virtual time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Schedule"]


@dataclass
class _Stage:
    """A missing stage: who trains it now, and how often it failed."""

    holder: str | None = None
    failures: int = 0


class Schedule:
    """Hands out trials, one by one, as the stages they need become available.

    A trial is ready when nobody else is at work on any of its missing stages: either it will train the next missing
    one itself, or that stage is there. The first to need a stage holds it until it is committed or its holder ends.
    """

    def __init__(self, chains: Mapping[str, tuple[str, ...]], *, done_stages: Iterable[str] = ()) -> None:
        self._chains = dict(chains)
        self._done = set(done_stages)
        self._uses = Counter(stage for chain in chains.values() for stage in chain)
        self._stages: dict[str, _Stage] = {stage: _Stage() for stage in self._uses if stage not in self._done}
        self._running: set[str] = set()
        self._queue = sorted(self._chains, key=self._priority)

    def _priority(self, trial: str) -> tuple[int, ...]:
        """Chains whose missing stages unlock most trials go first; ties keep the order of the file."""
        return tuple(-self._uses[stage] if stage not in self._done else 0 for stage in self._chains[trial][:-1])

    def next(self) -> str | None:
        """A trial to start now, or None: all that are left wait for a stage, or nothing is left."""
        for index, trial in enumerate(self._queue):
            if self._blocker(trial) is None:
                del self._queue[index]
                self._hold(trial)
                return trial
        return None

    @property
    def left(self) -> int:
        """How many trials were not handed out yet."""
        return len(self._queue)

    def waiting(self) -> dict[str, tuple[str, str]]:
        """Trials that cannot start: the stage that each waits for, and the trial that is at work on it."""
        blocked = {trial: self._blocker(trial) for trial in self._queue}
        return {trial: blocker for trial, blocker in blocked.items() if blocker}

    def committed(self, stage: str) -> None:
        """A stage is in the store now."""
        self._done.add(stage)
        self._stages.pop(stage, None)

    def ended(self, trial: str) -> None:
        """A trial is over, well or not; what it held and did not commit is free for its siblings."""
        self._running.discard(trial)
        for stage in self._stages.values():
            if stage.holder == trial:
                stage.holder = None

    def failed(self, trial: str, *, give_up_after: int) -> list[str]:
        """A trial ended with an error. The siblings that are dropped with it, since their stage failed that often."""
        broken = [name for name, stage in self._stages.items() if stage.holder == trial]
        self.ended(trial)
        hopeless = {name for name in broken if self._count_failure(name) >= give_up_after}
        dropped = [other for other in self._queue if hopeless.intersection(self._chains[other])]
        self._queue = [other for other in self._queue if other not in set(dropped)]
        return dropped

    def _count_failure(self, stage: str) -> int:
        self._stages[stage].failures += 1
        return self._stages[stage].failures

    def _blocker(self, trial: str) -> tuple[str, str] | None:
        """The first missing stage of a trial that another trial is at work on."""
        for stage in self._chains[trial]:
            held = self._stages.get(stage)
            if held and held.holder:
                return stage, held.holder
        return None

    def _hold(self, trial: str) -> None:
        self._running.add(trial)
        for stage in self._chains[trial]:
            if stage in self._stages:
                self._stages[stage].holder = trial
