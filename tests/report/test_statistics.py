"""Statistics against scipy's tests and distributions, and against how often they are right in a simulation."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from bench.coverage import simulated
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raysweep.report.power import seeds_needed
from raysweep.report.statistics import (
    binomial_p,
    difference_interval,
    holm,
    paired,
    seed_interval,
    spread,
    t_p,
    t_quantile,
    too_few,
    transfer,
)

PERCENT = st.floats(0, 100, allow_nan=False)


@given(st.lists(PERCENT, min_size=2, max_size=8))
def test_spread_is_that_of_a_sample(values: list[float]) -> None:
    found = spread(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.std == pytest.approx(statistics.stdev(values), abs=1e-9)
    assert found.se == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)


def test_one_value_has_no_spread_and_none_has_no_mean() -> None:
    assert (spread([5.0]).mean, spread([5.0]).std, spread([5.0]).n) == (5.0, None, 1)
    assert (spread([]).mean, spread([]).n) == (None, 0)


SAMPLES = st.lists(st.floats(1, 99, allow_nan=False), min_size=3, max_size=10).filter(lambda found: np.ptp(found) > 0.1)
RIGHT = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=3, max_size=6)


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95, 0.999])
def test_t_quantiles_and_ps_are_scipys(level: float) -> None:
    for degrees in (1, 2, 3, 9, 30, 31, 500):
        assert t_quantile(degrees, level=level) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-10)
        assert t_p(2.5, degrees) == t_p(-2.5, degrees) == pytest.approx(2 * stats.t.sf(2.5, degrees), rel=1e-10)
    with pytest.raises(ValueError, match="degree of freedom"):
        t_quantile(0)


@given(SAMPLES)
def test_an_interval_of_any_measure_is_scipys_t_interval(values: list[float]) -> None:
    found = seed_interval(values, facts=None)
    assert found and found.basis == f"Student's t over {len(values)} seeds"
    known = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(known, rel=1e-10, abs=1e-10)


@given(SAMPLES)
def test_an_interval_of_an_accuracy_holds_what_a_t_test_with_a_variance_of_its_mean_keeps(values: list[float]) -> None:
    """At both its ends (mean - end)² is t² times the variance that a mean at that end would have."""
    found = seed_interval(values, facts=100)
    mean, variance, n = np.mean(values), np.var(values, ddof=1), len(values)
    assert found and 0 <= found.low < mean < found.high <= 100
    for end in (found.low, found.high):
        own = variance * end * (100 - end) / (mean * (100 - mean))
        assert (mean - end) ** 2 == pytest.approx(stats.t.ppf(0.975, n - 1) ** 2 * own / n, rel=1e-6, abs=1e-9)


def test_in_the_middle_an_interval_of_an_accuracy_is_students_and_near_the_end_it_leans_away() -> None:
    middle = seed_interval([49.0, 50.0, 51.0], facts=2000)
    assert middle and (middle.low, middle.high) == pytest.approx((50 - 2.484, 50 + 2.484), abs=0.02)
    end = seed_interval([97.0, 99.0, 99.5], facts=2000)
    assert end and end.high < 100 and 98.5 - end.low > 2 * (end.high - 98.5)


@pytest.mark.parametrize("value", [0.0, 40.0, 100.0])
def test_seeds_that_are_alike_leave_the_bound_of_the_facts(value: float) -> None:
    found = seed_interval([value] * 3, facts=20)
    known = stats.binomtest(round(value / 5), 20).proportion_ci(0.95, method="exact")
    assert found and (found.low, found.high) == pytest.approx((100 * known.low, 100 * known.high), rel=1e-9, abs=1e-9)
    assert found.basis == "all 3 seeds alike: bound from 20 facts" and found.high > found.low
    assert seed_interval([value] * 3, facts=None) is None


@pytest.mark.parametrize("values", [[], [50.0], [40.0, 60.0]])
def test_fewer_than_three_seeds_have_no_interval(values: list[float]) -> None:
    assert seed_interval(values, facts=20) is None and difference_interval(values, facts=20) is None
    assert too_few(len(values)) == f"too few seeds for an interval ({len(values)})"


def test_a_difference_of_accuracies_may_be_negative_and_has_a_width_where_seeds_are_alike() -> None:
    assert difference_interval([-5.0, 0.0, 5.0], facts=20).low == pytest.approx(-12.42, abs=0.01)
    none = difference_interval([0.0] * 3, facts=20)
    assert none and (none.low, none.high) == pytest.approx((-16.84, 16.84), abs=0.01)
    wide = difference_interval([-90.0, 90.0, 99.0], facts=20)
    assert wide and (wide.low, wide.high) == (-100.0, 100.0)


@given(RIGHT, RIGHT)
def test_a_paired_comparison_is_scipys_t_test_over_seeds(first: list[list[bool]], second: list[list[bool]]) -> None:
    seeds = min(len(first), len(second))
    a, b = np.array(first[:seeds], dtype=float), np.array(second[:seeds], dtype=float)
    by_seed = 100 * (b - a).mean(axis=1)
    found = paired(a, b, margin=20.0)
    assert found.difference == pytest.approx(by_seed.mean(), abs=1e-9) and found.low <= found.difference <= found.high
    if np.ptp(by_seed) < 1e-9:
        assert "bound from 12 facts" in found.basis and found.high > found.low
        return
    known = stats.ttest_rel(b.mean(axis=1), a.mean(axis=1))
    interval = known.confidence_interval(0.95)
    assert found.p == pytest.approx(known.pvalue, rel=1e-8)
    assert found.low == pytest.approx(max(-100, 100 * interval.low), rel=1e-8, abs=1e-8)
    assert found.high == pytest.approx(min(100, 100 * interval.high), rel=1e-8, abs=1e-8)
    above = stats.ttest_1samp(by_seed, -20.0, alternative="greater").pvalue
    below = stats.ttest_1samp(by_seed, 20.0, alternative="less").pvalue
    assert found.p_equivalence == pytest.approx(max(above, below), rel=1e-8)


def test_two_seeds_are_compared_without_an_interval_or_a_p() -> None:
    found = paired(np.zeros((2, 8)), np.ones((2, 8)), margin=3.0)
    assert found.basis == "too few seeds for an interval (2)" and found.difference == 100.0
    assert (found.low, found.high, found.p, found.p_equivalence) == (None,) * 4
    with pytest.raises(ValueError, match="seeds × facts"):
        paired(np.zeros((0, 3)), np.zeros((0, 3)), margin=None)


def test_differences_that_are_alike_are_bounded_by_the_facts() -> None:
    a, b = np.zeros((3, 20)), np.zeros((3, 20))
    b[:, :10] = 1.0
    found = paired(a, b, margin=60.0)
    gained, lost = (stats.binomtest(count, 20).proportion_ci(0.975, method="exact") for count in (10, 0))
    assert (found.low, found.high) == pytest.approx((100 * (gained.low - lost.high), 100 * gained.high))
    assert found.p == pytest.approx(stats.binomtest(0, 10).pvalue)
    assert found.p_equivalence == pytest.approx(stats.binom.cdf(10, 20, 0.6))
    same = paired(a, a, margin=3.0)
    assert same.p == 1.0 and same.low == -same.high < -15
    assert same.p_equivalence == pytest.approx(0.97**20), (
        "20 facts without a change do not show that less than 3 % change"
    )


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sign_test_is_scipys(one: int, other: int) -> None:
    known = stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert binomial_p(one, one + other) == pytest.approx(known, rel=1e-9)


def test_holm_is_the_published_step_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7]) == [0.7]


@given(st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
    by_p = sorted(range(len(p_values)), key=lambda index: p_values[index])
    assert [corrected[index] for index in by_p] == sorted(corrected)


@pytest.mark.parametrize(("condition", "facts"), [("normal", 2000), ("binomial", 64), ("ceiling", 2000)])
@pytest.mark.parametrize("seeds", [3, 10])
def test_intervals_hold_as_often_as_they_say_and_tests_alarm_no_oftener(condition: str, facts: int, seeds: int) -> None:
    """A small part of `python tests/bench/run.py coverage`."""
    found = simulated(condition, facts=facts, seeds=seeds, points=3.0, replicates=600, seed=1)
    assert 92 <= found["coverage"] <= 99.5 and found["alarms"] <= 7.5 and found["difference_coverage"] >= 92.5


def test_what_the_readme_says_of_coverage_was_measured(root: Path) -> None:
    """Over all conditions but the edge, which is told as a limit."""
    kept = json.loads((root / "tests/bench/results/coverage.json").read_text())["figures"]
    figures = {name: value for name, value in kept.items() if "edge" not in name and "before" not in name}

    def of(start: str) -> list[float]:
        return [value for name, value in figures.items() if name.startswith(start)]

    assert kept["replicates"] >= 2000 and len(of("coverage_")) == len(of("difference_coverage_")) == 5 * 3 * 2
    told = re.search(
        r"95 % intervals hold (\d+) to (\d+) times in 100, from 3 seeds on", (root / "README.md").read_text()
    )
    both = [*of("coverage_"), *of("difference_coverage_")]
    assert told and (round(min(both)), round(max(both))) == tuple(map(int, told.groups()))
    assert min(both) >= 93 and max(of("alarms_")) <= 6
    assert {name for name in figures if name.startswith("coverage_") and figures[name] > 97.5} <= {
        "coverage_ceiling_64_3_highest"
    }


@pytest.mark.parametrize(
    ("std", "points", "alpha"), [(3.0, 3.0, 0.05), (1.0, 3.0, 0.01), (8.0, 5.0, 0.05), (0.5, 3.0, 0.05)]
)
def test_the_seeds_that_are_needed_are_the_fewest_that_reach_the_power(std: float, points: float, alpha: float) -> None:
    def power(n: int) -> float:
        edge, shift = stats.t.ppf(1 - alpha / 2, n - 1), points * n**0.5 / std
        return stats.nct.sf(edge, n - 1, shift) + stats.nct.cdf(-edge, n - 1, shift)

    needed = seeds_needed(std, points=points, alpha=alpha, power=0.8)
    assert needed and power(needed) >= 0.8 and (needed == 3 or power(needed - 1) < 0.8)
    assert seeds_needed(1000.0, points=1.0, alpha=0.05, power=0.8) is None


def avalanche(accuracy: Mapping[tuple[int, int], float], stages: int) -> tuple[float | None, float | None]:
    """Forgetting and backward transfer as Avalanche's plugins compute them, event by event: the value right after its own
    training is an experience's `initial`, every later one its `last`; both metrics are averages over experiences that
    have both."""
    initial: dict[int, float] = {}
    last: dict[int, float] = {}
    for trained in range(1, stages + 1):
        for asked in range(1, stages + 1):
            if (trained, asked) not in accuracy:
                continue
            if asked == trained:
                initial[asked] = accuracy[trained, asked]
            elif asked < trained:
                last[asked] = accuracy[trained, asked]
    both = [initial[asked] - last[asked] for asked in initial if asked in last]
    return (sum(both) / len(both), -sum(both) / len(both)) if both else (None, None)


@given(st.lists(st.lists(PERCENT, min_size=4, max_size=4), min_size=4, max_size=4), st.integers(1, 4))
def test_forgetting_and_backward_transfer_are_avalanches(matrix: list[list[float]], stages: int) -> None:
    accuracy = {(i, j): matrix[i - 1][j - 1] for i in range(1, stages + 1) for j in range(1, stages + 1)}
    forgetting, backward = avalanche(accuracy, stages)
    found = transfer(accuracy)
    assert found["forgetting"] == (None if forgetting is None else pytest.approx(forgetting))
    assert found["backward_transfer"] == (None if backward is None else pytest.approx(backward))


def test_a_chain_by_hand() -> None:
    accuracy = {(1, 1): 100.0, (2, 1): 60.0, (3, 1): 40.0, (2, 2): 80.0, (3, 2): 60.0, (3, 3): 90.0}
    found = transfer(accuracy)
    assert found == {"forgetting": 40.0, "backward_transfer": -40.0, "retention_ratio": pytest.approx((0.4 + 0.75) / 2)}
    assert transfer({(1, 1): 100.0})["forgetting"] is None
    assert transfer({(1, 1): 0.0, (2, 1): 0.0})["retention_ratio"] is None
