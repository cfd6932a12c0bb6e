"""What is left of a plan, what it will take, and how much of the disk: a forecast, with what it rests on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from raysweep.errors import BadInput
from raysweep.forecast.cost import EACH_EPOCH, Costs, costs_of, weights_of
from raysweep.forecast.requests import idle, of_checkpoint, of_plan
from raysweep.forecast.roofline import CPU, GPU, Machine
from raysweep.forecast.simulate import Simulation, lower_bound, simulate
from raysweep.forecast.tokens import guesses
from raysweep.learn.memory import ModelShape, Need, need
from raysweep.plan.plan import Plan
from raysweep.plan.schedule import settled
from raysweep.sweep.spec import Every, Runtime
from raysweep.sweep.stage import Training

__all__ = ["Estimate", "estimate"]

CHECKPOINT = 12  # bytes a weight of a stage in flight: what is trained in, its master copy and the optimizer's states


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Hours of workers (`gpu_hours`, whatever they run on) that are left, with sharing and without; how each stage was
    told (`basis`); sets and mixers whose lengths are guesses, as far as hours rest on them (`guessed`); bytes of weights
    kept and of checkpoints in flight at most; bytes that stay in the memory of each worker's device (`memory_worker`,
    activations come on top) and of its machine (`memory_host`); and, for `workers`, the wall time in hours, the least that
    any order could take, and the share of the slots' time that stays idle. In a bucket the rest is so many `store_writes` and
    `store_reads`, beside the parts of weights and checkpoints, and for `workers` so many a second, signs of life included."""

    gpu_hours: float
    gpu_hours_unshared: float
    basis: Mapping[str, int]
    assumes: str
    guessed: Sequence[str]
    disk_weights: int
    disk_checkpoints: int
    memory_worker: int
    memory_host: int
    workers: int | None = None
    trials_at_once: int | None = None
    makespan_hours: float | None = None
    lower_bound_hours: float | None = None
    idle_share: float | None = None
    store_writes: int = 0
    store_reads: int = 0
    store_writes_per_second: float | None = None
    store_reads_per_second: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields, rounded to what they are worth."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()}


def estimate(
    plan: Plan,
    records: Mapping[str, Mapping[str, Any]],
    *,
    done: Collection[str],
    runtime: Runtime,
    keep: Literal["shared", "all", "none"],
    workers: int | None = None,
    again: Collection[str] = (),
    calibrations: Sequence[Mapping[str, Any]] = (),
    every: Every = EACH_EPOCH,
) -> Estimate | str:
    """The forecast of all trials that are not `done`; a sentence where nothing can be told.

    `records` are those of the store's finished stages; `again` are finished ones that must be trained again. With `workers`
    the schedule is run on virtual time. `calibrations` are the store's, and `every` says how often D_A is asked along a stage.
    Raises BadInput where not even one trial fits that many workers.
    """
    costs = costs_of(plan, records.values(), runtime=runtime, calibrations=calibrations, every=every)
    if costs.unknown and costs.basis.keys() & {"calibrated", "computed"}:
        return f"how large {', '.join(sorted(costs.unknown))} is cannot be told from here"
    chains = {name: trial.stages for name, trial in plan.trials.items() if name not in done}
    held = {name: bool(records[name].get("files")) for name in plan.stages if name in records and name not in again}
    there = settled(chains.values(), held=held)
    missing = {stage for chain in chains.values() for stage in chain} - there
    run = _run(chains, costs, there, runtime, workers) if workers is not None else None
    kept = _kept(plan, missing, held, keep, run)
    weights = max(weights_of(trial.spec.model.name) or 0 for trial in plan.trials.values())
    memory = [_need(node.stage.training, weights, runtime) for node in plan.stages.values()]
    kept_often = of_checkpoint(workers=runtime.workers).times(1 / runtime.checkpoint_every)  # a second of a trial
    asked = kept_often.times(_hours(costs, missing) * 3600 / runtime.workers) + of_plan(
        trials=len(chains),
        stages=len(missing),
        with_weights=len(missing & plan.started_from),
        evaluations=len({one.id for name in chains for one in plan.evaluations(name)}),
    )
    rate = asked.times(1 / run.told.makespan) + idle() if run and run.told.makespan else None
    guessed = guesses(plan.stages[name].stage for name in costs.estimated & missing)
    return Estimate(
        gpu_hours=_hours(costs, missing),
        gpu_hours_unshared=_hours(costs, (stage for chain in chains.values() for stage in chain)),
        basis=dict(costs.basis),
        assumes=_assumes(costs, guessed),
        guessed=guessed,
        disk_weights=kept * weights * _bytes_a_weight(plan),
        disk_checkpoints=min(run.slots if run else 1, len(chains)) * weights * CHECKPOINT,
        memory_worker=max(one.held for one in memory),
        memory_host=max(one.host for one in memory),
        workers=workers,
        trials_at_once=run.slots if run else None,
        makespan_hours=run.told.makespan / 3600 if run else None,
        lower_bound_hours=run.bound / 3600 if run else None,
        idle_share=run.told.idle if run else None,
        store_writes=round(asked.writes),
        store_reads=round(asked.reads),
        store_writes_per_second=rate.writes if rate else None,
        store_reads_per_second=rate.reads if rate else None,
    )


@dataclass(frozen=True, slots=True)
class _Makespan:
    """A plan on virtual time: trials at once, what came out, and the bound in seconds."""

    slots: int
    told: Simulation
    bound: float


def _run(
    chains: Mapping[str, tuple[str, ...]], costs: Costs, there: set[str], runtime: Runtime, workers: int
) -> _Makespan:
    if workers < runtime.workers:
        raise BadInput(f"--workers {workers}: a trial of this sweep takes {runtime.workers} (runtime.workers)")
    slots = min(workers // runtime.workers, runtime.max_trials or workers)
    seconds = {name: spent / runtime.workers for name, spent in costs.seconds.items()}
    told = simulate(chains, seconds, slots=slots, done_stages=there)
    return _Makespan(slots, told, lower_bound(chains, seconds, slots=slots, done_stages=there))


def _kept(plan: Plan, missing: set[str], held: Mapping[str, bool], keep: str, run: _Makespan | None) -> int:
    """How many stages' weights lie in the store at most."""
    now = sum(held.values())
    match keep:
        case "all":
            return now + len(missing)
        case "none" if run is not None:
            return now + run.told.kept
        case _:
            return now + len(missing & plan.started_from)


def _hours(costs: Costs, stages: Iterable[str]) -> float:
    return sum(costs.seconds[stage] for stage in stages) / 3600


@cache
def _need(training: Training, weights: int, runtime: Runtime) -> Need:
    """What training so many weights needs, without activations."""
    shape = ModelShape(weights=weights, layers=0, hidden=0, intermediate=0, vocabulary=0)
    return need(shape, training=training, runtime=runtime, tokens=0, recomputed=True)


def _bytes_a_weight(plan: Plan) -> int:
    return max(4 if node.stage.training.precision == "fp32" else 2 for node in plan.stages.values())


def _assumes(costs: Costs, guessed: Sequence[str]) -> str:
    """What the hours rest on, in words."""
    words = {
        "measured": "as measured with other seeds",
        "timed": f"as plan --calibrate timed such steps, questions, loads and saves ({', '.join(sorted(costs.timed_on))})",
        "scaled": "by a roofline, corrected by the same model's finished stages",
        "calibrated": "by a roofline, corrected by other models' finished stages",
        "computed": f"by a roofline ({_rates(GPU)} a GPU, {_rates(CPU)} a CPU worker)",
    }
    told = [f"{costs.basis[basis]:,} stages {how}" for basis, how in words.items() if costs.basis[basis]]
    unsure = [f"the lengths of {', '.join(guessed)} are guesses"] if guessed else []
    return "; ".join([*told, *unsure, "all epochs, though a stop rule may end a stage sooner"])


def _rates(machine: Machine) -> str:
    return f"{machine.flops / 1e12:g} TFLOP/s and {machine.memory / 1e9:,.0f} GB/s"
