"""What a stage will need of a device, told before it runs. No weights are loaded and torch is not asked.

Bytes a weight were measured on DeepSpeed 0.19 by counting live storages (tests/learn/test_memory.py does it again);
activations are an estimate for Llama-like layers.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysweep.chain import Training
from raysweep.errors import TrialFailed
from raysweep.spec import Runtime

__all__ = ["Need", "Shape", "free_memory", "need", "refuse_what_does_not_fit", "shape_of"]

BUCKET = 500_000_000  # gradients on their way to their shard, in weights
LOGITS_BYTES = 3 * 4 * 2**27  # float32 logits of one chunk, their softmax and gradient
PER_WEIGHT = {  # precision: weight, gradient, optimizer states with the master copy that ZeRO keeps
    "fp32": (4, 4, 12),
    "bf16": (2, 4, 12),
    "bf16_pure": (2, 2, 6),
}
WITHOUT_ZERO = {"fp32": (4, 4, 8), "bf16": (2, 2, 12), "bf16_pure": (2, 2, 4)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's size: all weights, and what its activations depend on."""

    weights: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes of one worker's device (`host` those of its machine's memory), by what they hold."""

    weights: int
    gradients: int
    states: int
    activations: int
    host: int

    @property
    def held(self) -> int:
        """What stays for the whole stage."""
        return self.weights + self.gradients + self.states

    @property
    def device(self) -> int:
        return self.held + self.activations


def shape_of(folder: Path) -> Shape:
    """A model folder's shape, from config.json and the headers of its safetensors."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    hidden = config.get("hidden_size") or config["n_embd"]
    files = sorted(folder.glob("*.safetensors"))
    shape = {
        "layers": config.get("num_hidden_layers") or config["n_layer"], "hidden": hidden,
        "vocabulary": config["vocab_size"],
        "intermediate": config.get("intermediate_size") or 4 * hidden,
    }
    weights = sum(map(_weights_in, files)) if files else _weights_by(config, **shape)
    return Shape(weights=weights, **shape)


def need(shape: Shape, *, training: Training, runtime: Runtime, tokens: int, recomputed: bool) -> Need:
    """What training a model needs of each worker. `tokens` is the most in one micro-batch, padding included;
    `recomputed` says whether layers' activations are checkpointed."""
    weight, gradient, state = (PER_WEIGHT if runtime.zero else WITHOUT_ZERO)[training.precision]
    share = [runtime.workers if runtime.zero >= stage else 1 for stage in (3, 2, 1)]
    weights, gradients, states = (
        math.ceil(shape.weights * each / parts) for each, parts in zip((weight, gradient, state), share, strict=True)
    )
    host = 0
    if runtime.offload != "none":
        host, states = states + gradients, 0
        gradients = gradients if runtime.zero < 3 else 0
    if runtime.offload == "all":
        host, weights = host + weights, 0
    if runtime.zero == 3:
        gradients += min(BUCKET, shape.weights) * weight
    activations = _activations(shape, tokens, weight, recomputed)
    return Need(weights=weights, gradients=gradients, states=states, activations=activations, host=host)


def refuse_what_does_not_fit(needed: Need, *, available: int, runtime: Runtime) -> None:
    """TrialFailed, with what to change, where even without activations a device of `available` bytes is too small."""
    if needed.held <= available:
        return
    parts = ", ".join(f"{name} {_gib(value)}" for name, value in asdict(needed).items() if value and name != "host")
    raise TrialFailed(
        f"this stage needs {_gib(needed.device)} a worker ({parts}), the device has {_gib(available)}; {_advice(runtime)}"
    )


def free_memory() -> int | None:
    """Bytes of memory that can still be had here: the machine's, or the container's where it is given less.

    None where the system does not say.
    """
    try:
        kilobytes = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    machine = int(kilobytes[1]) * 1024 if kilobytes else None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        files = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no container, or one without a limit (`max`)
        return machine
    rest = limit - used + (int(files[1]) if files else 0)  # copies of files give way
    return min(machine, rest) if machine is not None else rest


def _advice(runtime: Runtime) -> str:
    if runtime.zero < 3:
        return "set runtime.zero to 3, or use more runtime.workers"
    match runtime.offload:
        case "none":
            return "set runtime.offload to optimizer, or use more runtime.workers"
        case "optimizer":
            return "set runtime.offload to all, or use more runtime.workers"
        case _:
            return "use more runtime.workers, or a smaller runtime.micro_batch"


def _activations(shape: Shape, tokens: int, width: int, recomputed: bool) -> int:
    layer = tokens * (16 * shape.hidden + 4 * shape.intermediate) * width
    layers = layer + shape.layers * tokens * shape.hidden * width if recomputed else shape.layers * layer
    return layers + min(LOGITS_BYTES, 12 * tokens * shape.vocabulary)


def _weights_in(file: Path) -> int:
    """Weights in a safetensors file, by its header."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _weights_by(config: dict[str, Any], *, layers: int, hidden: int, vocabulary: int, intermediate: int) -> int:
    """About as many weights as a Llama of this configuration has."""
    heads = config["num_attention_heads"]
    keys = config.get("num_key_value_heads") or heads
    attention = 2 * hidden * hidden + 2 * hidden * hidden * keys // heads
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return layers * (attention + 3 * hidden * intermediate) + embeddings


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
