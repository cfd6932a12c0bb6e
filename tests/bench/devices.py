"""What a GPU can at most do in bf16, with which offload a Llama's training fits on it, and what memory was used."""

from __future__ import annotations

import re
from pathlib import Path

from shapes import Llama

from raysweep.errors import TrialFailed
from raysweep.learn.engine import TOKENS_AT_ONCE
from raysweep.learn.memory import ModelShape, Need, need, recomputes
from raysweep.sweep.spec import Runtime
from raysweep.sweep.stage import Training

PEAKS = (  # of dense bf16 products, FLOP/s, by makers' data sheets; the first name that the device's contains
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H200 NVL", 835e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A30", 165e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
)


def peak_of(device: str) -> float | None:
    """A device's dense bf16 peak by its name, FLOP/s; None where it is not known, as of a part of a GPU (MIG)."""
    if re.search(r"\bMIG\b", device):
        return None
    return next((peak for name, peak in PEAKS if re.search(rf"\b{name}\b", device)), None)


def offload_that_fits(llama: Llama, *, training: Training, device: int, host: int | None) -> str:
    """`none`, else `optimizer`, with which one worker's training fits `device` and `host` bytes (None: unknown).

    By raysweep's prediction, with as many tokens in a micro-batch as it allows. TrialFailed where neither fits.
    """
    shape = ModelShape(
        weights=llama.weights,
        layers=llama.layers,
        hidden=llama.hidden,
        intermediate=llama.intermediate,
        vocabulary=llama.vocabulary,
    )
    tokens, recomputed = TOKENS_AT_ONCE["cuda"], recomputes(shape, Runtime(), on_gpu=True)
    for offload in ("none", "optimizer"):
        needed = predicted(shape, training=training, offload=offload, tokens=tokens, recomputed=recomputed)
        if needed.device <= device and (host is None or needed.host <= host):
            return offload
    free = "unknown" if host is None else f"{gib(host)} GiB free"
    raise TrialFailed(
        f"with its optimizer offloaded it needs {gib(needed.device)} GiB on the GPU, which has {gib(device)}, and "
        f"{gib(needed.host)} GiB of the machine's memory ({free})"
    )


def predicted(shape: ModelShape, *, training: Training, offload: str, tokens: int, recomputed: bool) -> Need:
    """What one worker of ZeRO-3 needs."""
    runtime = Runtime(zero=3, offload=offload)
    return need(shape, training=training, runtime=runtime, tokens=tokens, recomputed=recomputed)


def resident_gib() -> float | None:
    """The most that was resident of this process, GiB, None where the system does not say."""
    told = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", told.read_text()) if told.exists() else None
    return gib(int(peak[1]) * 1024) if peak else None


def gib(count: int) -> float:
    return round(count / 2**30, 3)
