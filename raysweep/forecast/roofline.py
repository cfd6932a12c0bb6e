"""Worker-seconds of a stage by what its machine must at least do: products, weights read, shards gathered, the optimizer's
traffic, weights loaded and saved. Rates are what such machines sustain, not what their data sheets say."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from raysweep.learn.memory import CHECKPOINTED_FROM
from raysweep.sweep.spec import Runtime

__all__ = ["CPU", "GPU", "Machine", "Spent", "Work", "spent_on"]

EVALUATED = 1.1  # a stage's steps with its evaluations, against its steps alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one worker sustains: FLOP/s of products; bytes a second of its memory, to other workers, to its machine's memory
    and optimizer there, and to the disk; tokens of one pass at most."""

    flops: float
    memory: float
    link: float
    host: float
    disk: float
    pass_tokens: int

    def times(self, devices: float) -> Machine:
        """Several devices, or a part of one, for each worker."""
        return replace(self, flops=self.flops * devices, memory=self.memory * devices)


GPU = Machine(flops=4e14, memory=2.5e12, link=3e11, host=2.5e10, disk=1e9, pass_tokens=16384)  # of the H100's class
CPU = Machine(flops=1e11, memory=2e10, link=2e9, host=2e10, disk=1e9, pass_tokens=8192)  # a few cores, as with `tiny`

WIDTH = {"fp32": 4, "bf16": 2, "bf16_pure": 2}  # bytes of a weight in a pass
# Bytes a weight that AdamW reads and writes: the gradient, both moments and the master copy twice, the new weight.
OPTIMIZER = {"fp32": 28, "bf16": 30, "bf16_pure": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage does: a model of so many weights, in steps of `batch` examples, over `tokens` in all."""

    weights: int
    precision: str
    steps: int
    tokens: float
    batch: int


@dataclass(frozen=True, slots=True)
class Spent:
    """Worker-seconds of a stage: those of its steps, and those before and after them."""

    steps: float
    files: float

    @property
    def whole(self) -> float:
        return self.steps + self.files


def spent_on(work: Work, runtime: Runtime, machine: Machine) -> Spent:
    """In a step the slowest of what overlaps, then the optimizer; before and after, weights are loaded and saved."""
    width = WIDTH[work.precision]
    files = runtime.workers * 2 * work.weights * width / machine.disk
    if not work.steps:
        return Spent(0.0, files)
    tokens = work.tokens / work.steps / runtime.workers
    passes = max(1, math.ceil(tokens / machine.pass_tokens))
    if runtime.micro_batch:
        passes = max(passes, math.ceil(work.batch / runtime.workers / runtime.micro_batch))
    reads = 4 if _recomputes(work, runtime, machine) else 3  # forward, the backward pass by two, and forward again
    products = 2 * reads * work.weights * tokens / machine.flops
    traffic = passes * reads * work.weights * width / machine.memory
    step = max(products, traffic, _gathering(work, runtime, machine, passes)) + _updating(work, runtime, machine)
    return Spent(runtime.workers * EVALUATED * work.steps * step, files)


def _recomputes(work: Work, runtime: Runtime, machine: Machine) -> bool:
    if runtime.gradient_checkpointing is not None:
        return runtime.gradient_checkpointing
    return machine.pass_tokens == GPU.pass_tokens and work.weights > CHECKPOINTED_FROM


def _gathering(work: Work, runtime: Runtime, machine: Machine, passes: int) -> float:
    """ZeRO-3 brings weights together for both directions of every pass, and adds gradients up; below it, the last alone."""
    others = (runtime.workers - 1) / runtime.workers
    times = 3 * passes if runtime.zero == 3 else 2
    gathered = times * others * work.weights * WIDTH[work.precision] / machine.link
    fetched = 2 * passes * work.weights * WIDTH[work.precision] / machine.host if runtime.offload == "all" else 0.0
    return gathered + fetched


def _updating(work: Work, runtime: Runtime, machine: Machine) -> float:
    shard = work.weights / (runtime.workers if runtime.zero else 1)
    bandwidth = machine.memory if runtime.offload == "none" else machine.host
    return OPTIMIZER[work.precision] * shard / bandwidth
