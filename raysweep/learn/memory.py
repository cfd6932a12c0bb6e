"""What a stage will need of a device, told before it runs. No weights are loaded and torch is not asked.

Bytes a weight were measured on DeepSpeed 0.19 by counting live storages (tests/learn/test_memory.py does it again);
activations are an estimate for Llama-like layers.
"""

from __future__ import annotations

import json
import logging
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raysweep.errors import TrialFailed
from raysweep.sweep.spec import Runtime, impossible
from raysweep.sweep.stage import Training

__all__ = [
    "Need",
    "Room",
    "ModelShape",
    "asks_at_once",
    "asks_at_once_released",
    "free_memory",
    "need",
    "recomputes",
    "refuse_what_does_not_fit",
    "shape_of",
    "tokens_at_once",
    "usable",
]

log = logging.getLogger(__name__)

CHECKPOINTED_FROM = 10**9  # weights; larger models recompute activations on a GPU rather than keep them
BUCKET = 500_000_000  # gradients on their way to their shard, in weights
LIVE = 1_000_000_000  # weights that ZeRO 3 has together at a time, at most (stage3_max_live_parameters)
FRAGMENTS = 0.03  # of a device are lost between blocks, with expandable segments
CONTEXTS = 2**30  # what NCCL and cuBLAS take of a device at their first use
QUESTIONS_ROOM = 1.2  # of all weights must be free to ask at once: keys, activations and logits come beside them
LOGITS_BYTES = 3 * 4 * 2**27  # float32 logits of one chunk, their softmax and gradient
PER_WEIGHT = {  # precision: weight, gradient, optimizer states with the master copy that ZeRO keeps
    "fp32": (4, 4, 12),
    "bf16": (2, 4, 12),
    "bf16_pure": (2, 2, 6),
}
WITHOUT_ZERO = {"fp32": (4, 4, 8), "bf16": (2, 2, 12), "bf16_pure": (2, 2, 4)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A model's size: all weights, and what its activations depend on."""

    weights: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes of one worker's device (`host` those of its machine's memory), by what they hold.

    While a stage is trained, weights of other workers' shards are together for a while (`gathered`). While it is asked, a
    worker holds `asking` beside its shards, one layer at a time, or, where there is room, all weights (`whole`). All three
    are 0 where its own weights are all of them.
    """

    weights: int
    gradients: int
    states: int
    activations: int
    gathered: int
    asking: int
    whole: int
    host: int

    @property
    def held(self) -> int:
        """What stays for the whole stage."""
        return self.weights + self.gradients + self.states

    @property
    def device(self) -> int:
        """The most at any time."""
        return self.held + max(self.gathered + self.activations, self.asking)


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that one worker may use of a device (None: it trains in the machine's memory) and of its machine's memory
    (None: nobody knows)."""

    device: int | None
    host: int | None

    def holds(self, needed: Need, *, more: int = 0) -> bool:
        """Whether what stays for the whole stage has room, and `more` where the stage is trained."""
        if self.device is None:
            return self.host is None or needed.held + needed.host + more <= self.host
        return needed.held + more <= self.device and (self.host is None or needed.host <= self.host)

    @classmethod
    def least(cls, rooms: Sequence[Room]) -> Room:
        """What each of some workers may use."""
        devices = [room.device for room in rooms if room.device is not None]
        hosts = [room.host for room in rooms if room.host is not None]
        return cls(min(devices, default=None), min(hosts, default=None))


def shape_of(folder: Path) -> ModelShape:
    """A model folder's shape, from config.json and the headers of its safetensors. Raises KeyError where the
    configuration calls its sizes by other names than most models."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    hidden = _size(config, "hidden_size", "n_embd", "d_model", "dim")
    files = sorted(folder.glob("*.safetensors"))
    shape = {
        "layers": _size(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        "hidden": hidden,
        "vocabulary": config["vocab_size"],
        "intermediate": _widest(config.get("intermediate_size") or config.get("ffn_dim") or 4 * hidden),
    }
    weights = sum(map(_weights_in, files)) if files else _weights_by(config, **shape)
    return ModelShape(weights=weights, **shape)


def need(shape: ModelShape, *, training: Training, runtime: Runtime, tokens: int, recomputed: bool) -> Need:
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
    whole = 0 if weights == shape.weights * weight else shape.weights * weight
    embeddings = 2 * shape.vocabulary * shape.hidden * weight
    return Need(
        weights=weights,
        gradients=gradients,
        states=states,
        activations=_activations(shape, tokens, weight, recomputed),
        gathered=min(whole, LIVE * weight),
        asking=min(whole, embeddings + whole // max(1, shape.layers)),
        whole=whole,
        host=host,
    )


def recomputes(shape: ModelShape, runtime: Runtime, *, on_gpu: bool) -> bool:
    """Whether activations are recomputed in the backward pass rather than kept."""
    if runtime.gradient_checkpointing is not None:
        return runtime.gradient_checkpointing
    return on_gpu and shape.weights > CHECKPOINTED_FROM


def asks_at_once(shape: ModelShape, *, training: Training, runtime: Runtime, room: Room) -> bool:
    """Whether there is room for all weights on every worker while a stage is asked, and for the questions."""
    needed = need(shape, training=training, runtime=runtime, tokens=0, recomputed=True)
    return room.holds(needed, more=math.ceil(QUESTIONS_ROOM * needed.whole))


def asks_at_once_released(shape: ModelShape, *, training: Training, runtime: Runtime, room: Room) -> bool:
    """The same once gradients, optimizer and master weights are gone."""
    needed = need(shape, training=training, runtime=runtime, tokens=0, recomputed=True)
    left = replace(needed, gradients=0, states=0, host=needed.host if runtime.offload == "all" else 0)
    return room.holds(left, more=math.ceil(QUESTIONS_ROOM * needed.whole))


def refuse_what_does_not_fit(shape: ModelShape, *, training: Training, runtime: Runtime, room: Room) -> None:
    """TrialFailed, with what would fit, where there is too little room even without activations."""
    needed = need(shape, training=training, runtime=runtime, tokens=0, recomputed=True)
    if room.holds(needed):
        return
    passing = ("gathered", "asking", "whole")
    stays = {name: value for name, value in asdict(needed).items() if value and name not in passing}
    parts = ", ".join(f"{name} {_gib(value)}" for name, value in stays.items())
    places = {"the device": room.device, "the machine's free memory": room.host}
    found = ", ".join(f"{name} {_gib(size)} a worker" for name, size in places.items() if size is not None)
    advice = _what_fits(shape, training, runtime, room)
    raise TrialFailed(f"this stage needs {parts} for each worker and activations; there is: {found}; {advice}")


def tokens_at_once(
    shape: ModelShape,
    *,
    training: Training,
    runtime: Runtime,
    available: int,
    longest: int,
    most: int,
    recomputed: bool,
) -> int:
    """Tokens of a micro-batch whose activations should have room on a device of `available` bytes: `most` at best, and
    `longest`, the longest example, at least."""

    def needed(tokens: int) -> Need:
        return need(shape, training=training, runtime=runtime, tokens=tokens, recomputed=recomputed)

    while most > longest and _while_trained(needed(most)) > available:
        most //= 2
    most = max(most, longest)
    least = needed(most)
    if least.device > available:
        log.warning(
            "beside %s that stay, a stage needs about %s for an example of %d tokens, and %s while it is asked; the device "
            "has %s and may run out: gradient_checkpointing, offload or more workers under runtime help",
            _gib(least.held), _gib(least.activations), longest, _gib(least.asking), _gib(available),
        )  # fmt: skip
    return most


def usable(free: int, *, own: int) -> int:
    """Bytes of a device for tensors, of those that are free and this process's `own`; others may use the same device."""
    return max(0, math.floor((free + own) * (1 - FRAGMENTS)) - CONTEXTS)


def _while_trained(needed: Need) -> int:
    return needed.held + needed.gathered + needed.activations


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


def _what_fits(shape: ModelShape, training: Training, runtime: Runtime, room: Room) -> str:
    """The smallest change of the runtime for which there is room, by the same count."""

    def fits(**change: Any) -> bool:
        changed = {"zero": runtime.zero, "offload": runtime.offload, "workers": runtime.workers, **change}
        if impossible(training.precision, zero=changed["zero"], offload=changed["offload"]):
            return False
        other = runtime.model_copy(update=changed)
        return room.holds(need(shape, training=training, runtime=other, tokens=0, recomputed=True))

    def words(change: dict[str, Any]) -> str:
        new = {name: value for name, value in change.items() if value != getattr(runtime, name)}
        return " and ".join(f"runtime.{name} {value}" for name, value in new.items())

    here = ({"zero": 3, "offload": offload} for offload in ("none", "optimizer", "all"))
    wider = ({"workers": runtime.workers * 2**power, "zero": 3} for power in range(1, 11))
    found = [words(change) for some in (here, wider) if (change := next((one for one in some if fits(**one)), None))]
    return f"set {', or '.join(found)}" if found else "use a smaller model or larger devices"


def _widest(size: int | list[int]) -> int:
    """Some families have a size for every layer."""
    return max(size) if isinstance(size, list) else size


def _size(config: dict[str, Any], *names: str) -> int:
    """A size, by the first of its names that the configuration has."""
    found = next((config[name] for name in names if config.get(name)), None)
    if found is None:
        raise KeyError(f"none of {', '.join(names)} in config.json")
    return found


def _activations(shape: ModelShape, tokens: int, width: int, recomputed: bool) -> int:
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
