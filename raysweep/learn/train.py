"""One stage: batches in a seeded order until its last epoch or its stop rule, told and kept along the way."""

from __future__ import annotations

import logging
import math
import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from raysweep.data.encoding import Encoded, Question
from raysweep.errors import TrialFailed
from raysweep.learn import checkpoints as kept
from raysweep.learn.async_checkpoint import AsyncCheckpoint
from raysweep.learn.batches import Batch, batches_from, pad_as_released
from raysweep.learn.engine import Engine, OutOfRoom, Stats
from raysweep.learn.evaluate import Recall
from raysweep.learn.outcome import Progress, StageOutcome
from raysweep.learn.shares import compared_loss, mean_loss, shares_of
from raysweep.learn.teacher_forcing import likely_share
from raysweep.sweep.spec import Every
from raysweep.sweep.stage import StopAt, Training, steps_per_epoch, total_steps

__all__ = ["LossRule", "train"]

log = logging.getLogger(__name__)

TELL_EVERY = 1.0  # seconds


def train(
    engine: Engine,
    examples: Sequence[Encoded],
    *,
    training: Training,
    seed: int,
    tokenizer: Any,
    own: Sequence[Question] = (),
    probes: Mapping[str, Sequence[Question]],
    every: Every,
    checkpoints: Path | None,
    checkpoint_every: float,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> StageOutcome:
    """Train a fresh engine on `examples` (D and D_M together); all ranks call with the same arguments.

    `own` are D's questions, for the stop rule `memorized`; `tokenizer` reads their answers. `probes` are asked along the
    way and at the end, by teacher forcing. `checkpoints` is a folder that holds this stage's state alone, or None to
    keep none: a stage that finds one there goes on from it, bit for bit; one is taken every `checkpoint_every` seconds,
    and written while training goes on. Every rank calls `on_progress`, at the same steps.

    Raises TrialFailed where there is nothing to train on or the loss is no longer finite, StoreError where a checkpoint
    cannot be written, OutOfRoom where a fresh engine with smaller micro-batches, as `checkpoints` then says, goes on.
    """
    if not examples:
        raise TrialFailed("a stage has no examples to train on")
    if training.label_padding == "eos":
        examples = pad_as_released(examples)
    torch.manual_seed(_own_seed(seed, engine.ranks.rank))
    recall = Recall(engine, tokenizer, own)
    stage = _StageRun(engine, training=training, recall=recall, probes=probes, every=every, count=len(examples))
    if checkpoints is not None:
        stage.take_up(kept.resume(checkpoints, engine))
    told_at = 0.0
    with AsyncCheckpoint(engine, checkpoints, every=checkpoint_every) as checkpoint:
        for batch in batches_from(stage.state.step, examples, training=training, seed=seed):
            try:
                stats = engine.step(batch)
            except OutOfRoom as error:
                if checkpoints is not None:
                    kept.limit_tokens(checkpoints, error.tokens)
                raise
            # only rank 0 wishes to tell, so that the sum over ranks is its word
            tell = engine.ranks.rank == 0 and time.monotonic() - told_at >= TELL_EVERY
            tell, *together = engine.ranks.sum([float(tell), *stats.sums, *checkpoint.says()])
            sums, said = together[: len(stats.sums)], together[len(stats.sums) :]
            if not math.isfinite(sum(sums)):
                raise TrialFailed(f"step {batch.step + 1}: the loss is {sum(sums)}; try a smaller learning rate")
            asked = stage.record(batch, stats, sums)
            if stage.stopped_by:
                break
            checkpoint.go_on(said, stage.state)
            if asked or tell:
                on_progress(stage.progress())
                told_at = time.monotonic()
        checkpoint.finish()
    on_progress(stage.progress())
    return stage.outcome()


def _own_seed(seed: int, rank: int) -> int:
    """Where a model drops out, ranks must not drop the same places of their examples; the first rank's seed is the stage's."""
    return seed if rank == 0 else random.Random(f"rank/{seed}/{rank}").getrandbits(63)


class _StageRun:
    """A stage's state and rules while it runs."""

    def __init__(
        self,
        engine: Engine,
        *,
        training: Training,
        recall: Recall,
        probes: Mapping[str, Sequence[Question]],
        every: Every,
        count: int,
    ):
        self.engine = engine
        self.training = training
        self.recall = recall
        self.probes = probes
        self.per_epoch = steps_per_epoch(count, training)
        self.total_steps = total_steps(count, training)
        self.every = every.steps or every.epochs * self.per_epoch
        self.state = kept.State()
        self.rule = LossRule(training.stop)
        self.stopped_by = ""
        self.accuracy: dict[str, float] = {}
        self.began = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def take_up(self, state: kept.State) -> None:
        """Go on from a kept state."""
        self.state = state
        self.rule.hits = state.hits
        self.began = time.monotonic() - state.seconds
        if state.curve and state.step == self.total_steps:
            self.stopped_by = "epochs"

    def record(self, batch: Batch, stats: Stats, sums: Sequence[float]) -> bool:
        """Add a step to the curve, ask the probes where they are due, and see whether the stage ends; True if asked.

        `sums` are the losses of the batch's shares, summed over all ranks.
        """
        state, shares = self.state, shares_of(batch, self.training)
        loss, compared = mean_loss(shares, sums), compared_loss(shares, sums, self.training)
        state.step += 1
        state.tokens += batch.tokens
        row = {
            "step": state.step,
            "epoch": state.step / self.per_epoch,
            "loss": loss,
            "lr": stats.lr,
            "grad_norm": stats.grad_norm,
            "tokens": state.tokens,
        }
        if self.training.stop_loss is not None:
            row["stop_loss"] = compared
        self.stopped_by = self._ending(compared)
        state.hits = self.rule.hits
        asked = bool(self.probes) and (state.step % self.every == 0 or bool(self.stopped_by))
        if asked:
            self.accuracy = {name: likely_share(self.engine, questions) for name, questions in self.probes.items()}
            row |= {f"accuracy_{name}": share for name, share in self.accuracy.items()}
        state.seconds = time.monotonic() - self.began
        state.curve.append(row | {"seconds": state.seconds})
        return asked

    def progress(self) -> Progress:
        last = self.state.curve[-1]
        return Progress(
            step=self.state.step,
            total_steps=self.total_steps,
            epoch=last["epoch"],
            loss=last["loss"],
            lr=last["lr"],
            tokens=self.state.tokens,
            seconds=self.state.seconds,
            accuracy=self.accuracy,
        )

    def outcome(self) -> StageOutcome:
        last = self.state.curve[-1]
        return StageOutcome(
            steps=self.state.step,
            epochs=last["epoch"],
            loss=last["loss"],
            stopped_by=self.stopped_by,
            curve=self.state.curve,
            tokens=self.state.tokens,
            seconds=self.state.seconds,
            peak_memory=_peak_memory(),
        )

    def _ending(self, loss: float) -> str:
        if self.rule.reached(loss):
            return "loss"
        if self.training.stop.rule == "memorized" and self.state.step % self.per_epoch == 0 and self.recall.is_whole():
            return "memorized"
        return "epochs" if self.state.step == self.total_steps else ""


def _peak_memory() -> int:
    """Bytes: the most that tensors took on the GPU, or this process in all on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class LossRule:
    """Counts steps whose loss is below the rule's, in a row or not; other rules never end here."""

    def __init__(self, stop: StopAt, hits: int = 0):
        self.stop = stop
        self.hits = hits

    def reached(self, loss: float) -> bool:
        """Take one step's loss into account: is this the last step?"""
        if self.stop.rule != "loss" or self.stop.loss is None or self.stop.hits is None:
            return False
        self.hits += loss < self.stop.loss
        return self.hits >= self.stop.hits
