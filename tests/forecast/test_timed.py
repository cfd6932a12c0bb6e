"""Laws of calibrations: steps between those that were timed, and which calibration speaks for a sweep."""

from __future__ import annotations

import pytest

from raysweep.forecast.timed import Calibration, found_among, key_of
from raysweep.sweep.spec import Runtime


def told(machine="CPU, 2 cores", *, made="2026-01-01", runtime=None, base="b", precision="fp32"):
    return {
        "machine": machine,
        "on_gpu": not machine.startswith("CPU"),
        "made": made,
        "open": 2.0,
        "save": 1.0,
        "force": 0.01,
        "answer": 0.1,
        "stages": [{"tokens": 300.0, "step": 0.5}, {"tokens": 100.0, "step": 0.3}],
        "of": key_of(base=base, precision=precision, runtime=runtime or Runtime()),
    }


def test_steps_cost_in_proportion_between_those_that_were_timed():
    pace = Calibration.of(told())
    assert [pace.step(tokens) for tokens in (10, 100, 200, 300, 600)] == pytest.approx([0.3, 0.3, 0.4, 0.5, 1.0])


def test_a_longer_step_takes_no_less_whatever_the_clock_said():
    noisy = told() | {"stages": [{"tokens": 110.0, "step": 0.3}, {"tokens": 100.0, "step": 0.5}]}
    pace = Calibration.of(noisy)
    assert [pace.step(tokens) for tokens in (50, 105, 220)] == pytest.approx([0.4, 0.4, 0.8])


def test_all_that_a_stage_does_costs_and_every_worker_is_there_for_it():
    pace = Calibration.of(told())
    one = pace.spent(steps=10, tokens=2000, workers=1, in_curve=50, in_evaluations=20)
    assert (one.steps, one.files) == pytest.approx((10 * 0.4 + 50 * 0.01, 2 + 1 + 20 * 0.1))
    two = pace.spent(steps=10, tokens=2000, workers=2, in_curve=50, in_evaluations=20)
    assert two.whole == pytest.approx(2 * one.whole)
    assert pace.spent(steps=0, tokens=0, workers=1, in_curve=0, in_evaluations=0).whole == 3.0


def test_the_newest_of_the_same_model_and_runtime_speaks_on_a_gpu_where_there_is_one():
    known = [
        told(made="2026-01-02"),
        told(made="2026-01-01"),
        told("NVIDIA H100", made="2025-01-01"),
        told(made="2026-02-01", runtime=Runtime(zero=0)),
        told(made="2026-02-01", base="other"),
    ]

    def found(**changes):
        return found_among(known, base="b", precision="fp32", runtime=Runtime(**changes))

    assert found().machine == found(gpus_per_worker=1).machine == "NVIDIA H100"
    assert found(gpus_per_worker=0).made == "2026-01-02"
    assert found(zero=0).made == "2026-02-01"
    assert found(workers=2) is None
    assert found_among(known, base="b", precision="bf16", runtime=Runtime()) is None
