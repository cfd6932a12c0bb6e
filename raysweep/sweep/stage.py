"""A trial is a chain of stages; this module says what a stage is.

These values are what the layers above work on: `data` reads a `Selection` and a `Mixing`, `learn` a `Training`. All of
them are identity and nothing else; `plan` turns them into ids once the sources are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal

from raysweep.sweep.spec import Model

__all__ = [
    "LETTERS",
    "MicroBatches",
    "Mixing",
    "Selection",
    "Stage",
    "StopAt",
    "TextForm",
    "Training",
    "TrialSpec",
    "steps_per_epoch",
    "total_steps",
    "trained_on",
]

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which examples of which set: in seeded order, after `skip` accepted ones, the next `examples`.

    `id` never appears here: it is D_A's set with D_A's own examples skipped. `marks` is None where prompts have none, and
    `unanswered` where no dialogue keeps a user's last word that nobody answers.
    """

    set: str
    examples: int
    data_seed: int
    familiarity: Literal["all", "unfamiliar", "familiar"]
    skip: int = 0
    marks: Literal["marked"] | None = None
    unanswered: Literal["kept"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """D_M of one stage: `amount` examples of a source.

    `data_seed` is what it is drawn by (`mixing.seed`). `words` is None where the source has no words to count (replay).
    `cut` is `released` only where it changes what is trained: in a stage on a non-factoid set that is not D_A. `draw`
    counts the stages of a chain that mix the same source, from the second on: each draws for itself. It is None in the
    first of them, so that a stage has the same id whether or not others before it mix something else. `order` is
    `shuffled` where a text source is drawn as the released code draws it.
    """

    source: str
    ratio: float
    data_seed: int
    words: int | None
    cut: Literal["described", "released"]
    overlap: Literal["drop", "keep"]
    draw: int | None = None
    order: Literal["shuffled"] | None = None

    def amount(self, *, examples: int, d_a: int) -> int:
        """How many examples of D_M a stage on `examples` examples mixes in; `replay` counts by those of D_A.

        Halves go up, and what mixes a source mixes at least one example of it; a `shuffled` draw rounds down.
        """
        share = Decimal(str(self.ratio)) * (d_a if self.source == "replay" else examples)
        if self.order == "shuffled":
            return int(share)
        return max(1, int(share.to_integral_value(ROUND_HALF_UP)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAt:
    """The resolved stop rule: `epochs` (run them all), `loss` (`hits` steps below `loss`), or `memorized`."""

    rule: Literal["epochs", "loss", "memorized"]
    loss: float | None = None
    hits: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """How the released code cuts a batch: so many examples a device, as many times as the batch has room for that.

    It is a part of what is trained, not of how: nothing of it follows from a runtime's workers or micro-batches.
    """

    examples: int
    devices: int

    @property
    def at_once(self) -> int:
        """How many examples all devices read at a time."""
        return self.examples * self.devices

    def accumulated(self, batch_size: int) -> int:
        """How many times a batch of this size is read from before weights change."""
        return -(-batch_size // self.at_once)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How one stage trains; `batch_size` is global. `order`, `last_batch`, `label_padding` switch the released code's
    departures on (`sampler`, `drop`, `eos`; `fixed` is one order of our own for all epochs).

    So do the last three, which are None where all is as the paper says: `loss_mean` is the micro-batches whose means the
    loss is the mean of, `stop_loss` those of which the last one is compared by the stop rule, and `further_rows` how many
    examples that are not trained on count for the width to which `eos` pads.
    """

    lr: float
    batch_size: int
    epochs: int
    stop: StopAt
    max_length: int
    precision: Literal["fp32", "bf16", "bf16_pure"]
    order: Literal["reshuffled", "fixed", "sampler"]
    last_batch: Literal["keep", "drop"]
    label_padding: Literal["ignore", "eos"]
    weight_decay: float
    warmup: float
    clip: float
    betas: tuple[float, float]
    loss_mean: MicroBatches | None = None
    stop_loss: MicroBatches | None = None
    further_rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextForm:
    """How a conversation becomes tokens where it is not as the paper says; None is the paper's way.

    `targets`: without outer white space. `line_ends`: the line end after an answer that is not the last is trained on too.
    `control_tokens`: those that the data spells out are such tokens.
    """

    targets: Literal["stripped"] | None = None
    line_ends: Literal["trained"] | None = None
    control_tokens: Literal["parsed"] | None = None


def trained_on(count: int, training: Training) -> int:
    """Of `count` examples, how many an epoch trains on: all, but for the rest of a batch where that is dropped.

    Where the loss is a mean over micro-batches, what is dropped is the rest of what is read at a time: an epoch's last
    batch may then be smaller.
    """
    if training.last_batch == "keep":
        return count
    size = min(training.batch_size, training.loss_mean.at_once if training.loss_mean else training.batch_size)
    return count // size * size or count


def steps_per_epoch(count: int, training: Training) -> int:
    """How many steps see each of `count` examples once; the last, smaller batch counts unless it is dropped."""
    return -(-trained_on(count, training) // training.batch_size)


def total_steps(count: int, training: Training) -> int:
    """The steps of all epochs: the length of the learning-rate schedule, whatever ends a stage early."""
    return steps_per_epoch(count, training) * training.epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One training: a letter (`a` is D_A's), examples, mixing data or None, settings, seed.

    Training strips prompts always; `strip` stands in the payload of every id, and is `both` since evaluations have ids
    of their own.
    """

    letter: str
    selection: Selection
    mixing: Mixing | None
    training: Training
    strip: Literal["both", "train_only"] = "both"
    seed: int
    form: TextForm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """One point of a grid, resolved: the model and its chain of stages, and the axis values as declared.

    `strip` says whether evaluations strip prompts too, as training does.
    """

    point: dict[str, Any]
    model: Model
    stages: tuple[Stage, ...]
    strip: Literal["both", "train_only"] = "both"
