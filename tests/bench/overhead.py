"""What a trial takes beside its training: ours against the documented pattern for TorchTrainer under Tune.

`python tests/bench/run.py overhead`. Trials of two steps on the built-in tiny model, one after the other. The reference
(a Tune function that builds a TorchTrainer of one or two workers and fits it, with Ray's defaults) runs the same trial
code, so only what is around it differs. Seconds are from one trial's end to the next one's, the training taken off;
every contender has a Ray and a process of its own, and its first trial, which warms up, is not counted.

`tuned` is the same pattern with what its users can switch on: one worker, `reuse_actors`, and a health check ten times a
second. `per_trial_tuned` compares it with our worker group, `per_trial_warm_tuned` with the warm path.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from run import machine, turns

from raysweep.api import LoadedSweep, load
from raysweep.store.store import Store
from raysweep.trial.job import Job

SWEEP = {
    "name": "overhead",
    "model": "tiny",
    "grid": {"d_a": ["kvr"], "mixer": ["none"]},
    "examples": 8,
    "train": {"precision": "fp32", "lr": 1.0e-3, "epochs": 1, "batch_size": 4, "stop": "epochs"},
}
CONTENDERS = {  # name: trials, runtime
    "stock": (4, {"workers": 1}),
    "tuned": (4, {"workers": 1}),
    "warm": (12, {"workers": 1}),
    "group": (4, {"workers": 1, "isolate": True}),
    "stock_two_workers": (4, {"workers": 2}),
    "two_workers": (12, {"workers": 2}),
}


def measure(*, data_dir: Path | None = None, repeats: int = 3) -> dict[str, Any]:
    """Ratios: seconds of the documented pattern ÷ ours. Figures: seconds a trial beside its training, and how many trials'
    losses differ from the reference's (0)."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for name in turns([*CONTENDERS] * repeats):
        runs[name].append(_in_own_process(name))
    seconds = {name: [run["seconds"] for run in of] for name, of in runs.items()}
    medians = {name: statistics.median(of) for name, of in seconds.items()}
    figures = {f"{name}_seconds": round(value, 3) for name, value in medians.items()}
    figures |= {f"{name}_spread": round(max(of) - min(of), 3) for name, of in seconds.items()}
    figures["losses_differ"] = sum(_differ(runs, ours, stock) for ours, stock in PAIRS.values())
    ratios = {key: round(medians[stock] / medians[ours], 2) for key, (ours, stock) in PAIRS.items()}
    return {"name": "overhead", "ratios": ratios, "figures": figures, "machine": machine()}


PAIRS = {
    "per_trial_warm": ("warm", "stock"),
    "per_trial_group": ("group", "stock"),
    "per_trial_tuned": ("group", "tuned"),
    "per_trial_warm_tuned": ("warm", "tuned"),
    "per_trial_two_workers": ("two_workers", "stock_two_workers"),
}


def _differ(runs: Mapping[str, list[dict[str, Any]]], ours: str, stock: str) -> int:
    reference = runs[stock][0]["losses"]
    return sum(run["losses"][trial] != loss for run in runs[ours] for trial, loss in reference.items())


def _environment() -> dict[str, str]:
    """This process's, with the checkout importable whether or not it is installed."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def _in_own_process(name: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, env=_environment())
    if done.returncode:
        raise SystemExit(f"the contender {name} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _compete(name: str) -> dict[str, Any]:
    trials, runtime = CONTENDERS[name]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        sweep = _sweep(Path(folder), trials, runtime)
        if name.startswith("stock") or name == "tuned":
            _, jobs = sweep.missing(store, data=None)
            _run_as_documented(jobs, Path(folder), tuned=name == "tuned")
        else:
            sweep.run(store=store.url)
            _, jobs = sweep.missing(Store(Path(folder) / "names"), data=None)
        return _told(store, list(jobs))


def _sweep(folder: Path, trials: int, runtime: Mapping[str, Any]) -> LoadedSweep:
    grid = {**SWEEP["grid"], "seed": list(range(trials))}
    file = folder / "overhead.yaml"
    file.write_text(yaml.safe_dump({**SWEEP, "grid": grid, "runtime": {**runtime, "max_trials": 1}}))
    return load(file)


def _run_as_documented(jobs: Mapping[str, Job], folder: Path, *, tuned: bool) -> None:
    """Ray's user guide: a driver function for Tune, a TorchTrainer inside, the callback that reports to Tune."""
    if tuned:
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"  # before Ray starts, whose processes inherit it
    import ray
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from raysweep.trial.execute import execute

    def loop(config: dict[str, Any]) -> None:
        execute(config["job"], report=lambda event: train.report(dict(event)))

    def drive(config: dict[str, Any]) -> None:
        job = jobs[config["trial"]]
        TorchTrainer(
            loop,
            train_loop_config={"job": job},
            scaling_config=train.ScalingConfig(num_workers=job.runtime.workers),
            run_config=train.RunConfig(
                name=job.trial, storage_path=str(folder / "ray"), callbacks=[TuneReportCallback()]
            ),
        ).fit()

    workers = next(iter(jobs.values())).runtime.workers
    ray.init(address="local", num_cpus=max(os.cpu_count() or 1, workers + 1), log_to_driver=False)
    space = {"trial": tune.grid_search(list(jobs))}
    tune.Tuner(
        drive,
        param_space=space,
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=tuned),
        run_config=tune.RunConfig(storage_path=str(folder / "tune")),
    ).fit()
    ray.shutdown()


def _told(store: Store, trials: list[str]) -> dict[str, Any]:
    """Median seconds from one trial's end to the next one's without the training, and the losses."""
    records = sorted((store.trial(trial) for trial in trials), key=lambda record: record["finished"])
    ends = [datetime.fromisoformat(record["finished"]).timestamp() for record in records]
    spent = [record["metrics"]["seconds_1"] for record in records]
    beside = [end - before - trained for before, end, trained in zip(ends, ends[1:], spent[1:], strict=False)]
    return {
        "seconds": statistics.median(beside),
        "losses": {record["id"]: record["metrics"]["loss_1"] for record in records},
    }


if __name__ == "__main__":
    print(json.dumps(_compete(sys.argv[1])))
