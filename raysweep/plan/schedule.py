"""Which trial goes next: never a stage twice, never a wait for a stage while something else could run.

Missing stages form trees: below each stage stand those that start from it. A stage is *free* when the one before it is
there and nobody is at work on it; handing out a trial takes the free stage that matters most and goes down from it to a
trial, which then holds the stages on its way until each is committed or the trial ends.

Pure bookkeeping over ids, so the very code that hands out trials on a cluster is run on virtual time in `simulate`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["Schedule", "settled"]


def settled(chains: Iterable[tuple[str, ...]], *, held: Mapping[str, bool]) -> set[str]:
    """The stages that no trial has to train: `held` says of each finished stage whether its weights are there.

    A stage without weights will do where a trial ends with it, or where the stage after it needs no training either.
    """
    lacking: set[str] = set()
    seen: set[str] = set()
    for chain in chains:
        after = True
        for stage in reversed(chain):
            after = stage in held and (held[stage] or after)
            seen.add(stage)
            if not after:
                lacking.add(stage)
    return seen - lacking


@dataclass(slots=True, eq=False)
class _StageState:
    """A missing stage: who is at work on it, what stands below it, and the trials that train nothing after it.

    `trials` has those that are not handed out, `left` counts them here and below. `rank` is smaller the sooner it must be
    trained.
    """

    name: str
    parent: _StageState | None
    place: int
    below: list[_StageState] = field(default_factory=list)
    trials: list[str] = field(default_factory=list)
    left: int = 0
    holder: str | None = None
    failures: int = 0
    done: bool = False
    rank: float = 0.0

    @property
    def free(self) -> bool:
        return not self.done and self.holder is None and self.left > 0 and (self.parent is None or self.parent.done)


class Schedule:
    """Hands out trials, one by one, as the stages they need become available.

    `chains` are the stages of each trial, `done_stages` those that need not be trained. With `costs` (the seconds of a
    stage; all alike where not given) and the number of `slots` (trials at once), stages on the critical path go first.
    """

    def __init__(
        self,
        chains: Mapping[str, tuple[str, ...]],
        *,
        done_stages: Iterable[str] = (),
        costs: Mapping[str, float] | None = None,
        slots: int = 1,
    ) -> None:
        self._stages: dict[str, _StageState] = {}
        self._ready: list[str] = []  # trials without a missing stage, last first
        self._paths: dict[
            str, list[_StageState]
        ] = {}  # of trials that are out: the missing stages that each has to train
        self._free: dict[bool, list[tuple[float, int, _StageState]]] = {
            True: [],
            False: [],
        }  # by whether others start there
        self._outside: dict[str, list[_StageState]] = {}  # stages that others are at work on, each with those before it
        self._left = 0
        self._blocked: dict[str, tuple[str, str]] | None = None
        done = set(done_stages)
        for trial, chain in chains.items():
            self._plant(trial, [stage for stage in chain if stage not in done])
        self._ready.reverse()
        self._grow(costs or {}, slots)

    def next(self, *, opening: bool = True) -> str | None:
        """A trial to start now, or None: all that are left wait for a stage, or nothing is left.

        Without `opening`, none that would train a stage from which others start: for when there is no room to keep it.
        """
        if self._ready:
            return self._out(self._ready.pop(), [])
        stage = self._take(opening)
        if stage is None:
            return None
        path = list(_descent(stage))
        return self._out(path[-1].trials.pop(0), path)

    @property
    def left(self) -> int:
        """How many trials were not handed out yet."""
        return self._left

    def startable(self, *, most: int) -> int:
        """How many trials could be handed out now, counted up to `most`: without a missing stage, and one a free stage."""
        free: set[str] = set()
        for *_, stage in itertools.chain(*self._free.values()):
            if len(self._ready) + len(free) >= most:
                return most
            if stage.free:
                free.add(stage.name)
        return min(most, len(self._ready) + len(free))

    def path(self, trial: str) -> tuple[str, ...]:
        """The missing stages that a trial which is out holds, in the order of training."""
        return tuple(stage.name for stage in self._paths[trial] if not stage.done)

    def waiting(self) -> Mapping[str, tuple[str, str]]:
        """Trials that cannot start: the stage that each waits for, and the trial that is at work on it."""
        if self._blocked is None:
            paths = [*self._paths.values(), *self._outside.values()]
            fronts = [next((stage for stage in path if not stage.done), None) for path in paths]
            self._blocked = {
                trial: (stage.name, stage.holder)
                for stage in fronts
                if stage and stage.holder
                for trial in _trials(stage)
            }
        return self._blocked

    def committed(self, stage: str) -> None:
        """A stage is in the store now: what starts from it is free."""
        found = self._stages.get(stage)
        if found is None or found.done:
            return
        if found.parent is not None:
            self.committed(found.parent.name)
        found.done, found.holder = True, None
        self._outside.pop(stage, None)
        self._blocked = None
        self._ready += reversed(found.trials)
        found.trials = []
        for below in found.below:
            self._offer(below)

    def finished(self, trial: str) -> None:
        """A trial is over, and all its stages are there."""
        for stage in self._paths.pop(trial, []):
            self.committed(stage.name)
        self._blocked = None

    def ended(self, trial: str) -> None:
        """A trial is over, but not to its end: what it held and did not commit is free for its siblings."""
        self._blocked = None
        for stage in self._paths.pop(trial, []):
            if stage.holder == trial:
                stage.holder = None
                self._offer(stage)

    def failed(self, trial: str, *, give_up_after: int) -> list[str]:
        """A trial ended with an error. The siblings that are dropped with it, since their stage failed that often."""
        broken = next((stage for stage in self._paths.get(trial, []) if not stage.done), None)
        self.ended(trial)
        if broken is None:
            return []
        broken.failures += 1
        return self._drop(broken) if broken.failures >= give_up_after else []

    def put_back(self, trial: str, *, stage: str, holder: str) -> None:
        """A trial that was handed out did not start, since somebody outside is at work on one of its stages.

        Some of them may have been committed since it was handed out, that one too.
        """
        path = [one for one in self._paths.pop(trial) if not one.done]
        self._left += 1
        self._blocked = None
        if not path:
            self._ready.append(trial)
            return
        for one in path:
            one.left += 1
            one.holder = None
        path[-1].trials.insert(0, trial)
        until = next((place for place, one in enumerate(path, start=1) if one.name == stage), 0)
        if not until:
            self._offer(path[0])
            return
        for one in path[:until]:
            one.holder = holder
        self._outside[stage] = path[:until]

    def freed(self, stage: str) -> None:
        """Whoever was at work on a stage outside has ended without it."""
        self._blocked = None
        for one in self._outside.pop(stage, []):
            if not one.done:
                one.holder = None
                self._offer(one)

    # ---- the trees

    def _plant(self, trial: str, missing: list[str]) -> None:
        self._left += 1
        if not missing:
            self._ready.append(trial)
            return
        parent: _StageState | None = None
        for name in missing:
            stage = self._stages.get(name)
            if stage is None:
                stage = self._stages[name] = _StageState(name, parent, len(self._stages))
                if parent is not None:
                    parent.below.append(stage)
            stage.left += 1
            parent = stage
        parent.trials.append(trial)

    def _grow(self, costs: Mapping[str, float], slots: int) -> None:
        """Rank every stage by the least time that it and all below it can take with all slots, and offer the roots."""
        longest: dict[str, float] = {}
        work: dict[str, float] = {}
        for stage in reversed(self._stages.values()):  # what is below a stage stands after it
            cost = costs.get(stage.name, 1.0)
            longest[stage.name] = cost + max((longest[below.name] for below in stage.below), default=0.0)
            beneath = sum(work[below.name] for below in stage.below)
            work[stage.name] = cost + beneath
            stage.rank = -max(longest[stage.name], cost + beneath / slots)
            stage.below.sort(key=lambda below: (-longest[below.name], below.place))
        for stage in self._stages.values():
            self._offer(stage)

    def _offer(self, stage: _StageState) -> None:
        if stage.free:
            heapq.heappush(self._free[bool(stage.below)], (stage.rank, stage.place, stage))

    def _take(self, opening: bool) -> _StageState | None:
        """The free stage that matters most; what is not free any more is thrown out on the way."""
        for heap in self._free.values():
            while heap and not heap[0][2].free:
                heapq.heappop(heap)
        heaps = [heap for opens, heap in self._free.items() if heap and (opening or not opens)]
        return heapq.heappop(min(heaps, key=lambda heap: heap[0][:2]))[2] if heaps else None

    def _out(self, trial: str, path: list[_StageState]) -> str:
        for stage in path:
            stage.left -= 1
            stage.holder = trial
        self._paths[trial] = path
        self._left -= 1
        self._blocked = None
        return trial

    def _drop(self, broken: _StageState) -> list[str]:
        dropped = list(_trials(broken))
        for stage in _subtree(broken):
            stage.left, stage.trials = 0, []
        self._left -= len(dropped)
        return dropped


def _descent(stage: _StageState) -> Iterator[_StageState]:
    """From a stage down to a trial, along what takes longest."""
    yield stage
    while below := next((one for one in stage.below if one.left and one.holder is None), None):
        stage = below
        yield stage


def _subtree(stage: _StageState) -> Iterator[_StageState]:
    yield stage
    for below in stage.below:
        yield from _subtree(below)


def _trials(stage: _StageState) -> Iterator[str]:
    return (trial for one in _subtree(stage) for trial in one.trials)
