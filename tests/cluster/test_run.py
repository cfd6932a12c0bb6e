"""A sweep on a real Ray: one Tune trial each, shared stages once, nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from sweeps import SMALL, small, write

from raysweep.cli import main
from raysweep.cluster.searcher import expand, param_space, point_key
from raysweep.store.store import Store
from raysweep.trial.execute import execute

pytestmark = pytest.mark.ray

MIXED = "grid.mixer=[random/none]"  # one trial: a worker group takes its time to come up
NUMBERS = ["trial", "loss_1", "loss_2", "accuracy_a1", "retention", "accuracy_b"]


def numbers(sweep, store):
    """What a run measured, by trial."""
    return sweep.trials(store=store)[NUMBERS].sort_values("trial").to_dict("records")


def test_tunes_grid_is_the_plans(tmp_path):
    sweep = small(
        tmp_path, "grid.seed=[0, 1, 2]", "grid.train.lr=[1e-3, 1e-4]", "grid.train.stop=[epochs, {loss: 0.1}]"
    )
    ours = {point_key(point) for point in sweep.grid.points()}
    tunes = [point_key(variant) for variant in expand(param_space(sweep.grid.axes))]
    assert set(tunes) == ours
    assert len(tunes) == len(ours) == 24


def test_a_sweep_runs_once_then_only_what_is_new(cluster, tmp_path):
    store = tmp_path / "store"
    sweep = small(tmp_path)
    outcome = sweep.run(store=store)
    assert (len(outcome.done), outcome.failed, outcome.stopped) == (2, {}, False)
    frame = sweep.trials(store=store)
    assert list(frame["status"]) == ["done", "done"]
    assert sweep.run(store=store) is None, "nothing is left to do"
    grown = small(tmp_path, "grid.seed=[0, 1]")
    assert set(grown.run(store=store).done) == set(grown.trials(store=store)["trial"]) - set(frame["trial"])


def test_ray_adds_where_never_what(cluster, tmp_path):
    """The same bits as `execute` in this process, without Ray."""
    sweep = small(tmp_path)
    sweep.run(store=tmp_path / "ray")
    _, jobs = sweep.missing(Store(tmp_path / "here"), data=None)
    for job in jobs.values():
        execute(job, report=lambda event: None)
    assert numbers(sweep, tmp_path / "ray") == numbers(sweep, tmp_path / "here")


def test_a_shared_stage_is_trained_once(cluster, tmp_path):
    grid = {**SMALL["grid"], "mixer": ["none/none", "none/random"], "ratio": [1.0, 2.0]}
    sweep = small(tmp_path, grid=grid)
    outcome = sweep.run(store=tmp_path / "store")
    frame = sweep.trials(store=tmp_path / "store")
    assert len(outcome.done) == 3, "none/none is the same trial for both ratios"
    assert len(frame) == 4
    assert frame.drop_duplicates("trial")["reused_1"].sum() == 2
    assert len(list((tmp_path / "store" / "stages").glob("kvr-none-*"))) == 1


def test_two_workers_agree_with_one(cluster, tmp_path):
    one, two = small(tmp_path, MIXED), small(tmp_path, MIXED, "runtime.workers=2")
    one.run(store=tmp_path / "one")
    outcome = two.run(store=tmp_path / "two")
    assert outcome.failed == {}
    for single, double in zip(numbers(one, tmp_path / "one"), numbers(two, tmp_path / "two"), strict=True):
        assert single["trial"] == double["trial"]
        assert single["loss_1"] == pytest.approx(double["loss_1"], rel=1e-4)
        assert single["loss_2"] == pytest.approx(double["loss_2"], rel=1e-4)
        for accuracy in ("accuracy_a1", "retention", "accuracy_b"):
            assert single[accuracy] == double[accuracy]
    records = [json.loads(path.read_text()) for path in (tmp_path / "two" / "stages").glob("*/record.json")]
    assert {(record["engine"]["world_size"], record["engine"]["backend"]) for record in records} == {(2, "gloo")}
    left = {path.name for path in (tmp_path / "two").iterdir() if not path.name.startswith(".")}
    assert left <= {"leases", "models", "stages", "sweeps", "trials"}, "Ray leaves nothing in the store"


def test_a_worker_group_of_one_gives_the_same_bits(cluster, tmp_path):
    warm, isolated = small(tmp_path, MIXED), small(tmp_path, MIXED, "runtime.isolate=true")
    warm.run(store=tmp_path / "warm")
    isolated.run(store=tmp_path / "isolated")
    assert numbers(warm, tmp_path / "warm") == numbers(isolated, tmp_path / "isolated")


def test_a_failed_trial_fails_alone(cluster, tmp_path, data_dir, capsys):
    grid = {**SMALL["grid"], "d_b": ["apps", "id"], "mixer": ["none/none"]}  # the folder holds four problems, not eight
    path = write(tmp_path, grid=grid)
    store = str(tmp_path / "store")
    assert main(["run", str(path), "--store", store, "--data", str(data_dir)]) == 1
    said = capsys.readouterr()
    assert "8 examples are asked for and there are 4" in said.err
    assert "✗" in said.out
    assert main(["run", str(path), "--store", store, "--data", str(data_dir), "--set", "grid.d_b=[id]"]) == 0
    assert "nothing is left to do" in capsys.readouterr().err


def test_a_trial_that_asks_for_too_much_is_refused_at_once(cluster, tmp_path, capsys):
    assert main(["run", str(write(tmp_path)), "--store", str(tmp_path / "store"), "--set", "runtime.workers=64"]) == 2
    assert "runtime.workers" in capsys.readouterr().err


def test_one_point_has_the_id_that_it_has_in_its_sweep(cluster, tmp_path, capsys):
    path, store = write(tmp_path), tmp_path / "store"
    point = ["--d-a", "kvr", "--d-b", "id", "--mixer", "random/none", "--ratio", "1", "--seed", "0"]
    assert main(["trial", str(path), *point, "--store", str(store)]) == 0
    frame = small(tmp_path).trials(store=store).set_index("mixer")
    assert frame.loc["random/none", "trial"] in capsys.readouterr().out
    assert list(frame["status"]) == ["pending", "done"]
    assert main(["trial", str(path), *point[:-1], "7", "--store", str(store)]) == 2
    assert "seed 7" in capsys.readouterr().err


def test_a_grid_of_one_stage_has_a_table_too(cluster, tmp_path, capsys):
    path = write(tmp_path, grid={"d_a": ["kvr"], "mixer": ["none"]})
    assert main(["run", str(path), "--store", str(tmp_path / "store")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].split() == ["mixer", "kvr"]
    assert said[2].startswith("none")


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(tmp_path, root):
    """In a process of its own, with a Ray of its own."""
    path, store = write(tmp_path, train={**SMALL["train"], "epochs": 4000}), tmp_path / "store"
    run = subprocess.Popen(
        [sys.executable, "-m", "raysweep.cli", "run", str(path), "--store", str(store)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
    )  # fmt: skip
    try:
        _wait_for(lambda: list((store / ".in-flight").glob("*")) or run.poll() is not None, seconds=400)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=300)
    finally:
        run.kill()
    assert run.returncode == 130, said
    assert "the same command goes on" in said
    statuses = {json.loads(record.read_text())["status"] for record in (store / "trials").glob("*/record.json")}
    assert statuses == {"stopped"}


def _wait_for(happens, *, seconds):
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.2)
