"""Sweeps as jobs of a real Ray head that asks for a token: submitted, looked at, stopped, and gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

import raysweep
from raysweep.cli import main

pytestmark = pytest.mark.ray

SMALL = """\
name: {name}
model: tiny
grid: {{d_a: [kvr], d_b: [id], mixer: [none/none], seed: [0, 1]}}
examples: 24
train: {{precision: fp32, lr: 1.0e-3, epochs: {epochs}, stop: epochs}}
"""


@pytest.fixture
def client(head, monkeypatch, tmp_path):
    """Run a command against the head and give its exit code and what it printed as JSON."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAYSWEEP_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", head.environment["RAY_AUTH_TOKEN_PATH"])
    return head


@pytest.fixture
def ask(client, capsys):
    def call(*arguments: str) -> tuple[int, dict]:
        capsys.readouterr()
        code = main([*arguments, "--address", client.url, "--json"])
        printed = capsys.readouterr().out
        return code, json.loads(printed) if printed.strip() else {}

    return call


def sweep(folder: Path, name: str, *, epochs: int) -> str:
    file = folder / f"{name}.yaml"
    file.write_text(SMALL.format(name=name, epochs=epochs))
    return str(file)


def written(store: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in (store / "stages").glob("*/record.json")}


def test_a_submitted_sweep_runs_and_submitted_again_finds_nothing_to_do(ask, client, tmp_path, capsys):
    store = tmp_path / "store"
    file = sweep(tmp_path, "small", epochs=2)
    code, job = ask("submit", file, "--store", str(store), "--wait")
    assert (code, job["id"], job["status"], job["exit_code"]) == (0, "small", "SUCCEEDED", 0)
    frame = raysweep.trials("small", store=store)
    assert list(frame["status"]) == ["done", "done"]
    stages = written(store)

    code, job = ask("submit", file, "--store", str(store), "--wait")
    assert (code, job["id"], job["status"]) == (0, "small.2", "SUCCEEDED")
    assert written(store) == stages
    assert "nothing is left to do" in ask("logs", "small")[1]["log"]
    assert "2 trials" in ask("logs", "small.2")[1]["log"] and ask("logs", "small.2")[1]["id"] == "small.2"

    code, status = ask("status", "small", "--store", str(store))
    assert (status["state"], status["done"], status["job"]) == (
        "done",
        2,
        "small.2 SUCCEEDED Job finished successfully.",
    )


def test_a_stopped_sweep_goes_on_when_it_is_submitted_again(ask, client, tmp_path):
    store = tmp_path / "store"
    file = sweep(tmp_path, "long", epochs=3000)
    code, job = ask("submit", file, "--store", str(store))
    assert (code, job["status"] in ("PENDING", "RUNNING")) == (0, True)
    status = _until(lambda: ask("status", "long", "--store", str(store))[1], _says_where)
    assert status["state"] == "running" and status["job"].startswith("long RUNNING")
    assert {"name", "doing", "trial", "seconds"} <= set(status["at_work"][0])
    _until(lambda: _metrics(client.metrics, "long"), lambda found: {"loss", "step", "tokens_per_second"} <= found)

    assert ask("submit", file, "--store", str(store))[1]["id"] == "long"  # the same: joined, not started twice
    assert ask("submit", file, "--store", str(store), "--set", "train.lr=2e-3")[0] == 2  # not the same: refused

    code, job = ask("stop", "long")
    assert (code, job["status"]) == (0, "STOPPED")
    code, status = ask("status", "long", "--store", str(store))
    assert status["state"] == "stopped" and status["at_work"] == [] and "running" not in status
    assert "stopped" in set(raysweep.trials("long", store=store)["status"])

    code, job = ask("submit", sweep(tmp_path, "long", epochs=3000), "--store", str(store))
    assert job["id"] == "long.2"
    assert ask("stop", "long")[1]["id"] == "long.2"
    assert ask("stop", "long")[0] == 0  # stopping twice is no mistake
    left = [one for one in psutil.process_iter(["cmdline"]) if str(store) in (one.info["cmdline"] or ())]
    assert not left, "it was stopped while it was being started"


def test_a_single_run_by_rays_own_command_is_the_sweeps_trial(ask, client, tmp_path):
    store = tmp_path / "store"
    folder = tmp_path / "work"
    folder.mkdir()
    file = sweep(folder, "single", epochs=2)
    submitted = subprocess.run(
        [
            Path(sys.executable).parent / "ray", "job", "submit", "--address", client.url, "--working-dir", folder, "--",
            "raysweep", "trial", "single.yaml", "--seed", "1", "--store", store,
        ],
        env={**os.environ, **client.environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout[-2000:] + submitted.stderr[-2000:]
    frame = raysweep.trials(file, store=store)
    assert dict(zip(frame["seed"], frame["status"], strict=True)) == {0: "pending", 1: "done"}


def test_a_sweep_that_cannot_run_says_why_and_gives_its_exit_code(ask, client, tmp_path, capsys):
    file = sweep(tmp_path, "wide", epochs=2)
    code, job = ask("submit", file, "--store", str(tmp_path / "store"), "--set", "runtime.workers=64", "--wait")
    assert (code, job["status"], job["exit_code"]) == (2, "FAILED", 2)
    assert "a trial asks for 64 worker(s)" in ask("logs", "wide")[1]["log"]


def test_without_the_token_nothing_is_done(client, monkeypatch, tmp_path, capsys):
    file = sweep(tmp_path, "other", epochs=2)
    arguments = ["submit", file, "--store", str(tmp_path / "store"), "--address", client.url]
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert main(arguments) == 2
    assert "asks for a token, and there is none" in capsys.readouterr().err
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong" * 8)
    assert main(arguments) == 2
    assert "refuses the token" in capsys.readouterr().err


def test_an_unknown_job_is_named_with_those_that_there_are(client, capsys):
    assert main(["logs", "nothing", "--address", client.url]) == 2
    assert "no job 'nothing'" in capsys.readouterr().err


def _metrics(url: str, sweep: str) -> set[str]:
    """The names of our metrics that Prometheus would read of a sweep."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:  # not now
        return set()
    return {line.split("{")[0].removeprefix("ray_raysweep_") for line in lines if f'sweep="{sweep}"' in line}


def _says_where(status: dict) -> bool:
    return any("node_ip" in one for one in status["at_work"])


def _until(look, enough, *, seconds: float = 300.0):
    """Look until it is enough."""
    end = time.monotonic() + seconds
    while not enough(found := look()):
        assert time.monotonic() < end, json.dumps(found, indent=1)
        time.sleep(1)
    return found
