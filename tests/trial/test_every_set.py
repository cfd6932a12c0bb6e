"""Every set that the data folder carries loads, shows itself, and trains: through the commands and the real model."""

from __future__ import annotations

import pytest
import yaml
from sweeps import SMALL

from raysweep.api import load
from raysweep.cli import main
from raysweep.store.store import Store
from raysweep.trial.execute import execute

FACTOID = ["kvr", "popqa", "triviaqa", "lama", "entityqa", "webqa", "mquake"]
OTHER = ["gsm8k", "evolcode", "apps", "ultrachat"]  # the folder has one dialogue, and no MATH


@pytest.fixture
def everything(tmp_path, data_dir):
    """A sweep that names them all, one example each."""
    path = tmp_path / "everything.yaml"
    content = {
        **SMALL,
        "name": "everything",
        "examples": 1,
        "mixing": {"words": 10, "text": {"path": str(data_dir / "generic_text" / "c4_demo.jsonl"), "field": "text"}},
        "grid": {
            "d_a": FACTOID, "d_b": [*OTHER, *FACTOID, "id"], "seed": [0],
            "mixer": ["none/none", "random/text", "none/replay"], "ratio": [1.0],
        },
        "exclude": [
            {"d_a": [name for name in FACTOID if name != "kvr"], "d_b": [*OTHER, *FACTOID]},
            {"mixer": ["random/text", "none/replay"], "d_b": [name for name in [*OTHER, *FACTOID] if name != "gsm8k"]},
            {"mixer": "none/replay", "d_b": "id"}, {"mixer": "random/text", "d_b": "id"},
        ],
        "train": {**SMALL["train"], "epochs": 1, "max_length": 4096},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


def test_check_shows_every_set(everything, data_dir, capsys):
    assert main(["data", "check", str(everything), "--data", str(data_dir)]) == 0
    said = capsys.readouterr().out
    for name in [*FACTOID, *OTHER, "random (mixer)", "text (mixer)"]:
        assert f"{name}" in said
    assert said.count("digest ") == len(FACTOID) + len(OTHER) + 2
    assert said.count("⟦") >= len(FACTOID) + len(OTHER) + 2


@pytest.mark.slow
def test_every_set_trains(everything, data_dir, tmp_path):
    sweep, store = load(everything), Store(tmp_path / "store")
    _, jobs = sweep.missing(store, data=data_dir)
    assert len(jobs) >= len(FACTOID) + len(OTHER)
    for job in jobs.values():
        record = execute(job, report=lambda event: None)
        assert record["status"] == "done", (job.point, record["error"])
    frame = sweep.trials(store=tmp_path / "store", data=data_dir)
    assert set(frame["status"]) == {"done"}
    assert frame["loss_2"].notna().all()
