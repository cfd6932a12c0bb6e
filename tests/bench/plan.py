"""How long planning takes as a grid grows, how much memory, and how long a hand-out takes.

`python tests/bench/run.py plan`. Each size is measured in a process of its own, so that its peak memory is its own.
There is no reference to divide by: the figures are there to stay near-linear.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from run import machine

from raysweep.plan.plan import Plan, Sources, make_plan
from raysweep.plan.schedule import Schedule
from raysweep.sweep.file import Places
from raysweep.sweep.grid import Grid
from raysweep.sweep.spec import Sweep
from raysweep.sweep.yaml import parse

SIZES = (1_000, 10_000, 100_000)
SLOTS = 64
GRID = {
    "d_a": ["kvr", "popqa", "triviaqa"],
    "d_b": ["id", "lama", "entityqa", "webqa", "gsm8k", "math", "evolcode", "apps", "ultrachat"],
    "mixer": [
        "none/none", "random/none", "knowledge_pile/none", "none/random", "none/knowledge_pile", "random/knowledge_pile",
    ],
}  # fmt: skip


def measure(*, data_dir: Path | None = None, repeats: int = 3) -> dict[str, Any]:
    """Figures by number of points: seconds to plan, peak megabytes, microseconds a hand-out; medians and spreads."""
    figures: dict[str, Any] = {}
    for size in SIZES:
        runs = [_in_own_process(size) for _ in range(repeats)]
        for name in runs[0]:
            values = [run[name] for run in runs]
            figures[f"{name}_{size}"] = round(statistics.median(values), 3)
            figures[f"{name}_{size}_spread"] = round(max(values) - min(values), 3)
    figures["growth_10k_to_100k"] = round(figures["seconds_100000"] / figures["seconds_10000"], 2)
    return {"name": "plan", "ratios": {}, "figures": figures, "machine": machine()}


def _environment() -> dict[str, str]:
    """This process's, with the checkout importable whether or not it is installed."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def _in_own_process(size: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, str(size)], check=True, capture_output=True, text=True, env=_environment()
    )
    return json.loads(done.stdout)


def _once(size: int) -> dict[str, float]:
    grid = _grid(size)
    began = time.perf_counter()
    plan = make_plan([(grid, _sources())])
    planned = time.perf_counter() - began
    return {
        "seconds": planned,
        "trials": len(plan.trials),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "hand_out_microseconds": _hand_out(plan),
    }


def _hand_out(plan: Plan) -> float:
    """Microseconds of the schedule for each trial, its making included."""
    began = time.perf_counter()
    schedule = Schedule({name: trial.stages for name, trial in plan.trials.items()}, slots=SLOTS)
    running: list[str] = []
    while schedule.left or running:
        while len(running) < SLOTS and (trial := schedule.next()):
            running.append(trial)
        schedule.finished(running.pop(0))
    return (time.perf_counter() - began) / len(plan.trials) * 1e6


def _grid(size: int) -> Grid:
    combinations = 3 * 9 * 6
    grid = {**GRID, "seed": list(range(-(-size // combinations)))}
    raw = {"name": "large", "model": "tiny", "grid": grid}
    return Grid(Sweep.model_validate(raw), Places(parse("name: large\n", "large.yaml")))


def _sources() -> Sources:
    return Sources(lambda model: {"name": model.name}, lambda name: {"set": name}, lambda name: {"mixer": name})


if __name__ == "__main__":
    print(json.dumps(_once(int(sys.argv[1]))))
