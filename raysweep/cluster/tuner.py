"""A sweep on Ray Tune: one Tune trial for every trial that the store lacks."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune import Callback, TuneConfig, Tuner

from raysweep.cluster.attempts import tries
from raysweep.cluster.board import Board
from raysweep.cluster.capacity import (
    GROUP_DRIVER,
    NodeKind,
    at_once,
    fitted,
    is_warm,
    nodes_of_cluster,
    worker_resources,
)
from raysweep.cluster.heartbeat import Heartbeat, room
from raysweep.cluster.job_handoff import JobHandoff
from raysweep.cluster.ray_compat import OrphanedGroups
from raysweep.cluster.searcher import StageSearcher, param_space, point_key
from raysweep.cluster.trainer import run_in_group, run_warm
from raysweep.cluster.turns import Turns
from raysweep.errors import RaysweepError
from raysweep.forecast.cost import costs_of
from raysweep.plan.naming import trial_name
from raysweep.plan.plan import Plan
from raysweep.plan.schedule import Schedule, settled
from raysweep.store.answered import Answered
from raysweep.store.eviction import Eviction
from raysweep.store.leases import Leases, beating
from raysweep.store.prune import needed
from raysweep.store.store import Store
from raysweep.sweep.spec import Runtime, size_in_bytes
from raysweep.trial.job import Job

__all__ = ["SweepOutcome", "run_trials"]

THROUGH, CUT, WAITS = "through", "cut", "waits"  # how Tune ended

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """How a run ended: the trials that were done and failed, and whether it was stopped before the end."""

    done: tuple[str, ...]
    failed: Mapping[str, str]
    stopped: bool


def run_trials(
    axes: Mapping[str, tuple[Any, ...]],
    plan: Plan,
    jobs: Mapping[str, Job],
    store: Store,
    *,
    keep: str = "shared",
    with_others: bool = False,
) -> SweepOutcome:
    """Run these jobs on the Ray that is connected; Ctrl-C stops them, and what is finished stays.

    `jobs` are the trials of `plan` that are missing. Trials that wait for a shared stage start when it is committed.
    `keep` is the sweep's. `with_others`: other sweeps may run on this cluster; those of higher priority go first.
    """
    run, left = uuid.uuid4().hex, dict(jobs)
    done: list[str] = []
    failed: dict[str, str] = {}
    cuts = 0
    while cuts <= next(iter(jobs.values())).runtime.max_preemptions:
        outcome, ended = _run(axes, plan, left, store, run=run, keep=keep, with_others=with_others)
        done += outcome.done
        failed |= outcome.failed
        left = {trial: job for trial, job in left.items() if trial not in done and trial not in failed}
        if ended == THROUGH or not left:
            return SweepOutcome(tuple(done), failed, outcome.stopped)
        if ended == WAITS:
            continue
        cuts += 1
        _log.warning("a node ran out of memory, Ray killed a worker there, and Tune ended with it; the rest goes on")
    raise RaysweepError(
        "Ray killed workers for memory again and again; run fewer trials at once (runtime.max_trials), lower "
        "runtime.micro_batch, or set runtime.offload; what is finished is kept, and the same command goes on"
    )


def _run(
    axes: Mapping[str, tuple[Any, ...]],
    plan: Plan,
    jobs: Mapping[str, Job],
    store: Store,
    *,
    run: str,
    keep: str,
    with_others: bool,
) -> tuple[SweepOutcome, str]:
    """Run these jobs, and how Tune ended: through with them, cut, or as this sweep waits for its turn."""
    nodes = _nodes(store, jobs, run=run)
    runtime = fitted(next(iter(jobs.values())).runtime, nodes)
    jobs = {trial: replace(job, runtime=runtime, run=run) for trial, job in jobs.items()}
    slots = at_once(runtime, nodes)
    chains = {trial: plan.trials[trial].stages for trial in jobs}
    schedule = _schedule(plan, jobs, store, slots=slots)
    board = Board(len(jobs), names=_names(axes, jobs), waiting=schedule.waiting)
    handoff = JobHandoff(run, jobs)
    sweep = next(iter(jobs.values())).sweep

    with contextlib.ExitStack() as stack:
        leases = Leases(
            store.files,
            holder=f"{sweep} (run {run[:6]})",
            there=lambda stage: _is_there(store, plan, jobs, stage),
            says=lambda: turns.says() if turns else {},
        )
        turns = Turns.of(sweep, runtime, most=slots, others=leases.others) if with_others else None
        heartbeat = _heartbeat(store, board, jobs, nodes, behind=lambda: turns.behind if turns else ())
        watch = _Watch(store, jobs, board, heartbeat, handoff)
        wanted = {point_key(point.values): point.trial for point in reversed(plan.points) if point.trial in jobs}
        searcher = StageSearcher(
            wanted,
            schedule,
            give_up_after=runtime.max_failures + 1,
            on_drop=watch.dropped,
            on_out=handoff.out,
            on_done=watch.done_elsewhere,
            elsewhere=lambda trial: _is_done(store, jobs[trial], but_by=run),
            eviction=_eviction(store, chains, jobs, keep=keep),
            leases=leases,
            turns=turns,
        )
        stack.enter_context(beating(leases))
        stack.callback(handoff.close)
        with watch.board, _places(store, run) as (storage, address):
            tuner = _tuner(axes, next(iter(jobs.values())), searcher, watch, storage, slots, address)
            cut = _has_turn(turns, heartbeat) and _is_cut(tuner)
        return watch.close(goes_on=cut or searcher.waits), CUT if cut else WAITS if searcher.waits else THROUGH


def _schedule(plan: Plan, jobs: Mapping[str, Job], store: Store, *, slots: int) -> Schedule:
    """The order of these jobs: what they wait for, and by what is known of their costs."""
    one, records = next(iter(jobs.values())), store.stage_records()
    costs = costs_of(
        plan, records.values(), runtime=one.runtime, calibrations=store.calibrations(), every=one.evaluate.every
    )
    return Schedule(
        {trial: plan.trials[trial].stages for trial in jobs},
        done_stages=_settled(jobs, records, Answered(store, records)),
        costs=None if costs.unknown else costs.seconds,
        slots=slots,
    )


def _names(axes: Mapping[str, tuple[Any, ...]], jobs: Mapping[str, Job]) -> dict[str, str]:
    """What people call each trial: its values of the axes that vary."""
    varying = [axis for axis, values in axes.items() if len(values) > 1] or list(axes)
    return {trial: trial_name(job.point, varying=varying) for trial, job in jobs.items()}


@contextlib.contextmanager
def _places(store: Store, run: str) -> Iterator[tuple[Path, str]]:
    """Where Tune writes on this machine, and the place that all nodes see, which Ray Train wants; gone afterwards, since
    what we keep is elsewhere."""
    storage, trains = Path(tempfile.mkdtemp(prefix="raysweep-tune-")), f".ray/{run}"
    try:
        yield storage, store.files.address(trains)
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        store.files.remove(trains)


def _is_cut(tuner: Any) -> bool:
    """Run to the end; True where Tune ended with a worker that was killed for memory, which it takes for a bug of its own."""
    try:
        tuner.fit()
    except RuntimeError as error:
        if not isinstance(error.__cause__, OutOfMemoryError):
            raise
        return True
    return False


def _has_turn(turns: Turns | None, heartbeat: Heartbeat) -> bool:
    """Wait until no sweep of higher priority wants room; False where the user ends the wait."""
    try:
        while turns is not None and turns.look():
            heartbeat.beat()
            time.sleep(1.0)
    except KeyboardInterrupt:
        return False
    return True


def _is_there(store: Store, plan: Plan, jobs: Mapping[str, Job], stage: str) -> bool:
    """Whether a stage that another run has committed needs no training: see `_settled`."""
    found = store.stage(plan.stages[stage])
    if found is None or found.has_weights:
        return found is not None
    kept = {one for job in jobs.values() for one in job.kept}
    asked = [one for job in jobs.values() for one in job.evaluations if one.stage == stage]
    return stage not in kept | plan.started_from and not Answered(store).lacking(asked)


def _is_done(store: Store, job: Job, *, but_by: str) -> bool:
    """Whether another run has done a trial, with all that this one asks for."""
    record = store.trial(job.trial) or {}
    if record.get("status") != "done" or record.get("run") == but_by:
        return False
    last = job.chain[-1]
    stage = store.stage(last)
    kept = last.id not in job.kept or (stage is not None and stage.has_weights)
    return kept and Answered(store).completes(record, job.evaluations)


def _tuner(
    axes: Mapping[str, tuple[Any, ...]],
    job: Job,
    searcher: StageSearcher,
    watch: _Watch,
    storage: Path,
    slots: int,
    shared: str,
) -> Tuner:
    return Tuner(
        _trainable(job.run, job.runtime, shared),
        param_space=param_space(axes),
        tune_config=TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            reuse_actors=not job.runtime.isolate,
            max_concurrent_trials=slots,
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            verbose=0,
            callbacks=[watch],
            failure_config=tune.FailureConfig(max_failures=tries(job)),
        ),
    )


def _trainable(run: str, runtime: Runtime, storage: str) -> Any:
    """What Tune runs for each trial, with what a trial takes; `storage` is a place that all nodes see."""
    if is_warm(runtime):
        return tune.with_resources(partial(run_warm, run=run), worker_resources(runtime))
    return tune.with_resources(partial(run_in_group, run=run, storage=storage), GROUP_DRIVER)


class _Watch(Callback):
    """Hears of every trial from Tune: shows it, and writes the records that a dead process could not."""

    def __init__(
        self, store: Store, jobs: Mapping[str, Job], board: Board, heartbeat: Heartbeat, handoff: JobHandoff
    ) -> None:
        self.board = board
        self._handoff = handoff
        self._heartbeat = heartbeat
        self._orphans = OrphanedGroups()
        self._store = store
        self._open = dict(jobs)
        self._started: set[str] = set()
        self._done: list[str] = []
        self._failed: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore, which we never do: the store knows what is done."""
        return {}

    def on_step_end(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        self._heartbeat.beat()
        self._orphans.remove()

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self._started.add(trial.config["trial"])
        self.board.started(trial.config["trial"])

    def on_trial_recover(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        self.board.again(trial.config["trial"])

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name = trial.config["trial"]
        self.board.said(name, result)
        if result.get("status") == "failed":
            self._failed[name] = result["error"]

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        self._handoff.over(name)
        self._open.pop(name, None)
        if name not in self._failed:
            self._done.append(name)
        self.board.ended(name, error=self._failed.get(name))

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        self._handoff.over(name)
        self._fail(name, self._reason(name, trial))
        self.board.ended(name, error=self._failed[name])

    def dropped(self, trial: str, because: str) -> None:
        """A trial is not tried: the stage it shares with another failed there too often."""
        self._fail(
            trial,
            f"not tried: a stage that it shares with trial {because} failed there: {self._failed.get(because, 'see its record')}",
        )
        self.board.ended(trial, error=self._failed[trial])

    def done_elsewhere(self, trial: str) -> None:
        """Another run has done a trial meanwhile."""
        self._open.pop(trial, None)
        self._done.append(trial)
        self.board.ended(trial, error=None)

    def close(self, *, goes_on: bool) -> SweepOutcome:
        """The outcome; trials that were interrupted are recorded as stopped, unless the run `goes_on`: then they were lost."""
        for name in () if goes_on else self._started.intersection(self._open):
            record = self._store.trial(name) or {"point": dict(self._open[name].point), "attempts": 1}
            if record.get("status") == "running":
                self._store.write_trial(name, {**record, "status": "stopped"})
        self._heartbeat.end(stopped=bool(self._open))
        return SweepOutcome(tuple(self._done), self._failed, stopped=bool(self._open))

    def _fail(self, name: str, error: str) -> None:
        self._failed[name] = error
        job = self._open.pop(name, None)
        record = self._store.trial(name) or {}
        if job is not None and record.get("status") != "failed":
            header = {
                "point": dict(job.point),
                "model": job.model.name,
                "stages": [node.id for node in job.chain],
                "attempts": 1,
            }
            self._store.write_trial(name, {**header, **record, "status": "failed", "error": error})

    def _reason(self, name: str, trial: Any) -> str:
        record = self._store.trial(name) or {}
        if record.get("status") == "failed" and record.get("error"):
            return record["error"]
        error = trial.get_error() if hasattr(trial, "get_error") else None
        return (
            f"its process ended without a word ({type(error).__name__}: {error})"
            if error
            else "its process ended without a word"
        )


def _nodes(store: Store, jobs: Mapping[str, Job], *, run: str) -> list[NodeKind]:
    """The nodes there are or may be; while machines are waited for, the sweep's status says so."""
    machines: list[str] = []
    sweep = next(iter(jobs.values())).sweep
    heartbeat = Heartbeat(
        partial(store.write_live, sweep, run=run), lambda: {"waiting": len(jobs), "waiting_for_machines": machines}
    )

    def waiting(coming: list[str]) -> None:
        machines[:] = coming
        heartbeat.beat()

    return nodes_of_cluster(waiting=waiting)


def _heartbeat(
    store: Store,
    board: Board,
    jobs: Mapping[str, Job],
    nodes: Sequence[NodeKind],
    *,
    behind: Callable[[], Sequence[str]],
) -> Heartbeat:
    job = next(iter(jobs.values()))

    def look() -> dict[str, Any]:
        return {**board.snapshot(), "room": room(job.runtime, nodes), "behind": list(behind())}

    return Heartbeat(partial(store.write_live, job.sweep, run=job.run), look)


def _settled(jobs: Mapping[str, Job], records: Mapping[str, Mapping[str, Any]], answered: Answered) -> set[str]:
    """The stages of these jobs that need no training: one that lacks an evaluation does where its weights are gone."""
    lacking = {one.stage for job in jobs.values() for one in answered.lacking(job.evaluations)}
    kept = {job.chain[-1].id for job in jobs.values() if job.chain[-1].id in job.kept}
    held = {
        name: bool(record.get("files"))
        for name, record in records.items()
        if record.get("files") or name not in lacking | kept
    }
    return settled([tuple(node.id for node in job.chain) for job in jobs.values()], held=held)


def _eviction(
    store: Store, chains: Mapping[str, tuple[str, ...]], jobs: Mapping[str, Job], *, keep: str
) -> Eviction | None:
    """What keeps the disk within its bounds, where the sweep sets any."""
    job = next(iter(jobs.values()))
    most = size_in_bytes(job.runtime.max_store) if job.runtime.max_store else None
    if most is None and keep != "none":
        return None
    return Eviction(store, chains, keep=keep, most=most, elsewhere=needed(store, but=job.sweep))


def _trial_id(trial: Any) -> str:
    return trial.config["trial"]
