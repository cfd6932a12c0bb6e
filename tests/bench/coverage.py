"""How often our intervals hold the truth, and how often our tests see a difference where there is none.

`python tests/bench/run.py coverage`. The truth is known here: runs are drawn, a run has an accuracy of its own, and each of
its facts is right with that probability. `normal` draws accuracies from a normal distribution about 50 % and has no facts;
`binomial` has a mean of 50 %; `ceiling` a mean of 100 % less twice the spread of runs, so that they lean against the end.
`edge` is closer than that, 100 % less once the spread: what no interval from three seeds can be right about, and is told as
a limit, apart from the others. References are what raysweep did before: bootstraps of seeds and facts, and McNemar's test
over all pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np

from raysweep.report.statistics import ALPHA, paired, seed_interval

REPLICATES = 6000
SEEDS = (3, 5, 10)
SPREADS = (1.0, 3.0, 5.0, 10.0)  # points, over runs
CONDITIONS = (("normal", 1), ("binomial", 64), ("binomial", 2000), ("ceiling", 64), ("ceiling", 2000))
LIMITS = (("edge", 64), ("edge", 2000))
EFFECT = 15.0  # points by which the second mixer is worse where there is a difference to hold
SLOW = 300  # replicates of a bootstrap, and its draws
FACTS = 2000  # of the references, as many as the paper has


def measure(*, data_dir: Any = None, repeats: int = 3) -> dict[str, Any]:
    """Figures: the lowest and highest coverage of intervals and of differences, and the most false alarms, in percent, over
    spreads of 1 to 10 points, by condition, facts and seeds. Ratios: false alarms of the references ÷ ours."""
    from run import machine, turns

    cells = list(product((*CONDITIONS, *LIMITS), SEEDS))
    figures: dict[str, Any] = {"replicates": REPLICATES}
    for (condition, facts), seeds in turns(cells):
        found = [
            simulated(condition, facts=facts, seeds=seeds, points=points, replicates=REPLICATES, seed=place)
            for place, points in enumerate(SPREADS)
        ]
        figures |= _range(found, f"{condition}_{facts}_{seeds}")
    ratios, before = _references()
    return {"name": "coverage", "ratios": ratios, "figures": figures | before, "machine": machine()}


def simulated(condition: str, *, facts: int, seeds: int, points: float, replicates: int, seed: int) -> dict[str, float]:
    """In percent: `coverage` of a mean's interval, `student` of the one that Student's t alone would give it,
    `difference_coverage` of a real difference's, and `alarms` where there is none."""
    generator = np.random.default_rng([seed, facts, seeds, *condition.encode()])
    mean = mean_of(condition, points)
    held = students = alarms = apart = 0
    for _ in range(replicates):
        one, other, worse = (
            scores(generator, condition, mean - less, points, shape=(seeds, facts)) for less in (0.0, 0.0, EFFECT)
        )
        values = 100 * one.mean(axis=1)
        interval, student = (seed_interval(values, facts=known) for known in (facts, None))
        held += interval.low <= mean <= interval.high
        students += student is not None and student.low <= mean <= student.high
        alarms += paired(one, other, margin=None).p < ALPHA
        difference = paired(one, worse, margin=None)
        apart += difference.low <= -EFFECT <= difference.high
    counts = {"coverage": held, "student": students, "alarms": alarms, "difference_coverage": apart}
    return {name: round(100 * count / replicates, 2) for name, count in counts.items()}


def mean_of(condition: str, points: float) -> float:
    """The true accuracy, in percent."""
    return {"normal": 50.0, "binomial": 50.0, "ceiling": 100 - 2 * points, "edge": 100 - points}[condition]


def scores(
    generator: np.random.Generator, condition: str, mean: float, points: float, *, shape: tuple[int, int]
) -> np.ndarray:
    """Runs × facts: scores in [0, 1], and for `normal` one column with the accuracy itself."""
    if condition == "normal":
        return generator.normal(mean, points, (shape[0], 1)) / 100
    share, variance = mean / 100, (points / 100) ** 2
    both = share * (1 - share) / variance - 1
    runs = generator.beta(share * both, (1 - share) * both, (shape[0], 1))
    return (generator.random(shape) < runs).astype(float)


def _range(found: list[dict[str, float]], name: str) -> dict[str, float]:
    told: dict[str, float] = {}
    for kind in ("coverage", "difference_coverage"):
        told |= {f"{kind}_{name}_lowest": min(one[kind] for one in found)}
        told |= {f"{kind}_{name}_highest": max(one[kind] for one in found)}
    told |= {f"student_coverage_{name}_lowest": min(one["student"] for one in found)}
    return told | {f"alarms_{name}_most": max(one["alarms"] for one in found)}


# ---- what raysweep did before


def _references() -> tuple[dict[str, float], dict[str, float]]:
    """Two and three seeds of 2,000 facts that spread by 5 points, by the bootstraps and McNemar's test of before."""
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for condition, seeds in product(("binomial", "ceiling"), (2, 3)):
        name, generator = f"{condition}_{FACTS}_{seeds}", np.random.default_rng(seeds)
        pairs = [_pair(generator, condition, seeds) for _ in range(SLOW)]
        mean = mean_of(condition, 5.0)
        means = [_percentiles(generator, one) for one, _ in pairs]
        differences = [_percentiles(generator, other - one) for one, other in pairs]
        before = {
            f"before_coverage_{name}": _percent(low <= mean / 100 <= high for low, high in means),
            f"before_alarms_bootstrap_{name}": _percent(not low <= 0 <= high for low, high in differences),
            f"before_alarms_mcnemar_{name}": _percent(_mcnemar(one, other) < ALPHA for one, other in pairs),
        }
        figures |= before
        if seeds > 2:
            ours = _percent(paired(one, other, margin=None).p < ALPHA for one, other in pairs)
            for kind in ("bootstrap", "mcnemar"):
                ratios[f"alarms_{kind}_{name}"] = round(before[f"before_alarms_{kind}_{name}"] / max(ours, 0.1), 1)
    return ratios, figures


def _pair(generator: np.random.Generator, condition: str, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    mean = mean_of(condition, 5.0)
    return tuple(scores(generator, condition, mean, 5.0, shape=(seeds, FACTS)) for _ in range(2))


def _percentiles(generator: np.random.Generator, values: np.ndarray) -> tuple[float, float]:
    """The percentile interval of the mean, seeds and facts both drawn again."""
    seeds, facts = values.shape
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=SLOW) / seeds
    of_facts = generator.multinomial(facts, np.full(facts, 1 / facts), size=SLOW) / facts
    means = np.einsum("ds,ds->d", of_seeds, of_facts @ values.T)
    return tuple(np.quantile(means, [0.025, 0.975]))


def _mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """McNemar's exact p over all pairs of all runs, as if they were independent."""
    from scipy.stats import binomtest

    only_one, only_other = int((one > other).sum()), int((other > one).sum())
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0


def _percent(verdicts: Iterable[bool]) -> float:
    return round(100 * float(np.mean([bool(one) for one in verdicts])), 1)
