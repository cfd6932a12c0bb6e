"""Numbers about numbers: spread over seeds, intervals, tests, and what continual learning calls forgetting.

The seed is the unit: a run is drawn, its facts are not, so an interval says where the mean over all seeds lies *on these
facts*. How often each is right is measured in `tests/bench/coverage.py`. Only `scipy.special` is loaded: it is light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

__all__ = [
    "ALPHA",
    "LEVEL",
    "MIN_SEEDS",
    "Interval",
    "Paired",
    "Spread",
    "average_accuracy",
    "alike",
    "binomial_p",
    "difference_interval",
    "equivalence_p",
    "facts_interval",
    "holm",
    "paired",
    "seed_interval",
    "spread",
    "t_p",
    "t_quantile",
    "too_few",
    "transfer",
]

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # of every test, after correction
MIN_SEEDS = 3  # two values have a spread, but Student's t on one degree of freedom says next to nothing
_ALIKE = 1e-9  # points: seeds that differ by less were the same, but for the rounding of floats


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, standard deviation of a sample (n - 1) and standard error of the mean; None where n is too small for it."""

    n: int
    mean: float | None
    std: float | None
    se: float | None


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a mean lies, in points, and what that rests on."""

    low: float
    high: float
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A difference (second - first) in points; its interval and p are None where there are too few seeds, as `basis` says.

    `p_equivalence` is that of the two one-sided tests against a margin (TOST), None where no margin was given.
    """

    difference: float
    basis: str
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_equivalence: float | None = None


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


def too_few(seeds: int) -> str:
    """What stands where an interval would, if there were seeds enough for one."""
    return f"too few seeds for an interval ({seeds})"


def alike(values: Sequence[float]) -> bool:
    """Whether all seeds gave the same: their spread says nothing then, and the facts must."""
    return len(values) > 0 and float(np.ptp(values)) < _ALIKE


def t_quantile(degrees: int, *, level: float = LEVEL) -> float:
    """The two-sided quantile of Student's t."""
    if degrees < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, not {degrees}")
    return float(special.stdtrit(degrees, (1 + level) / 2))


def t_p(t: float, degrees: int) -> float:
    """The two-sided p of a value of Student's t."""
    return float(2 * special.stdtr(degrees, -abs(t)))


def seed_interval(values: Sequence[float], *, facts: int | None) -> Interval | None:
    """The interval of a mean over seeds; None where there are too few, or all are alike and the number of facts is unknown.

    With `facts` the values are accuracies of so many facts, in [0, 100]: the score interval, where the variance is
    proportional to mean · (100 - mean), at the quantile of Student's t. In the middle it is Student's; near 0 and 100 it
    leans away from the end, as the values do, and it never passes it; Student's own
    covers too little there (`coverage` in tests/bench).
    """
    n = len(values)
    if n < MIN_SEEDS:
        return None
    if alike(values):
        return facts_interval(float(np.mean(values)), facts, seeds=n) if facts else None
    mean, std, t = float(np.mean(values)), float(np.std(values, ddof=1)), t_quantile(n - 1)
    basis = f"Student's t over {n} seeds"
    if facts is None:
        half = t * std / math.sqrt(n)
        return Interval(mean - half, mean + half, basis)
    share = mean / 100
    wide = t**2 * (std / 100) ** 2 / (share * (1 - share)) / n
    centre = (share + wide / 2) / (1 + wide)
    half = math.sqrt(wide * share * (1 - share) + wide**2 / 4) / (1 + wide)
    return Interval(100 * max(0.0, centre - half), 100 * min(1.0, centre + half), basis)


def facts_interval(accuracy: float, facts: int, *, seeds: int) -> Interval:
    """Clopper and Pearson's interval of an accuracy that all seeds have: that of 20 of 20 begins at 83 %, not at 100 %."""
    low, high = _clopper_pearson(facts * accuracy / 100, facts, level=LEVEL)
    return Interval(100 * low, 100 * high, _of_facts(seeds, facts))


def difference_interval(values: Sequence[float], *, facts: int | None) -> Interval | None:
    """The interval of a mean difference of two accuracies of so many facts, such as forgetting, in [-100, 100]."""
    found = seed_interval(values, facts=None)
    if found is None and len(values) >= MIN_SEEDS and facts:
        mean = float(np.mean(values))
        bound = facts_interval(abs(mean), facts, seeds=len(values))
        half = max(abs(mean) - bound.low, bound.high - abs(mean))
        found = Interval(mean - half, mean + half, bound.basis)
    return found and Interval(max(-100.0, found.low), min(100.0, found.high), found.basis)


def paired(first: np.ndarray, second: np.ndarray, *, margin: float | None) -> Paired:
    """The difference of two means over the same seeds and facts (scores in [0, 1], seeds × facts each).

    Student's t over the differences that the seeds have. `margin` (points) asks whether they are equivalent within it.
    """
    by_fact = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    if by_fact.ndim != 2 or by_fact.size == 0:
        raise ValueError(f"scores must be seeds × facts with something in it, not of shape {by_fact.shape}")
    by_seed = 100 * by_fact.mean(axis=1)
    n, difference = len(by_seed), float(by_seed.mean())
    if n < MIN_SEEDS:
        return Paired(difference=difference, basis=too_few(n))
    if alike(by_seed):
        return _paired_by_facts(by_fact.mean(axis=0), seeds=n, margin=margin)
    se = float(by_seed.std(ddof=1)) / math.sqrt(n)
    half = t_quantile(n - 1) * se
    return Paired(
        difference=difference,
        basis=f"Student's t over {n} seeds",
        low=max(-100.0, difference - half),
        high=min(100.0, difference + half),
        p=t_p(difference / se, n - 1),
        p_equivalence=None if margin is None else equivalence_p(difference, se, n - 1, margin=margin),
    )


def equivalence_p(difference: float, se: float, degrees: int, *, margin: float) -> float:
    """The p of the two one-sided tests (TOST) that a difference lies within ± margin."""
    return float(special.stdtr(degrees, (abs(difference) - margin) / se))


def binomial_p(successes: int, of: int) -> float:
    """The exact two-sided p of so many successes where each is as likely as not (the sign test)."""
    return min(1.0, 2 * float(special.bdtr(min(successes, of - successes), of, 0.5))) if of else 1.0


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


def _paired_by_facts(by_fact: np.ndarray, *, seeds: int, margin: float | None) -> Paired:
    """What the facts bound where every seed has the same difference.

    Gains and losses each have their interval at half the error; p is the sign test over the facts that changed, and a
    difference is within the margin where so few facts changed that their share must be.
    """
    facts, level = len(by_fact), (1 + LEVEL) / 2
    gained, lost = (
        _clopper_pearson(float(side.sum()), facts, level=level)
        for side in (by_fact.clip(min=0), (-by_fact).clip(min=0))
    )
    better, worse = int((by_fact > _ALIKE).sum()), int((by_fact < -_ALIKE).sum())
    changed = math.ceil(float(np.abs(by_fact).sum()) - _ALIKE)
    within = None if margin is None else float(special.bdtr(changed, facts, min(1.0, margin / 100)))
    return Paired(
        difference=100 * float(by_fact.mean()),
        basis=_of_facts(seeds, facts),
        low=100 * (gained[0] - lost[1]),
        high=100 * (gained[1] - lost[0]),
        p=binomial_p(better, better + worse),
        p_equivalence=within,
    )


def _clopper_pearson(successes: float, of: int, *, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    failures = of - successes
    low = float(special.betaincinv(successes, failures + 1, tail)) if successes > 0 else 0.0
    high = float(special.betaincinv(successes + 1, failures, 1 - tail)) if failures > 0 else 1.0
    return low, high


def _of_facts(seeds: int, facts: int) -> str:
    return f"all {seeds} seeds alike: bound from {facts} facts"
