"""Table 2's grid on clusters of 8 to 4,096 GPUs, in virtual time, with the schedule that runs on real ones.

`python tests/bench/run.py simulate`. The reference is the same grid trial by trial, as sweeps without shared stages run
it. Stage times are the plan's estimates, each spread by a log-normal factor that the schedule does not know of.
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path
from typing import Any

from run import machine

from raysweep.api import load
from raysweep.forecast.cost import costs_of
from raysweep.forecast.simulate import CALM, Disturbances, lower_bound, simulate
from raysweep.plan.plan import Plan
from raysweep.plan.schedule import Schedule
from raysweep.sweep.spec import Runtime

TABLE_2 = Path(__file__).parents[2] / "experiments" / "table2.yaml"
GPUS = (8, 64, 256, 1024, 4096)
GPUS_A_TRIAL = 2
SPREAD = 0.2
STORMY = Disturbances(preempted_every=4 * 3600.0, away=600.0, failing=0.01, checkpoint_every=600.0)


def measure(*, data_dir: Path | None = None, repeats: int = 3) -> dict[str, Any]:
    """Ratios: the makespan trial by trial ÷ ours. Figures: ours ÷ the lower bound (1 is the best there can be) and the share
    of idle GPUs, the same with preemptions and failures and what came of the trials, how long the schedule takes for a
    hand-out (mean and worst) and before the first, and the seconds of one simulation."""
    loaded = load(TABLE_2)
    plan, runtime = loaded.plan(), loaded.sweep.runtime
    draws = [_draw(plan, runtime, seed) for seed in range(repeats)]
    ratios: dict[str, float] = {}
    figures: dict[str, Any] = {}
    for gpus in GPUS:
        told = [
            _compare(plan, expected, seconds, gpus // GPUS_A_TRIAL, seed)
            for seed, (expected, seconds) in enumerate(draws)
        ]
        medians = {name: statistics.median(one[name] for one in told) for name in told[0]}
        ratios[f"trial_by_trial_{gpus}"] = round(medians.pop("trial_by_trial"), 3)
        figures |= {f"{name}_{gpus}": round(value, 4) for name, value in medians.items()}
    return {"name": "simulate", "ratios": ratios, "figures": figures, "machine": machine()}


def _draw(plan: Plan, runtime: Runtime, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """What the schedule expects of every stage, and what it will really take, in seconds of a trial's workers."""
    generator = random.Random(seed)
    expected = {name: spent / GPUS_A_TRIAL for name, spent in costs_of(plan, [], runtime=runtime).seconds.items()}
    return expected, {name: spent * generator.lognormvariate(0, SPREAD) for name, spent in expected.items()}


def _compare(
    plan: Plan, expected: dict[str, float], seconds: dict[str, float], slots: int, seed: int
) -> dict[str, float]:
    chains = {name: trial.stages for name, trial in plan.trials.items()}
    bound = lower_bound(chains, seconds, slots=slots)
    began = time.perf_counter()
    Schedule(chains, costs=expected, slots=slots)
    planned, began = time.perf_counter() - began, time.perf_counter()
    ours = simulate(chains, seconds, slots=slots, expected=expected)
    took = time.perf_counter() - began
    stormy = simulate(chains, seconds, slots=slots, expected=expected, disturbances=STORMY, seed=seed)
    apart, alone = _unshared(chains, seconds)
    return {
        "trial_by_trial": simulate(apart, alone, slots=slots, disturbances=CALM).makespan / ours.makespan,
        "makespan_over_bound": ours.makespan / bound,
        "idle": ours.idle,
        "stormy_makespan_over_bound": stormy.makespan / bound,
        "stormy_idle": stormy.idle,
        "stormy_preemptions": stormy.preemptions,
        "stormy_trials_done": stormy.done,
        "stormy_trials_failed_or_dropped": stormy.failed + stormy.dropped,
        "planning_milliseconds": planned * 1e3,
        "hand_out_microseconds": ours.decided * 1e6,
        "hand_out_microseconds_worst": ours.slowest * 1e6,
        "simulation_seconds": took,
    }


def _unshared(
    chains: dict[str, tuple[str, ...]], seconds: dict[str, float]
) -> tuple[dict[str, tuple[str, ...]], dict[str, float]]:
    """The same trials, each with stages of its own."""
    apart = {name: tuple(f"{name}/{stage}" for stage in chain) for name, chain in chains.items()}
    return apart, {f"{name}/{stage}": seconds[stage] for name, chain in chains.items() for stage in chain}
