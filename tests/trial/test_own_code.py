"""A tokenizer whose code comes with the model is loaded where `trust_remote_code` allows it, and only there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sweeps import small

from raysweep.cli import main
from raysweep.store.store import Store
from raysweep.trial.inputs import workbench

MODEL = Path(__file__).parent.parent / "golden" / "schema1" / "model"
CODE = """
from transformers import PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    said = "by its own code"
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """The golden model with a tokenizer class of its own."""
    folder = tmp_path / "own-code-model"
    shutil.copytree(MODEL, folder)
    (folder / "own_tokenizer.py").write_text(CODE)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]}}
    path.write_text(json.dumps(config))
    return folder


def test_trust_reaches_the_tokenizer(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    sweep = small(tmp_path, model={"name": str(folder), "trust_remote_code": True})
    bench = workbench(
        sweep.sweep.model, Store(tmp_path / "store"), data_dir=None, sets={}, text=None, runtime=sweep.sweep.runtime
    )
    assert bench.inputs.tokenizer.said == "by its own code"
    assert main(["data", "check", str(tmp_path / "sweep.yaml")]) == 0
    assert "error" not in capsys.readouterr().out
