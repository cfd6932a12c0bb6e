"""What sharing stages saves: the same grid on the same Ray with shared stages, and with every trial on its own.

`python tests/bench/run.py sharing`. Twelve trials (3 D_B × 2 mixers × 2 seeds) of the built-in tiny model, a little
shorter than the quickstart's. Both ways run through the same code, on as many trials at once, in fresh processes each time,
and take turns at being first, so that nothing differs but what is trained once. The results must be the same bits.

Wall time is that of the whole run, with what it takes Ray to start processes and these to import; `training_seconds` are
those of the trainings alone, over all slots.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from run import machine

from raysweep.api import LoadedSweep, load
from raysweep.cluster.local import connected
from raysweep.cluster.tuner import run_trials
from raysweep.plan.identity import fingerprint
from raysweep.plan.plan import Node, Plan
from raysweep.store.store import Store
from raysweep.trial.job import Job

SLOTS = 2  # trials at once, both ways
SWEEP = {
    "name": "sharing",
    "model": "tiny",
    "grid": {"d_a": ["kvr"], "d_b": ["id", "entityqa", "webqa"], "mixer": ["none/none", "random/none"], "seed": [0, 1]},
    "examples": 48,
    "runtime": {"workers": 1, "cpus_per_worker": 1, "max_trials": SLOTS},
    "familiarity": "all",
    "mixing": {"words": 8},
    "train": {
        "precision": "fp32", "lr": 1.0e-3, "epochs": 20, "stop": "epochs", "max_length": 192,
        "b": {"lr": 5.0e-4, "epochs": 2},
    },
}  # fmt: skip
NUMBERS = ("loss_1", "loss_2", "accuracy_a1", "retention", "accuracy_b")


def measure(*, data_dir: Path, repeats: int = 3) -> dict[str, Any]:
    """Ratios: stage trainings, their seconds and wall time of every trial on its own ÷ shared. Figures: both, and how many
    trials' results differ (0). A first sweep each way warms up and is not counted."""
    told: dict[str, list[_Ran]] = {"shared": [], "apart": []}
    with tempfile.TemporaryDirectory() as folder, connected(None):
        sweep = _sweep(Path(folder))
        for turn in range(-1, repeats):
            ways = list(told) if turn % 2 else list(reversed(told))
            ran = {way: _run(sweep, data_dir, Path(folder) / f"{way}-{turn}", apart=way == "apart") for way in ways}
            if turn >= 0:
                for way, one in ran.items():
                    told[way].append(one)
    differ = sum(
        one.results[trial] != results
        for one, other in zip(told["shared"], told["apart"], strict=True)
        for trial, results in other.results.items()
    )
    figures: dict[str, Any] = {"trials_that_differ": differ, "slots": SLOTS}
    for way, runs in told.items():
        walls = [one.seconds for one in runs]
        figures[f"{way}_seconds"] = round(statistics.median(walls), 2)
        figures[f"{way}_spread"] = round(max(walls) - min(walls), 2)
        figures[f"{way}_training_seconds"] = round(statistics.median(one.training for one in runs), 2)
        figures[f"{way}_stages"] = runs[-1].stages
    ratios = {
        "stages": round(figures["apart_stages"] / figures["shared_stages"], 3),
        "training": round(figures["apart_training_seconds"] / figures["shared_training_seconds"], 3),
        "wall": round(figures["apart_seconds"] / figures["shared_seconds"], 3),
    }
    return {"name": "sharing", "ratios": ratios, "figures": figures, "machine": machine()}


@dataclass(frozen=True, slots=True)
class _Ran:
    """A run: its wall time and the seconds of its trainings, how many they were, and every trial's results."""

    seconds: float
    training: float
    stages: int
    results: dict[str, tuple[Any, ...]]


def _sweep(folder: Path) -> LoadedSweep:
    file = folder / "sharing.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    return load(file)


def _run(sweep: LoadedSweep, data_dir: Path, where: Path, *, apart: bool) -> _Ran:
    store = Store(where)
    plan, jobs = sweep.missing(store, data=data_dir)
    if apart:
        plan, jobs = _on_their_own(plan, jobs)
    began = time.perf_counter()
    outcome = run_trials(sweep.grid.axes, plan, jobs, store)
    seconds = time.perf_counter() - began
    assert len(outcome.done) == len(jobs), outcome.failed
    stages = store.stage_records().values()
    return _Ran(
        seconds,
        sum(record["metrics"]["seconds"] for record in stages),
        len(stages),
        {trial: tuple(store.trial(trial)["metrics"][name] for name in NUMBERS) for trial in jobs},
    )


def _on_their_own(plan: Plan, jobs: dict[str, Job]) -> tuple[Plan, dict[str, Job]]:
    """The same trials with stages that no other has."""
    jobs = {trial: replace(job, chain=tuple(_own(node, trial) for node in job.chain)) for trial, job in jobs.items()}
    stages = {node.id: node for job in jobs.values() for node in job.chain}
    trials = {
        trial: replace(plan.trials[trial], stages=tuple(node.id for node in job.chain)) for trial, job in jobs.items()
    }
    return replace(plan, stages=stages, trials=trials, uses=dict.fromkeys(stages, 1)), jobs


def _own(node: Node, trial: str) -> Node:
    """A stage under a name that only this trial has; its trial's last stage too, which changes nothing."""
    parent = node.parent and fingerprint("own", {"stage": node.parent, "trial": trial})
    return replace(node, id=fingerprint("own", {"stage": node.id, "trial": trial}), parent=parent)
