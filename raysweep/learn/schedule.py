"""The learning rate of a step, and when a stage ends."""

from __future__ import annotations

import math

from raysweep.sweep.stage import StopAt, Training

__all__ = ["LossRule", "rate"]


def rate(step: int, total_steps: int, training: Training) -> float:
    """Cosine over all epochs after a linear warm-up over the first share of all steps (the paper, training details).

    As Transformers' schedule has it, which the released code uses: step 0 of a warm-up has rate 0. A stage of one step
    has no warm-up, or it would not learn at all.
    """
    warmup = math.ceil(total_steps * training.warmup) if total_steps > 1 else 0
    if step < warmup:
        return training.lr * step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return training.lr * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


class LossRule:
    """Counts steps whose global-batch loss is below the rule's, in a row or not; other rules never end here."""

    def __init__(self, stop: StopAt, hits: int = 0):
        self.stop = stop
        self.hits = hits

    def reached(self, loss: float) -> bool:
        """Take one step's loss into account: is this the last step?"""
        if self.stop.rule != "loss" or self.stop.loss is None or self.stop.hits is None:
            return False
        self.hits += loss < self.stop.loss
        return self.hits >= self.stop.hits
