"""A sweep's status follows from its records and from the last sign of life of its run."""

from __future__ import annotations

import json
import time

import pytest
from filling import filled

from raysweep.cli import main
from raysweep.report.status import FRESH_SECONDS, described, status_of
from raysweep.store import provenance

NOW = 1_800_000_000.0
ROOM = {
    "workers": 2,
    "asks": {"CPU": 0.9, "GPU": 1.0},
    "free": {"CPU": 3.0, "GPU": 0.0},
    "total": {"CPU": 8.0, "GPU": 4.0},
}


def sign(trials: list[str], *, at: float = NOW, state: str = "running", growing: bool = False) -> dict:
    """What a run says that trains the first trial, while the second waits for its stage and the others for room."""
    return {
        "state": state, "updated": provenance.timestamp(at), "job": "small.2", "seconds_left": 3700.0, "waiting": len(trials) - 1,
        "running": [{"trial": trials[0], "name": "first", "doing": "stage 1/2 on kvr: step 3/9", "seconds": 8,
                     "node_ip": "10.0.0.3", "hostname": "gpu-3"}],
        "waiting_for_stage": [
            {"trial": trials[1], "name": "second", "stage": "0a1b", "by": trials[0], "by_name": "first"},
        ],
        "room": {**ROOM, "growing": growing},
    }  # fmt: skip


@pytest.fixture
def four(tmp_path):
    """A store with a sweep of four trials, that went as the outcomes say, by seed."""

    def make(*outcomes):
        sweep, store = filled(
            tmp_path, lambda point: outcomes[point["seed"]],
            grid={"d_a": ["kvr"], "d_b": ["id"], "mixer": ["none/none"], "ratio": [1.0], "seed": [0, 1, 2, 3]},
        )  # fmt: skip
        return store, list(sweep.plan().trials)

    return make


def test_a_live_run_tells_what_runs_where_and_what_waits_for_what(four):
    store, trials = four("running", None, None, None)
    store.write_live("small", sign(trials), run="one")
    status = status_of(["small"], store, now=NOW + 5)
    assert (status["state"], status["running"], status["pending"], status["job"]) == ("running", 1, 3, "small.2")
    assert described(status) == [
        "small: running · 0/4 trials done · 1 running · 3 pending · ETA 1:01:40 · job small.2",
        "  first: stage 1/2 on kvr: step 3/9 (on gpu-3, 10.0.0.3)",
        "  1 waiting for stage 0a1b, which first trains",
        "  2 waiting for room: each asks for 2 × 0.9 CPU and 1 GPU; 3 of 8 CPU free, 0 of 4 GPU free",
    ]
    store.write_live("small", sign(trials, growing=True), run="one")
    assert described(status_of(["small"], store, now=NOW))[-1].endswith(", and the autoscaler may add nodes")
    store.write_live("small", {**sign(trials), "behind": ["large (0a1b2c)"]}, run="one")
    assert described(status_of(["small"], store, now=NOW))[-1].startswith(
        "  2 waiting for their turn: large (0a1b2c) come first"
    )


def test_a_run_that_waits_for_machines_names_them(four):
    store, trials = four(None, None, None, None)
    said = {"state": "running", "updated": provenance.timestamp(NOW), "job": "small", "waiting": 4}
    store.write_live("small", {**said, "waiting_for_machines": ["10.0.0.2", "10.0.0.3"]}, run="one")
    lines = described(status_of(["small"], store, now=NOW + 5))
    assert lines[0].startswith("small: running · 0/4 trials done · 4 pending")
    assert lines[1:] == ["  4 waiting for machines that are being set up: 10.0.0.2, 10.0.0.3"]


def test_a_run_that_fell_silent_is_dead_and_its_running_trials_are_stopped(four):
    store, trials = four("running", {"retention": 10.0}, None, None)
    store.write_live("small", sign(trials), run="one")
    status = status_of(["small"], store, now=NOW + FRESH_SECONDS + 1)
    assert (status["state"], status["stopped"], status["done"], status["at_work"], status["waiting"]) == (
        "stopped", 1, 1, [], [],
    )  # fmt: skip
    assert "running" not in status


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ((None, None, None, None), "planned"),
        (({"retention": 1.0},) * 4, "done"),
        (({"retention": 1.0}, "failed", "failed", {"retention": 1.0}), "failed"),
        (({"retention": 1.0}, "failed", None, None), "stopped"),
    ],
)
def test_without_a_run_the_records_tell_the_state(four, outcomes, state):
    store, trials = four(*outcomes)
    store.write_live("small", sign(trials, state="ended"), run="one")
    assert status_of(["small"], store, now=NOW)["state"] == state


def test_failures_are_shown_by_name_with_the_first_line_of_their_error(four):
    store, trials = four({"retention": 1.0}, "failed", None, None)
    (failure,) = status_of(["small"], store, now=NOW)["failures"]
    assert failure == {"trial": trials[1], "name": "kvr → id seed 1", "error": "failed it is"}


def test_the_commands_need_a_store_and_no_cluster(four, capsys):
    store, trials = four("running", None, None, None)
    assert main(["status", "--store", store.url, "--json"]) == 0
    assert [one["state"] for one in json.loads(capsys.readouterr().out)] == ["stopped"]
    store.write_live("small", sign(trials, at=time.time()), run="one")
    assert main(["status", "small", "--store", store.url]) == 0
    assert capsys.readouterr().out.startswith("small: running")
    assert main(["status", "other", "--store", store.url]) == 2


def test_top_ends_when_nothing_is_left_to_happen(four, capsys):
    store, _ = four(*({"retention": 1.0},) * 4)
    assert main(["top", "small", "--store", store.url, "--json"]) == 0
    assert [one["state"] for one in json.loads(capsys.readouterr().out)] == ["done"]
