"""Numbers about numbers: spread over seeds, intervals, paired tests, and what continual learning calls forgetting.

Everything random takes its seed and draws from a generator of its own, so the same records always give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Interval",
    "McNemar",
    "Paired",
    "Spread",
    "average_accuracy",
    "bootstrap",
    "holm",
    "mcnemar",
    "paired_bootstrap",
    "spread",
    "t_quantile",
    "transfer",
]

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
        2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
        2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, standard deviation of a sample (n - 1) and standard error of the mean; None where n is too small for it."""

    n: int
    mean: float | None
    std: float | None
    se: float | None


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the interval of its bootstrap distribution."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """Pairs that only the first and only the second got right, and the exact two-sided p."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True, slots=True)
class Paired:
    """A difference of means (second - first), its bootstrap interval, and the two-sided bootstrap p."""

    difference: float
    low: float
    high: float
    p: float


def spread(values: Sequence[float]) -> Spread:
    """How values spread over seeds."""
    n = len(values)
    if n == 0:
        return Spread(0, None, None, None)
    mean = float(np.mean(values))
    if n == 1:
        return Spread(1, mean, None, None)
    std = float(np.std(values, ddof=1))
    return Spread(n, mean, std, std / math.sqrt(n))


def t_quantile(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t; the normal one beyond 30 degrees of freedom is close enough."""
    if degrees < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, not {degrees}")
    return _T95[degrees - 1] if degrees <= len(_T95) else 1.96


def bootstrap(scores: np.ndarray, *, seed: int, draws: int = 2000, level: float = 0.95) -> Interval:
    """The percentile interval of the mean of `scores` (seeds × examples), both drawn with replacement.

    The examples are the same for every seed, so a draw of examples holds for all seeds of that draw.
    """
    means = _means(np.asarray(scores, dtype=float), seed, draws)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(scores)), float(low), float(high))


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, *, seed: int, draws: int = 2000, level: float = 0.95
) -> Paired:
    """The difference of two means over the same examples and seeds (seeds × examples each)."""
    difference = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    means = _means(difference, seed, draws)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (int(beyond) + 1) / (draws + 1))
    return Paired(float(difference.mean()), float(low), float(high), p)


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test on paired verdicts (right or wrong): two-sided binomial over the pairs that disagree."""
    first, second = np.asarray(first) > 0.5, np.asarray(second) > 0.5
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    return McNemar(only_first, only_second, _binomial(only_first, only_second))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that keep the chance of any false alarm among all cells at the level tested."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def transfer(accuracy: Mapping[tuple[int, int], float]) -> dict[str, float | None]:
    """Forgetting, backward transfer and retention of a chain; `accuracy[after, of]` in percent, stages counted from 1.

    As continual learning defines them (and Avalanche computes them): forgetting of a set is its accuracy right after its
    own stage less that after the last stage, averaged over the sets before the last; backward transfer is its negative;
    retention is last over first, averaged alike (none where a set was never right). None where nothing was asked twice.
    """
    last = max((after for after, _ in accuracy), default=0)
    pairs = [(accuracy[of, of], accuracy[last, of]) for of in range(1, last) if _asked_twice(accuracy, of, last)]
    lost = [first - then for first, then in pairs]
    kept = [then / first for first, then in pairs if first > 0]
    forgetting = float(np.mean(lost)) if lost else None
    return {
        "forgetting": forgetting,
        "backward_transfer": None if forgetting is None else -forgetting,
        "retention_ratio": float(np.mean(kept)) if kept else None,
    }


def average_accuracy(accuracy: Mapping[tuple[int, int], float]) -> float | None:
    """The mean of all sets' accuracies after the last stage; `accuracy` as in `transfer`. None where one that was evaluated
    after its own stage was not after the last."""
    last = max((after for after, _ in accuracy), default=0)
    sets = sorted({of for _, of in accuracy})
    if not sets or any((last, of) not in accuracy for of in sets):
        return None
    return float(np.mean([accuracy[last, of] for of in sets]))


def _asked_twice(accuracy: Mapping[tuple[int, int], float], of: int, last: int) -> bool:
    return (of, of) in accuracy and (last, of) in accuracy


def _means(scores: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """Means of `draws` resamples, as weights: how often each seed and each example was drawn."""
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must be seeds × examples with something in it, not of shape {scores.shape}")
    generator = np.random.default_rng(seed)
    seeds, examples = scores.shape
    seed_weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    example_weights = generator.multinomial(examples, np.full(examples, 1 / examples), size=draws) / examples
    return np.einsum("ds,ds->d", seed_weights, example_weights @ scores.T)


def _binomial(one: int, other: int) -> float:
    """Twice the smaller tail of Binomial(one + other, 1/2), at most 1."""
    n, k = one + other, min(one, other)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log) for log in logs))
