"""Statistics against numbers that are computed another way here, by hand or by counting all cases."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.report.statistics import bootstrap, holm, mcnemar, paired_bootstrap, spread, t_quantile, transfer

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


def test_t_quantiles_are_those_of_the_closed_forms() -> None:
    assert t_quantile(1) == pytest.approx(math.tan(math.pi * 0.475), abs=5e-4)
    assert t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), abs=5e-4)
    assert [t_quantile(n) for n in range(1, 60)] == sorted((t_quantile(n) for n in range(1, 60)), reverse=True)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_mcnemar_is_the_exact_sign_test(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    found = mcnemar(first, second)
    n = found.only_first + found.only_second
    assert n == sum(one != other for one, other in pairs)
    fewer = min(found.only_first, found.only_second)
    as_extreme = sum(sum(coins) <= fewer for coins in itertools.product((0, 1), repeat=n))
    assert found.p == pytest.approx(min(1.0, 2 * as_extreme / 2**n))


def test_mcnemar_holds_for_many_pairs() -> None:
    first, second = np.repeat([1.0, 0.0], 3000), np.tile([1.0, 0.0], 3000)
    assert mcnemar(first, second).p == 1.0
    assert 0 <= mcnemar(np.ones(6000), np.zeros(6000)).p < 1e-300


def test_holm_is_the_published_step_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7]) == [0.7]


@given(st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
    by_p = sorted(range(len(p_values)), key=lambda index: p_values[index])
    assert [corrected[index] for index in by_p] == sorted(corrected)


def test_a_bootstrap_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for case in range(200):
        scores = (generator.random((1, 100)) < 0.7).astype(float)
        interval = bootstrap(scores, seed=case, draws=400)
        hits += interval.low <= 0.7 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_bootstrap_draws_seeds_too() -> None:
    alike, apart = np.full((2, 50), 0.5), np.vstack([np.zeros(50), np.ones(50)])
    assert [bootstrap(alike, seed=0).low, bootstrap(alike, seed=0).high] == pytest.approx([0.5, 0.5])
    assert [bootstrap(apart, seed=0).low, bootstrap(apart, seed=0).high] == pytest.approx([0.0, 1.0])


def test_the_same_scores_give_the_same_numbers_and_leave_the_global_generator_alone() -> None:
    scores = np.random.default_rng(0).random((3, 40))
    before = np.random.get_state()[1].copy()
    assert bootstrap(scores, seed=0) == bootstrap(scores, seed=0) != bootstrap(scores, seed=1)
    assert (np.random.get_state()[1] == before).all()
    with pytest.raises(ValueError, match="seeds × examples"):
        bootstrap(np.zeros((0, 3)), seed=0)


def test_a_paired_bootstrap_sees_what_unpaired_spread_hides() -> None:
    hard = np.random.default_rng(0).random((1, 400)) < 0.5
    first = hard.astype(float)
    second = first.copy()
    second[0, np.flatnonzero(first[0] == 0)[:12]] = 1.0
    found = paired_bootstrap(first, second, seed=0)
    assert found.difference == pytest.approx(0.03) and found.low > 0 and found.p < 0.01
    alone = bootstrap(first, seed=0)
    assert alone.low < second.mean() < alone.high, "the intervals of the two overlap"
    assert paired_bootstrap(first, first, seed=0).p == 1.0


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
