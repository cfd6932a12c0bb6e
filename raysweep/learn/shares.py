"""What a step's loss is a mean over: all target tokens of the batch, or micro-batches as the released code cuts them.

A share is examples whose summed loss is divided by one number. How many workers hold a share, and in how many passes, changes
nothing: shares are cut from the global batch alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raysweep.data.encoding import Encoded
from raysweep.learn.batches import Batch
from raysweep.sweep.stage import MicroBatches, Training

__all__ = ["Share", "compared_loss", "mean_loss", "shares_of"]


@dataclass(frozen=True, slots=True)
class Share:
    """Examples, their target tokens, what their summed loss is divided by, and whether they are read last."""

    examples: tuple[Encoded, ...]
    tokens: int
    divisor: int
    last: bool = True


def shares_of(batch: Batch, training: Training) -> list[Share]:
    """The shares of a batch; one, unless a mean over micro-batches or the last one of them is asked for.

    The released code lets all micro-batches of a batch weigh the same, however many tokens they have, and divides by as many
    as a whole batch has: a smaller batch, at the end of an epoch, moves the weights by less.
    """
    cut, whole = training.loss_mean or training.stop_loss, batch.target_tokens
    if cut is None:
        return [Share(batch.examples, whole, whole)]
    times = cut.accumulated(training.batch_size)
    found = []
    for parts, last in _micro_batches(batch.examples, cut):
        for part in parts:
            tokens = max(1, _target_tokens(part))
            divisor = tokens * len(parts) * times if training.loss_mean else whole
            found.append(Share(part, tokens, divisor, last))
    return found


def mean_loss(shares: Sequence[Share], sums: Sequence[float]) -> float:
    """The loss of a step, from the summed loss of each share: a mean, whatever is missing of a whole batch."""
    weight = sum(share.tokens / share.divisor for share in shares)
    return sum(loss / share.divisor for share, loss in zip(shares, sums, strict=True)) / weight


def compared_loss(shares: Sequence[Share], sums: Sequence[float], training: Training) -> float:
    """What the stop rule compares: the step's loss, or what the released code's last micro-batches add to it."""
    if training.stop_loss is None:
        return mean_loss(shares, sums)
    last = [loss / share.tokens for share, loss in zip(shares, sums, strict=True) if share.last]
    return sum(last) / len(last) / training.stop_loss.accumulated(training.batch_size)


def _micro_batches(
    examples: tuple[Encoded, ...], cut: MicroBatches
) -> Iterator[tuple[list[tuple[Encoded, ...]], bool]]:
    """What the devices read at a time, one part each, and whether it is the last time: the released code's sampler gives
    its devices examples in turn."""
    for start in range(0, len(examples), cut.at_once):
        here = examples[start : start + cut.at_once]
        parts = [here[device :: cut.devices] for device in range(min(cut.devices, len(here)))]
        yield parts, start + cut.at_once >= len(examples)


def _target_tokens(examples: Sequence[Encoded]) -> int:
    return int(sum(example.targets.sum() for example in examples))
