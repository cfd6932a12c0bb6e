"""What trials report becomes Ray's metrics, and is reported all the same."""

from __future__ import annotations

import pytest

from raysweep.cluster import metrics


class Job:
    sweep = "small"
    trial = "0a1b"


@pytest.fixture
def gauges(monkeypatch):
    """What was set, in order: name, value, stage."""
    seen: list[tuple[str, float, str]] = []

    class Gauge:
        def __init__(self, name, about, tags):
            assert about and tags == metrics.TAGS
            self.name = name

        def set(self, value, tags):
            assert set(tags) == set(metrics.TAGS)
            seen.append((self.name, value, tags["stage"]))

    metrics._gauge.cache_clear()
    monkeypatch.setattr(metrics, "Gauge", Gauge)
    yield seen
    metrics._gauge.cache_clear()


def trained(stage: int, step: int, tokens: int, seconds: float) -> dict:
    where = {"event": "train", "stage": stage, "set": "kvr"}
    return {**where, "step": step, "steps": 9, "loss": 0.5, "tokens": tokens, "seconds": seconds}


def test_the_pace_is_that_between_two_events_of_one_stage(gauges):
    said = []
    tell = metrics.observed(Job, said.append)
    events = [trained(1, 1, 100, 1.0), trained(1, 3, 400, 2.5), trained(2, 1, 50, 0.5), trained(2, 2, 50, 0.5)]
    for event in events:
        tell(event)
    assert said == events
    assert [one for one in gauges if one[0] == "raysweep_tokens_per_second"] == [
        ("raysweep_tokens_per_second", 200.0, "1")
    ]
    assert [value for name, value, _ in gauges if name == "raysweep_step"] == [1, 3, 1, 2]


def test_a_finished_stage_tells_its_memory_and_other_events_nothing(gauges):
    tell = metrics.observed(Job, lambda event: None)
    tell({"event": "evaluate", "stage": 1, "set": "kvr"})
    tell({"event": "committed", "committed": "0a", "stage": 1, "set": "kvr", "peak_memory": 2**20})
    assert gauges == [("raysweep_peak_memory_bytes", 2.0**20, "1")]
