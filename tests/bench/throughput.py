"""Tokens a second and model FLOP utilisation of Llama shapes, random weights: ZeRO-3 on one worker, bf16, no Ray.

`python tests/bench/run.py throughput`. Shapes: those of Llama-3.2-1B and Llama-3-8B on a GPU, as far as their training
fits by raysweep's own prediction, else with the optimizer offloaded, else left out with a line that says why; and
`small`, a few steps of the size of `tiny`, which runs anywhere and says nothing about speed. Their weights, up to
15 GiB, are written into a temporary folder (TMPDIR), one shape's at a time.

Stages are those of `train`, 32 examples a step; lengths are by the tokenizer of `tiny`, which makes more tokens of a
word than Llama's. Figures of each shape and stage:

- `seconds` a step after the warm-up (median of the repeats, `spread` between them), `tokens` a step and
  `tokens_per_second`: useful ones, without padding
- `model_flops` a step: 6 × weights × tokens + 12 × layers × hidden × pairs of tokens of which one sees the other
  (`shapes`); recomputation does not count. `mfu`: these a second ÷ the device's dense bf16 peak, None where that is not
  known, as on a CPU. `mfu_products` leaves out input embeddings, and logits of tokens that are no targets
- `peak_gib`: the most that PyTorch allocated on the GPU, on a CPU the most that was resident (libraries too), beside
  `predicted_gib`; with a GPU `host_gib` and `predicted_host_gib` tell of the machine's memory
- `packed`: whether a varlen kernel took batches without padding; `attention`, `offload`, and the last `loss`

Ratios `packed_*`, on a GPU: seconds of SDPA on length-sorted micro-batches (`*_sorted_*`) ÷ seconds of packed batches.

`gpu.py` measures the same in less time, on lengths instead of examples.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from devices import gib, offload_that_fits, peak_of, resident_gib
from run import machine, turns
from shapes import SHAPES, Llama, model_flops, product_flops, write_random
from train import SETTINGS, STEPS, WARM_UP, examples_of

from raysweep.errors import TrialFailed
from raysweep.learn.batches import Batch, MicroBatch
from raysweep.learn.engine import Engine
from raysweep.learn.memory import free_memory, need, recomputes, shape_of
from raysweep.learn.model import load_tokenizer, prepare
from raysweep.sweep.spec import Runtime

HERE = Path(__file__).resolve().parent
TRAINING = replace(SETTINGS, precision="bf16")
SMALL_BATCH, SMALL_STEPS = 8, 2
LIMIT = 1800.0  # seconds of one run, its loading included
NO_MEMORY = re.compile("out of memory|not enough memory|cannot allocate memory", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is measured in one process; `attention` is the engine's `own` choice, or `sdpa` where that is another."""

    shape: str
    stage: str
    attention: str
    offload: str

    @property
    def name(self) -> str:
        return f"{self.shape}_{self.stage}{'' if self.attention == 'own' else '_sorted'}"


def measure(*, data_dir: Path, repeats: int = 3) -> dict[str, Any]:
    """Figures as above, `*_left_out` and `*_failed` with what does not fit; ratios of packed batches to sorted ones."""
    figures, offloads = _chosen()
    ways = _ways()
    runs: dict[Case, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as place:
        for shape, _, stage, way in turns(product(offloads, range(repeats), STEPS, ways)):
            case = Case(shape=shape, stage=stage, attention=way, offload=offloads[shape])
            if f"{case.name}_failed" in figures:
                continue
            folder = _written(shape, Path(place))
            try:
                told = _in_own_process(case, folder, data_dir)
            except TrialFailed as error:
                figures[f"{case.name}_failed"] = str(error)
                continue
            runs.setdefault(case, []).append(told)
    for case, told in runs.items():
        figures |= _figures(case, told, peak=figures["peak_flops"])
    return {"name": "throughput", "ratios": _ratios(runs, figures), "figures": figures, "machine": machine()}


def batches_of(case: Case, folder: Path, data_dir: Path) -> list[Batch]:
    """The batches of a run, those of the warm-up first."""
    small = case.shape == "small"
    size = SMALL_BATCH if small else TRAINING.batch_size
    examples = examples_of(case.stage, load_tokenizer(folder), data_dir)
    steps = range(WARM_UP + (SMALL_STEPS if small else STEPS[case.stage]))
    return [Batch(step, 0, tuple(examples[step * size : (step + 1) * size])) for step in steps]


def _ways() -> tuple[str, ...]:
    """Sorted batches are told beside packed ones where these can be: on a GPU."""
    return ("own", "sdpa") if torch.cuda.is_available() else ("own",)


def _chosen() -> tuple[dict[str, Any], dict[str, str]]:
    """Figures that tell of the device and of what is left out; and what is offloaded of the other shapes."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    figures: dict[str, Any] = {"peak_flops": peak_of(device)}
    if figures["peak_flops"] is None:
        figures["mfu_left_out"] = f"no bf16 peak is known of {device}"
    offloads: dict[str, str] = {}
    for name, llama in SHAPES.items():
        try:
            offloads[name] = "none" if name == "small" else _offload_here(llama)
        except TrialFailed as error:
            figures[f"{name}_left_out"] = str(error)
    return figures, offloads


def _offload_here(llama: Llama) -> str:
    if not torch.cuda.is_available():
        raise TrialFailed("there is no GPU here")
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < 2.1 * llama.weights:
        raise TrialFailed(
            f"its weights are {gib(2 * llama.weights)} GiB, {tempfile.gettempdir()} has {gib(free)} free; set TMPDIR"
        )
    total = torch.cuda.get_device_properties(0).total_memory
    return offload_that_fits(llama, training=TRAINING, device=total, host=free_memory())


def _written(shape: str, place: Path) -> Path:
    """The folder of a shape's weights, and of no other's."""
    folder = place / "weights" / shape
    if not folder.exists():
        shutil.rmtree(folder.parent, ignore_errors=True)
        write_random(SHAPES[shape], folder, tokenizer=prepare("tiny", None, cache=place))
    return folder


def _figures(case: Case, told: Sequence[dict[str, Any]], *, peak: float | None) -> dict[str, Any]:
    seconds = [one["seconds"] for one in told]
    middle = statistics.median(seconds)
    last = dict(told[-1])
    products = last.pop("product_flops")
    figures = last | {
        "seconds": round(middle, 4),
        "spread": round(max(seconds) - min(seconds), 4),
        "tokens_per_second": round(last["tokens"] / middle),
        "model_flops_per_second": round(last["model_flops"] / middle),
        "mfu": peak and round(last["model_flops"] / middle / peak, 4),
        "mfu_products": peak and round(products / middle / peak, 4),
        "peak_gib": max(one["peak_gib"] for one in told),
        "offload": case.offload,
    }
    return {f"{case.name}_{key}": value for key, value in figures.items()}


def _ratios(runs: dict[Case, Any], figures: dict[str, Any]) -> dict[str, float]:
    own = [case for case in runs if case.attention == "own" and replace(case, attention="sdpa") in runs]
    return {
        f"packed_{case.name}": round(figures[f"{case.name}_sorted_seconds"] / figures[f"{case.name}_seconds"], 3)
        for case in own
    }


def _in_own_process(case: Case, folder: Path, data_dir: Path) -> dict[str, Any]:
    """What a run told; TrialFailed where it took too much memory or time."""
    command = [sys.executable, __file__, json.dumps(asdict(case)), str(folder), str(data_dir)]
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise TrialFailed(f"not done after {LIMIT:.0f} s, offload {case.offload}") from None
    if done.returncode == -signal.SIGKILL:
        raise TrialFailed(f"killed, as systems do when memory runs out, offload {case.offload}")
    if done.returncode:
        raise RuntimeError(f"{case.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    if "failed" in told:
        raise TrialFailed(told["failed"])
    return told


class Watched(Engine):
    """An engine that notes the widest micro-batch it was given, padding included."""

    widest = 0

    def place(self, part: MicroBatch) -> tuple[Any, ...]:
        self.widest = max(self.widest, part.tokens_BL.size)
        return super().place(part)


def _run(case: Case, folder: Path, data_dir: Path) -> dict[str, Any]:
    """One run's figures: means over the steps after the warm-up."""
    batches = batches_of(case, folder, data_dir)
    runtime = Runtime(zero=3, offload=case.offload)
    with Watched(folder, training=TRAINING, total_steps=len(batches), runtime=runtime) as engine:
        if case.attention == "sdpa":
            engine.model.set_attn_implementation("sdpa")
            engine.packed = False
        seconds, losses = zip(*clocked(engine, batches), strict=True)
        told = {"seconds": statistics.fmean(seconds[WARM_UP:]), "loss": round(losses[-1], 4)}
        told |= {"packed": engine.packed, "attention": engine.facts()["attention"]}
        return told | work(SHAPES[case.shape], batches[WARM_UP:]) | memory_of(engine)


def clocked(engine: Engine, batches: Sequence[Batch]) -> Iterator[tuple[float, float]]:
    """Seconds and mean loss of every step; a GPU's work counts until it is done."""
    for batch in batches:
        began = time.perf_counter()
        stats = engine.step(batch)
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        yield time.perf_counter() - began, stats.loss_sum / batch.target_tokens


def work(llama: Llama, batches: Sequence[Batch]) -> dict[str, float]:
    """Useful tokens and FLOPs a step."""
    lengths = [len(example) for batch in batches for example in batch.examples]
    targets = sum(batch.target_tokens for batch in batches)
    return {
        "tokens": sum(lengths) / len(batches),
        "model_flops": model_flops(llama, lengths) / len(batches),
        "product_flops": product_flops(llama, lengths, targets=targets) / len(batches),
    }


def memory_of(engine: Watched) -> dict[str, float | None]:
    """Peaks and what was predicted of them, GiB."""
    shape = shape_of(engine.folder)
    on_gpu = engine.device.type == "cuda"
    recomputed = recomputes(shape, engine.runtime, on_gpu=on_gpu)
    given = {"training": engine.training, "runtime": engine.runtime}
    needed = need(shape, **given, tokens=engine.widest, recomputed=recomputed)
    if not on_gpu:
        return {"peak_gib": resident_gib(), "predicted_gib": gib(needed.device + needed.host)}
    peaks = {"peak_gib": gib(torch.cuda.max_memory_allocated(engine.device)), "host_gib": resident_gib()}
    return peaks | {"predicted_gib": gib(needed.device), "predicted_host_gib": gib(needed.host)}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", type=lambda told: Case(**json.loads(told)))
    parser.add_argument("folder", type=Path)
    parser.add_argument("data_dir", type=Path)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    logging.disable(logging.WARNING)
    try:
        told = _run(chosen.case, chosen.folder, chosen.data_dir)
    except (TrialFailed, MemoryError, RuntimeError) as error:
        if not isinstance(error, TrialFailed | MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        told = {"failed": str(error)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
