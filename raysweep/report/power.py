"""How many seeds it takes to see a difference of some points, from the spread that was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from scipy import special

from raysweep.errors import BadInput
from raysweep.report.compare import paired_scores
from raysweep.report.statistics import ALPHA, MIN_SEEDS, alike, t_quantile

__all__ = ["POWER", "power_of", "seeds_needed"]

POWER = 0.8  # the chance to see a difference that is there
_SURE = 0.8  # that the true spread is not above the one told as `spread_high`
_MOST = 10_000  # seeds; beyond, nobody runs them


def power_of(predictions: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, points: float) -> pd.DataFrame:
    """One row for each pair of mixers and combination of the other axes: the seeds that comparing them, paired, takes.

    Columns: the axes, both mixers, n_seeds (so far), spread (the standard deviation over seeds of the difference, in
    points), seeds (to see ± `points` with 80 % power at 5 %), seeds_corrected (the same at 5 % ÷ rows, which is what
    Holm asks of the first of them), and spread_high and seeds_high: a few seeds say little about their own spread, and
    with 80 % confidence it is not above this. Empty where fewer than two seeds, or no spread, were seen. Raises BadInput.
    """
    if not 0 < points <= 100:
        raise BadInput(f"--points {points:g}: give a difference in points, above 0 and at most 100")
    found = [
        (values | {"first": first, "second": second}, 100 * (b - a).mean(axis=1))
        for first, second in pairs
        for values, a, b in paired_scores(predictions, first, second)
    ]
    if not found:
        named = "; ".join(" and ".join(pair) for pair in pairs)
        mixers = ", ".join(map(str, predictions["mixer"].unique())) or "none"
        raise BadInput(f"{named} have no finished trials with seeds and examples in common; mixers: {mixers}")
    return pd.DataFrame(
        [values | {"n_seeds": len(by_seed)} | _needed(by_seed, points, rows=len(found)) for values, by_seed in found]
    )


def seeds_needed(std: float, *, points: float, alpha: float, power: float) -> int | None:
    """The fewest seeds, at least three, with which a paired t-test sees a difference of so many points; None beyond 10,000."""
    fewest, most = MIN_SEEDS, MIN_SEEDS
    while _power(most, std, points, alpha) < power:
        fewest, most = most + 1, most * 2
        if most > _MOST:
            return None
    while fewest < most:
        middle = (fewest + most) // 2
        fewest, most = (fewest, middle) if _power(middle, std, points, alpha) >= power else (middle + 1, most)
    return fewest


def _power(n: int, std: float, points: float, alpha: float) -> float:
    """The power of a two-sided paired t-test: Student's t about a true difference is noncentral."""
    shift, quantile = points * math.sqrt(n) / std, t_quantile(n - 1, level=1 - alpha)
    above, below = special.nctdtr(n - 1, shift, quantile), special.nctdtr(n - 1, shift, -quantile)
    return float(1 - above + (below if below == below else 0.0))  # far below its mean the series gives no number


def _needed(by_seed: Any, points: float, *, rows: int) -> dict[str, Any]:
    n = len(by_seed)
    if n < 2 or alike(by_seed):
        names = ("spread", "seeds", "seeds_corrected", "spread_high", "seeds_high")
        return dict.fromkeys(names)
    std = float(by_seed.std(ddof=1))
    high = std * math.sqrt((n - 1) / special.chdtri(n - 1, _SURE))
    needed = {"points": points, "power": POWER}
    return {
        "spread": std,
        "seeds": seeds_needed(std, alpha=ALPHA, **needed),
        "seeds_corrected": seeds_needed(std, alpha=ALPHA / rows, **needed),
        "spread_high": high,
        "seeds_high": seeds_needed(high, alpha=ALPHA, **needed),
    }
