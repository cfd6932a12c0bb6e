"""How fast stages are committed and read: what a sweep pays to its store beside training, on a disk.

`own` below is the code that runs. The same numbers of another checkout are those of this file under its PYTHONPATH; with
`RAYSWEEP_BENCH_BEFORE=DIR` that checkout is measured in turn with ours, each in a process of its own, and ratios are given.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from run import machine, turns

STAGES = 1_000
WEIGHTS = 16_384  # bytes in each of two files
MOST = 200  # trials


def measure(*, data_dir: Path | None = None, repeats: int = 3, stages: int = STAGES) -> dict[str, Any]:
    """Figures: milliseconds a stage or a trial; ratios: another checkout's ÷ ours. `data_dir` is not needed."""
    before = os.environ.get("RAYSWEEP_BENCH_BEFORE")
    checkouts = {"ours": str(Path(__file__).parents[2])} | ({"before": before} if before else {})
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in turns(range(repeats)):
        for name, checkout in checkouts.items():
            taken[name].append(_in_own_process(checkout, stages))
    medians = {
        name: {key: statistics.median(one[key] for one in each) for key in each[0]} for name, each in taken.items()
    }
    figures: dict[str, Any] = {f"{key}_ms": round(value, 4) for key, value in medians["ours"].items()}
    ratios = {}
    if before:
        figures |= {f"before_{key}_ms": round(value, 4) for key, value in medians["before"].items()}
        ratios = {key: round(medians["before"][key] / value, 2) for key, value in medians["ours"].items()}
    return {"name": "store", "ratios": ratios, "figures": figures | {"stages": stages}, "machine": machine()}


def _in_own_process(checkout: str, stages: int) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": checkout, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(stages)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def once(folder: Path, stages: int) -> dict[str, float]:
    """Milliseconds for each of the things that are done with stages and trials, in a new store."""
    from raysweep.store.evaluations import Evaluated
    from raysweep.store.store import Store

    store = Store(folder)
    nodes = [_node(number) for number in range(stages)]
    answers = [
        {
            "example": str(n),
            "prompt": "who?",
            "target": "t",
            "golds": ["t"],
            "prediction": "t",
            "whole": True,
            "score": 1.0,
        }
        for n in range(20)
    ]
    curve = [{"step": step, "epoch": step / 3, "loss": 1 / step, "lr": 1e-3} for step in range(1, 21)]
    record = {"metrics": {"evaluations": []}, "engine": {}, "data": {"set": {"digest": "d" * 64}, "mixing": None}}

    def commit(number: int) -> None:
        made = [
            Evaluated(f"{number:08x}{letter * 8}", {"accuracy": 1.0, "config": {"n": 1}}, answers) for letter in "ab"
        ]
        with store.aside() as aside:
            (aside / "weights").mkdir()
            for name in ("config.json", "model.safetensors"):
                (aside / "weights" / name).write_bytes(bytes([number % 256]) * WEIGHTS)
            store.commit_stage(nodes[number], aside, record, curve=curve, evaluations=made)

    def evaluations(number: int) -> None:
        home = f"stages/{nodes[number].slug}-{nodes[number].id}"
        assert len(store.evaluations.made(home, [f"{number:08x}{letter * 8}" for letter in "ab"])) == 2

    def weights(number: int) -> None:
        stage = store.stage(nodes[number])
        assert stage is not None and store.weights(stage, folder / "into") is not None

    def trial(number: int) -> None:
        store.commit_trial(f"{number:016x}", {"status": "done"}, evals=[{"stage": 1}], predictions=answers)

    few = min(stages, MOST)
    told = {
        "commit_stage": _each(commit, stages),
        "read_all_records": _each(lambda _: store.stage_records(), 3) / stages,
        "read_evaluations": _each(evaluations, stages),
        "read_weights": _each(weights, stages),
        "commit_trial": _each(trial, few),
        "finished_trials": _each(lambda _: store.finished([f"{n:016x}" for n in range(few)]), 3) / few,
        "drop_weights": _each(lambda number: store.drop_weights(f"{nodes[number].slug}-{nodes[number].id}"), few),
    }
    return told


def _each(call: Callable[[int], object], times: int) -> float:
    """Milliseconds a call."""
    began = time.perf_counter()
    for number in range(times):
        call(number)
    return 1e3 * (time.perf_counter() - began) / times


def _node(number: int) -> Any:
    from raysweep.plan.plan import Node

    return Node(f"{number:016x}", "kvr-none-s0", None, None, {"recipe": 1, "number": number})


def main(arguments: Sequence[str]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="raysweep-bench-"))
    try:
        print(json.dumps(once(folder / "store", int(arguments[0]))))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
