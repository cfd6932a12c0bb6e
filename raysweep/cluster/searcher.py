"""Ray Tune asks here for trials: its own grid, in the order that the schedule allows.

Tune's variant generator expands the grid that was given as `param_space`; each variant is looked up in the plan. What
is excluded, done already, or the same trial under another name, is not handed out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.variant_generator import generate_variants

from raysweep.cluster.turns import Turns
from raysweep.plan.schedule import Schedule
from raysweep.store.eviction import Eviction
from raysweep.store.leases import Acquired, Leases

__all__ = ["COMMITTED", "StageSearcher", "expand", "param_space", "point_key"]

COMMITTED = "committed"  # the key under which a trial reports a stage that it has committed


def param_space(axes: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The axes of a sweep in Tune's own words."""
    return {axis: tune.grid_search(_Values(_plain(value) for value in values)) for axis, values in axes.items()}


class _Values(list[Any]):
    """The values of an axis. Tune copies them for each point of the grid; these copies are the very same."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Values:
        return self


def expand(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every variant that Tune makes of a parameter space."""
    return [dict(spec["config"]) for _, spec in generate_variants({"config": dict(space)})]


def point_key(point: Mapping[str, Any]) -> str:
    """A point as text, the same for Tune's variant and for the plan's point."""
    return json.dumps({axis: _plain(value) for axis, value in point.items()}, sort_keys=True)


class StageSearcher(Searcher):
    """Hands out each wanted trial once, siblings of a missing stage the moment it is committed.

    `wanted` maps a point's key to its trial. `on_out` hears of a trial just before it is handed out, with the tokens of the
    `leases` that it trains under; `on_drop` of those that are dropped because a stage they need cannot be trained.
    `elsewhere` says of a trial whose stages other runs have trained whether they have done all of it: then it is not handed
    out, and `on_done` hears of it. `eviction` keeps the store within its bounds. With `turns`, sweeps of higher priority go
    first: one that waits for them ends its search once nothing of it runs, and `waits` is true.
    """

    def __init__(
        self,
        wanted: Mapping[str, str],
        schedule: Schedule,
        *,
        give_up_after: int,
        on_drop: Callable[[str, str], None],
        on_out: Callable[[str, Mapping[str, int]], None] = lambda trial, tokens: None,
        on_done: Callable[[str], None] = lambda trial: None,
        elsewhere: Callable[[str], bool] = lambda trial: False,
        eviction: Eviction | None = None,
        leases: Leases | None = None,
        turns: Turns | None = None,
    ) -> None:
        super().__init__()
        self._wanted = dict(wanted)
        self._schedule = schedule
        self._give_up_after = give_up_after
        self._on_drop = on_drop
        self._on_out = on_out
        self._on_done = on_done
        self._elsewhere = elsewhere
        self._eviction = eviction
        self._leases = leases
        self._turns = turns
        self._others_trained = False
        self._at_work: set[str] = set()  # Tune's ids of trials that have said something
        self._points: dict[str, dict[str, Any]] = {}
        self._trials: dict[str, str] = {}  # Tune's id of a trial → ours
        self._last: dict[str, str] = {}  # a trial that is out → the last stage that it holds
        self.waits = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for a restore, which we never do: the store knows what is done."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Tune gives the parameter space before it asks for the first trial."""
        for variant in expand(config):
            trial = self._wanted.get(point_key(variant))
            if trial is not None:
                self._points.setdefault(trial, variant)
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A configuration, None (all that are left wait for a stage), or FINISHED."""
        if self._leases is not None:
            self._hear(self._leases)
        trial, tokens = self._next()
        if trial is None and (self._schedule.left == 0 or self.waits):
            return Searcher.FINISHED
        if trial is None:
            return None
        self._trials[trial_id] = trial
        self._on_out(trial, tokens)
        return {**self._points[trial], "trial": trial}

    def _next(self) -> tuple[str | None, Mapping[str, int]]:
        """What the schedule gives, unless another run is at work on one of its stages, or goes first."""
        if self._schedule.left and self._is_behind():
            self.waits = not self._trials
            return None, {}
        while (trial := self._scheduled()) is not None:
            path = self._schedule.path(trial)
            answer = self._leases.acquire(path) if self._leases is not None else Acquired({})
            for stage in answer.there:
                self._schedule.committed(stage)
            self._others_trained |= bool(answer.there)
            if answer.blocked is not None:
                self._schedule.put_back(trial, stage=answer.blocked.stage, holder=answer.blocked.holder)
            elif answer.tokens or not self._is_done_elsewhere(trial):
                self._last[trial] = path[-1] if path else ""
                return trial, answer.tokens
        return None, {}

    def _is_done_elsewhere(self, trial: str) -> bool:
        if not (self._others_trained and self._elsewhere(trial)):
            return False
        self._schedule.finished(trial)
        self._on_done(trial)
        self._free([trial])
        return True

    def _is_behind(self) -> bool:
        self._tell()
        return self._turns is not None and bool(self._turns.look())

    def _tell(self) -> None:
        if self._turns is not None:
            waiting = self._schedule.startable(most=self._turns.most)
            self._turns.has(running=len(self._trials), started=len(self._at_work), waiting=waiting)

    def _hear(self, leases: Leases) -> None:
        for news in leases.news():
            if news.committed:
                self._others_trained = True
                self._schedule.committed(news.stage)
            else:
                self._schedule.freed(news.stage)

    def _scheduled(self) -> str | None:
        """Where the store is full, a stage whose weights must stay is opened only rather than hang."""
        if self._eviction is None or self._eviction.room():
            return self._schedule.next()
        return self._schedule.next(opening=False) or (None if self._trials else self._schedule.next())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A committed stage frees its siblings at once, while its trial goes on."""
        if trial_id not in self._at_work:
            self._at_work.add(trial_id)
            self._tell()
        if stage := result.get(COMMITTED):
            self._schedule.committed(stage)
            if self._leases is not None and stage != self._last.get(self._trials[trial_id]):
                self._leases.release([stage], committed=True)  # its last one when all of the trial is written
            if self._eviction is not None:
                self._eviction.committed(stage)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial is over; after an error its siblings are tried, until the stage has failed too often.

        A trial that reported `failed` as final would fail again, and so would its siblings at the same stage: they are
        dropped.
        """
        trial = self._trials.pop(trial_id)
        self._at_work.discard(trial_id)
        status = (result or {}).get("status")
        if self._leases is not None:
            held = {*self._schedule.path(trial), self._last[trial]}
            self._leases.release(sorted(held), committed=status == "done")
        if error or status == "failed":
            final = not error and result.get("final", True)
            give_up_after = 1 if final else self._give_up_after
            dropped = self._schedule.failed(trial, give_up_after=give_up_after)
            for other in dropped:
                self._on_drop(other, trial)
            self._free(dropped)
        elif status == "done":
            self._schedule.finished(trial)
        else:
            self._schedule.ended(trial)
        self._free([trial])
        self._tell()

    def _free(self, trials: Iterable[str]) -> None:
        for trial in trials if self._eviction is not None else ():
            self._eviction.ended(trial)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the store knows what is done, and a new run asks it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore, for the same reason."""


def _plain(value: Any) -> Any:
    """A setting as JSON: what a YAML file would say for it."""
    if hasattr(value, "model_dump"):
        return value.model_dump()
    return list(value) if isinstance(value, tuple) else value
