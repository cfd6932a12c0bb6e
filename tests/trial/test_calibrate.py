"""What a few real steps say of a sweep is near to what it then takes; a roofline is not."""

from __future__ import annotations

import json
import math

import pytest
from sweeps import small, write

from raysweep.api import calibrate, overview
from raysweep.cli import main
from raysweep.errors import BadInput
from raysweep.forecast.cost import spent
from raysweep.store.store import Store
from raysweep.trial.execute import execute

GRID = {"d_a": ["kvr"], "d_b": ["id"], "mixer": ["none/none", "none/random"], "ratio": [1.0], "seed": [0]}
SIZES = ("train.epochs=6", "examples=24")


def told(store, folder, *changes):
    """The estimate of a sweep of three stages."""
    return overview([small(folder, *SIZES, *changes, grid=GRID)], store=store)["estimate"]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A store in which nothing is but a calibration, what the command printed, and the estimate before."""
    folder = tmp_path_factory.mktemp("calibrated")
    store = str(folder / "store")
    before = told(store, folder)
    file = write(folder, grid=GRID)
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda text: printed.append(text))
        sets = [word for change in SIZES for word in ("--set", change)]
        assert main(["plan", str(file), "--calibrate", "--store", store, "--json", *sets]) == 0
    return store, json.loads(printed[0]), before


def test_a_calibration_is_kept_for_its_model_and_runtime_and_nothing_else_is(calibrated, tmp_path):
    store, printed, _ = calibrated
    (kept,) = Store(store).calibrations()
    assert printed["calibrated"] == [{name: value for name, value in kept.items() if name != "made"}]
    assert min(kept[name] for name in ("open", "save", "force", "answer")) > 0
    (few, _), (many, _) = sorted((one["tokens"], one["step"]) for one in kept["stages"])
    assert few < many, "the shortest and the longest"
    assert Store(store).stage_records() == {} and Store(store).sweeps() == []
    assert told(store, tmp_path)["basis"] == {"timed": 3} == printed["estimate"]["basis"]
    for other in ("runtime.zero=0", "runtime.workers=2", "train.precision=bf16", "runtime.gpus_per_worker=1"):
        assert set(told(store, tmp_path, other)["basis"]) == {"computed"}, other


def test_a_calibrated_estimate_is_nearer_to_what_a_sweep_then_takes(calibrated, tmp_path):
    """By half at least of the orders of magnitude that the roofline is off."""
    url, printed, before = calibrated
    after = printed["estimate"]
    assert "as plan --calibrate timed such steps" in after["assumes"] and "CPU" in after["assumes"]
    store = Store(url)
    _, jobs = small(tmp_path, *SIZES, grid=GRID).missing(store, data=None)
    for job in jobs.values():
        assert execute(job, report=lambda event: None)["status"] == "done"
    taken = sum(spent(record) for record in store.stage_records().values()) / 3600
    off = [abs(math.log(one["gpu_hours"] / taken)) for one in (before, after)]
    assert off[1] < off[0] / 2, f"estimated {before['gpu_hours']} and {after['gpu_hours']} hours, took {taken}"
    assert told(url, tmp_path)["gpu_hours"] == 0


@pytest.mark.slow
def test_workers_are_timed_together(tmp_path):
    sweep = small(tmp_path, "runtime.workers=2", grid=GRID)
    (found,) = calibrate(sweep, store=tmp_path / "store")
    assert found["workers"] == 2
    assert overview([sweep], store=tmp_path / "store")["estimate"]["basis"] == {"timed": 3}


def test_what_cannot_be_trained_here_is_bad_input(tmp_path):
    (tmp_path / "lamps.jsonl").write_text('{"q": "Who?", "a": "Me"}\n')
    lamps = {"path": str(tmp_path / "lamps.jsonl"), "prompt": "{q}", "target": "a"}
    sweep = small(tmp_path, sets={"lamps": lamps}, grid={**GRID, "d_a": ["lamps"], "d_b": ["none"]})
    with pytest.raises(BadInput, match="--calibrate: .*lamps"):
        calibrate(sweep, store=tmp_path / "store")
