"""Which examples make a step, and how a step is cut into micro-batches.

A global batch follows from the seed alone. How many workers share it, and how finely it is cut, changes which padding
is computed and nothing else: the same examples per step, the same loss up to rounding.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raysweep.data.encoding import Encoded
from raysweep.sweep.stage import Training, steps_per_epoch, trained_on

__all__ = [
    "Batch",
    "MicroBatch",
    "batches_from",
    "collate",
    "deal",
    "pack",
    "pad_as_released",
    "partition",
]


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimizer step's examples; `step` counts from 0 over all epochs, `epoch` is the one it belongs to."""

    step: int
    epoch: int
    examples: tuple[Encoded, ...]

    @property
    def target_tokens(self) -> int:
        """What the loss is divided by, on every rank."""
        return int(sum(example.targets.sum() for example in self.examples))

    @property
    def tokens(self) -> int:
        return sum(len(example) for example in self.examples)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Padded arrays of one forward pass, B examples of at most L tokens, N target tokens.

    `tokens_BL` int64; `source_N` int64 indexes into B·L the positions whose next token is a target; `labels_N` int64
    are those next tokens. Padding stands on the right, where a causal model never sees it; or B is 1, the examples stand
    one after the other, `positions_BL` begins again with each, and `starts_M`, int32, has where each starts and the
    end of the last (None otherwise).
    """

    tokens_BL: np.ndarray
    source_N: np.ndarray
    labels_N: np.ndarray
    positions_BL: np.ndarray | None = None
    starts_M: np.ndarray | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest packed example; 0 where they are padded."""
        return 0 if self.starts_M is None else int(np.diff(self.starts_M).max())

    @property
    def examples(self) -> int:
        return len(self.tokens_BL) if self.positions_BL is None else int((self.positions_BL == 0).sum())


def batches_from(step: int, examples: Sequence[Encoded], *, training: Training, seed: int) -> Iterator[Batch]:
    """The batches of a stage from `step` on, up to its last epoch."""
    per_epoch, count = steps_per_epoch(len(examples), training), trained_on(len(examples), training)
    for epoch in range(step // per_epoch, training.epochs):
        order = _order_of(training, len(examples), seed=seed, epoch=epoch)[:count]
        for index in range(step - epoch * per_epoch if epoch == step // per_epoch else 0, per_epoch):
            chosen = order[index * training.batch_size : (index + 1) * training.batch_size]
            yield Batch(epoch * per_epoch + index, epoch, tuple(examples[number] for number in chosen))


def deal(
    examples: Sequence[Encoded],
    *,
    rank: int,
    ranks: int,
    most: int | None,
    most_tokens: int,
    overhead: int,
    packed: bool = False,
) -> list[MicroBatch]:
    """This rank's micro-batches of a global batch; every rank gets the same number of them.

    Sorted by length and dealt out in turn, so that ranks do equal work; cut where the padding saved outweighs
    `overhead`, the cost of one more pass in tokens. `packed` micro-batches have no padding and are as few as may be.
    """
    ordered = sorted(examples, key=lambda example: (-len(example), example.id))
    longest = [len(example) for example in ordered[::ranks]]
    if packed:
        sizes = _filled(longest, most=most, most_tokens=most_tokens)
    else:
        sizes = partition(longest, most=most, most_tokens=most_tokens, overhead=overhead)
    put = pack if packed else collate
    own = ordered[rank::ranks]
    starts = np.cumsum([0, *sizes])
    return [
        put(own[start:end]) if start < len(own) else _nothing(put(ordered[-1:]))
        for start, end in zip(starts[:-1], starts[1:], strict=True)
    ]


def partition(lengths: Sequence[int], *, most: int | None, most_tokens: int, overhead: int) -> list[int]:
    """Sizes of the groups that cut falling `lengths` at the least cost: padded tokens plus `overhead` a group."""
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the first n, and the size of their last group
    for end in range(1, len(lengths) + 1):
        options = []
        for start in range(end - 1, -1, -1):
            padded = (end - start) * lengths[start]
            if start < end - 1 and (padded > most_tokens or (most is not None and end - start > most)):
                break
            options.append((best[start][0] + padded + overhead, end - start))
        best.append(min(options))
    sizes = []
    end = len(lengths)
    while end:
        sizes.append(best[end][1])
        end -= sizes[-1]
    return sizes[::-1]


def collate(examples: Sequence[Encoded]) -> MicroBatch:
    """Examples side by side, padded on the right to the longest of them."""
    width = max(len(example) for example in examples)
    tokens_BL = np.zeros((len(examples), width), dtype=np.int64)
    targets_BL = np.zeros((len(examples), width), dtype=bool)
    for row, example in enumerate(examples):
        tokens_BL[row, : len(example)] = example.tokens
        targets_BL[row, : len(example)] = example.targets
    labelled = np.flatnonzero(targets_BL)
    return MicroBatch(tokens_BL, labelled - 1, tokens_BL.reshape(-1)[labelled])


def pack(examples: Sequence[Encoded]) -> MicroBatch:
    """Examples one after the other, for attention that sees where each begins."""
    tokens = np.concatenate([example.tokens for example in examples]).astype(np.int64)
    labelled = np.flatnonzero(np.concatenate([example.targets for example in examples]))
    positions = np.concatenate([np.arange(len(example)) for example in examples])
    starts = np.cumsum([0, *map(len, examples)], dtype=np.int32)
    return MicroBatch(tokens[None], labelled - 1, tokens[labelled], positions[None], starts)


def pad_as_released(examples: Sequence[Encoded], *, width: int = 0) -> list[Encoded]:
    """METHOD's departure 2: every example as long as the longest of the set, or `width` where that is more, by eos tokens
    that are trained on."""
    width = max(width, *(len(example) for example in examples))
    return [_extended(example, width) for example in examples]


def _filled(lengths: Sequence[int], *, most: int | None, most_tokens: int) -> list[int]:
    """Sizes of the fewest groups, in order, of at most `most` examples and `most_tokens` tokens."""
    sizes, tokens = [0], 0
    for length in lengths:
        if sizes[-1] and (tokens + length > most_tokens or sizes[-1] == most):
            sizes.append(0)
            tokens = 0
        sizes[-1] += 1
        tokens += length
    return sizes


def _extended(example: Encoded, width: int) -> Encoded:
    more = width - len(example)
    tokens = np.concatenate([example.tokens, np.full(more, example.tokens[-1], dtype=np.int32)])
    return Encoded(example.id, tokens, np.concatenate([example.targets, np.ones(more, dtype=bool)]))


def _nothing(part: MicroBatch) -> MicroBatch:
    """A pass without targets for a rank that has run out of examples: its gradient is zero."""
    return replace(part, source_N=part.source_N[:0], labels_N=part.labels_N[:0])


def _order_of(training: Training, count: int, *, seed: int, epoch: int) -> list[int]:
    match training.order:
        case "reshuffled":
            return _order(count, seed=seed, epoch=epoch)
        case "fixed":
            return _order(count, seed=seed, epoch=0)
        case "sampler":
            return _sampled(count, seed=seed)


def _sampled(count: int, *, seed: int) -> list[int]:
    """The order of PyTorch's DistributedSampler that nobody tells the epoch, over all ranks: the released code's."""
    import torch

    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _order(count: int, *, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"order/{seed}/{epoch}").shuffle(order)
    return order
