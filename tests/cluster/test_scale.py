"""Many trials: the first starts soon, and no process is given more than the trials that it does."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from ray import cloudpickle
from sweeps import SMALL, small

from raysweep.cluster.job_handoff import JobHandoff, handed
from raysweep.cluster.searcher import StageSearcher, param_space, point_key
from raysweep.cluster.tuner import _trainable
from raysweep.plan.schedule import Schedule
from raysweep.store.store import Store
from raysweep.sweep.spec import Runtime

MANY = 24_000


def megabytes() -> float:
    """What this process has of the machine's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def test_the_first_of_many_trials_is_handed_out_within_seconds(tmp_path):
    """In seconds of this process's own, so that others on the machine do not count; alone they are three."""
    began, before = time.process_time(), megabytes()
    grid = {**SMALL["grid"], "mixer": ["none/none", "random/none", "none/random"], "seed": list(range(MANY // 3))}
    sweep = small(tmp_path, grid=grid)
    plan, jobs = sweep.missing(Store(tmp_path / "store"), data=None)
    chains = {trial: plan.trials[trial].stages for trial in jobs}
    wanted = {point_key(point.values): point.trial for point in plan.points}
    out: list[str] = []
    searcher = StageSearcher(
        wanted,
        Schedule(chains, slots=2),
        give_up_after=2,
        on_drop=print,
        on_out=lambda trial, tokens: out.append(trial),
    )
    searcher.set_search_properties(None, None, param_space(sweep.grid.axes))
    suggested = searcher.suggest("first")
    assert len(jobs) == MANY
    assert out == [suggested["trial"]]
    assert time.process_time() - began < 30
    assert megabytes() - before < 500


@pytest.mark.parametrize("runtime", [Runtime(), Runtime(workers=2), Runtime(workers=2, isolate=True)])
def test_what_every_process_is_given_does_not_grow_with_the_sweep(runtime):
    assert len(cloudpickle.dumps(_trainable("run", runtime, "/somewhere"))) < 5_000


@pytest.mark.ray
def test_a_job_is_in_the_cluster_while_its_trial_is_out(cluster, tmp_path):
    _, jobs = small(tmp_path).missing(Store(tmp_path / "store"), data=None)
    one, other = jobs
    handoff = JobHandoff("run", jobs)
    handoff.out(one, {"a": 3})
    handoff.out(other, {})
    for _ in range(2):
        assert handed("run", one) == replace(jobs[one], tokens={"a": 3}), "for every attempt"
    assert handed("run", other) == jobs[other]
    handoff.over(one)
    handoff.close()
    for trial in jobs:
        with pytest.raises(RuntimeError, match="not handed out by run run"):
            handed("run", trial)
