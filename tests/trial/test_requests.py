"""Requests to a bucket are counted: of a trial, of a sign of life, of an idle minute; what is forecast is not less than that."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweeps import small

from raysweep.api import load, overview
from raysweep.cluster.heartbeat import SECONDS
from raysweep.forecast import requests
from raysweep.forecast.requests import (
    BOUNDS,
    PER_EVALUATION,
    PER_STAGE,
    PER_TRIAL,
    PER_WEIGHTS,
    Requests,
    idle,
    of_checkpoint,
    of_plan,
)
from raysweep.learn.checkpoints import RECORD
from raysweep.store import leases as leases_module
from raysweep.store.leases import BEAT, LOOK, Leases
from raysweep.store.store import Store
from raysweep.trial.execute import execute
from raysweep.trial.in_flight import Mirror

LINE = re.compile(r'"(?:\x1b\[\d+m)*(GET|HEAD|PUT|POST|DELETE) ')


class Counter(logging.Handler):
    """Counts what arrives at the server of the tests."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := LINE.search(record.getMessage()):
            self.seen.append(found[1])

    def during(self, work: Callable[[], object]) -> Requests:
        """The requests that some work makes."""
        self.seen.clear()
        work()
        reads = sum(method in ("GET", "HEAD") for method in self.seen)
        return Requests(len(self.seen) - reads, reads)


@pytest.fixture
def counter(bucket: str) -> Iterator[Counter]:
    counter, server = Counter(), logging.getLogger("werkzeug")
    server.addHandler(counter)
    yield counter
    server.removeHandler(counter)


def test_the_forecast_knows_how_often_runs_ask() -> None:
    assert (requests.BEAT, requests.LOOK, requests.STATUS) == (BEAT, LOOK, SECONDS)


def within(found: Requests, bound: Requests) -> bool:
    return found.writes <= bound.writes and found.reads <= bound.reads


def test_a_sign_of_life_is_one_request_however_much_is_held(bucket: str, counter: Counter) -> None:
    ours = Leases(Store(bucket).files, holder="ours")
    ours.acquire([f"s{number}" for number in range(20)])
    assert counter.during(ours.beat) == Requests(1, 0)


def test_a_lease_is_taken_and_ended_by_three_requests(bucket: str, counter: Counter) -> None:
    ours = Leases(Store(bucket).files, holder="ours")
    ours.beat()
    assert counter.during(lambda: ours.acquire(["a"])) == Requests(1, 1)
    assert counter.during(lambda: ours.release(["a"], committed=True)) == Requests(1, 0)


@pytest.mark.parametrize("awaited", [0, 4])
def test_an_idle_minute_looks_at_what_is_awaited_only(
    bucket: str, counter: Counter, monkeypatch: pytest.MonkeyPatch, awaited: int
) -> None:
    """Tune asks ten times a second; the clock here is virtual."""
    monkeypatch.setattr(leases_module, "_machine", lambda: None)
    now = [0.0]
    ours, theirs = (Leases(Store(bucket).files, holder=name, clock=lambda: now[0]) for name in ("ours", "theirs"))
    theirs.acquire([f"s{number}" for number in range(40)])
    ours.beat()
    for number in range(awaited):
        assert ours.acquire([f"s{number}"]).blocked

    def minute() -> None:
        for tick in range(600):
            now[0] += 0.1
            ours.news()
            if tick % int(BEAT * 10) == 0:
                ours.beat()

    found = counter.during(minute)
    assert found.writes == 60 / BEAT
    assert found.reads <= (60 / LOOK + 1) * (awaited + 2) * bool(awaited)
    assert within(found, idle(2, awaited=awaited).times(60) + Requests(0, awaited + 2))


def test_a_trial_asks_for_no_more_than_is_forecast(bucket: str, counter: Counter, tmp_path) -> None:
    store = Store(bucket)
    job = next(iter(small(tmp_path).missing(store, data=None)[1].values()))
    job = dataclasses.replace(job, tokens={node.id: 1 for node in job.chain})  # a run's own, counted by themselves
    found = counter.during(lambda: execute(job, report=lambda event: None))
    leases = Requests(2, 1).times(len(job.chain))
    bound = of_plan(trials=1, stages=len(job.chain), with_weights=1, evaluations=len(job.evaluations))
    assert within(found + leases, bound), (found, bound)
    assert found.writes >= bound.writes / 2, "the forecast is of use"


def test_a_checkpoint_asks_for_no_more_than_is_forecast(bucket: str, counter: Counter, tmp_path: Path) -> None:
    store, folder = Store(bucket), tmp_path / "1"
    mirror = Mirror(store.files, ".in-flight/a", folder, last=RECORD, attempt="1", machine="m", machines=1)

    def put(step: int) -> None:
        (folder / f"step-{step}").mkdir(parents=True)
        for name in ("model.pt", "optimizer.pt", "rng-0.pt", RECORD):
            (folder / f"step-{step}" / name).write_bytes(b"1")
        mirror._put(step)

    put(1)
    for step in (2, 3):
        found = counter.during(lambda step=step: put(step))
        assert within(found, of_checkpoint(workers=1)), found


@pytest.mark.parametrize("gpus", [64, 1024, 4096])
def test_what_runs_have_in_common_is_below_a_tenth_of_what_a_prefix_bears(gpus: int) -> None:
    """Table 2's trials on two GPUs each, of stages that take five minutes: ten times as fast as they are."""
    slots, seconds = gpus // 2, 300.0
    each = PER_TRIAL.times(0.5) + PER_STAGE + PER_WEIGHTS.times(0.1) + PER_EVALUATION.times(2)
    rate = each.times(slots / seconds) + of_checkpoint(workers=2).times(slots / 600) + idle(8, awaited=27)
    assert within(rate, BOUNDS.times(0.1)), rate


@pytest.mark.parametrize("gpus", [64, 1024, 4096])
def test_table_2_asks_a_bucket_for_less_than_a_tenth_of_what_it_bears(root: Path, tmp_path: Path, gpus: int) -> None:
    told = overview([load(root / "experiments/table2.yaml")], store=tmp_path, workers=gpus)["estimate"]
    rate = Requests(told["store_writes_per_second"], told["store_reads_per_second"])
    assert within(rate, BOUNDS.times(0.1))
    assert 10_000 < told["store_writes"] < 100_000
