"""What sharing stages saves: the same grid on the same Ray with shared stages, and with every trial on its own.

`python tests/bench/run.py sharing`. Twelve trials (3 D_B × 2 mixers × 2 seeds) of the built-in tiny model, a little
shorter than the quickstart's; both ways run through the same code, so that nothing differs but what is trained once. The
results must be the same bits.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from run import machine

from raysweep.api import LoadedSweep, load
from raysweep.cluster.local import connected
from raysweep.cluster.tuner import run_trials
from raysweep.execute import Job
from raysweep.identity import fingerprint
from raysweep.plan import Node, Plan
from raysweep.store import Store

SWEEP = {
    "name": "sharing",
    "model": "tiny",
    "grid": {"d_a": ["kvr"], "d_b": ["id", "entityqa", "webqa"], "mixer": ["none/none", "random/none"], "seed": [0, 1]},
    "examples": 48,
    "familiarity": "all",
    "mixing": {"words": 8},
    "train": {
        "precision": "fp32", "lr": 1.0e-3, "epochs": 20, "stop": "epochs", "max_length": 192,
        "b": {"lr": 5.0e-4, "epochs": 2},
    },
}  # fmt: skip
NUMBERS = ("loss_1", "loss_2", "accuracy_a1", "retention", "accuracy_b")


def measure(*, data_dir: Path, repeats: int = 3) -> dict[str, Any]:
    """Ratios: stage trainings and wall time of every trial on its own ÷ shared. Figures: both, and how many trials' results
    differ (0). A first sweep warms up and is not counted."""
    told: dict[str, list[float]] = {"shared": [], "apart": []}
    with tempfile.TemporaryDirectory() as folder, connected(None):
        sweep = _sweep(Path(folder))
        _run(sweep, data_dir, Path(folder) / "warm", apart=False)
        for turn in range(repeats):
            ran = {way: _run(sweep, data_dir, Path(folder) / f"{way}-{turn}", apart=way == "apart") for way in told}
            for way, (seconds, _, _) in ran.items():
                told[way].append(seconds)
    differ = sum(ran["shared"][2][trial] != results for trial, results in ran["apart"][2].items())
    walls = {way: statistics.median(seconds) for way, seconds in told.items()}
    figures = {f"{way}_seconds": round(wall, 2) for way, wall in walls.items()}
    figures |= {f"{way}_spread": round(max(seconds) - min(seconds), 2) for way, seconds in told.items()}
    figures |= {f"{way}_stages": ran[way][1] for way in told} | {"trials_that_differ": differ}
    ratios = {
        "stages": round(ran["apart"][1] / ran["shared"][1], 3),
        "wall": round(walls["apart"] / walls["shared"], 3),
    }
    return {"name": "sharing", "ratios": ratios, "figures": figures, "machine": machine()}


def _sweep(folder: Path) -> LoadedSweep:
    file = folder / "sharing.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    return load(file)


def _run(
    sweep: LoadedSweep, data_dir: Path, where: Path, *, apart: bool
) -> tuple[float, int, dict[str, tuple[Any, ...]]]:
    """Seconds, stage trainings, and every trial's results."""
    store = Store(where)
    plan, jobs = sweep.missing(store, data=data_dir)
    if apart:
        plan, jobs = _on_their_own(plan, jobs)
    began = time.perf_counter()
    outcome = run_trials(sweep.grid.axes, plan, jobs, store)
    seconds = time.perf_counter() - began
    assert len(outcome.done) == len(jobs), outcome.failed
    results = {trial: tuple(store.trial(trial)["metrics"][name] for name in NUMBERS) for trial in jobs}
    return seconds, len(store.stage_ids()), results


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
