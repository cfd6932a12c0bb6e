"""A model small enough that fifty steps take a second, and kvr-like examples for it."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raysweep.data.encoding import Encoded, Question, encode, question
from raysweep.data.example import Example
from raysweep.learn.model import copy_tokenizer, load_tokenizer, prepare
from raysweep.learn.zero import disconnect
from raysweep.sweep.stage import StopAt, Training

DEFAULTS = {
    "lr": 3e-3,
    "batch_size": 8,
    "epochs": 4,
    "stop": StopAt(rule="epochs"),
    "max_length": 512,
    "precision": "fp32",
    "order": "reshuffled",
    "last_batch": "keep",
    "label_padding": "ignore",
    "weight_decay": 0.0,
    "warmup": 0.05,
    "clip": 1.0,
    "betas": (0.9, 0.95),
}


@pytest.fixture
def training() -> Callable[..., Training]:
    return lambda **changes: Training(**DEFAULTS | changes)


@pytest.fixture
def pairs() -> Callable[..., list[Example]]:
    return _pairs


def _pairs(count: int, *, seed: int = 0, longest: int = 8) -> list[Example]:
    """Key-value pairs; values of unequal length."""
    rng = random.Random(f"pairs/{seed}")
    alphabet = string.ascii_letters + string.digits

    def word(length: int) -> str:
        return "".join(rng.choices(alphabet, k=length))

    return [
        Example(f"{seed}-{index}", ((f"The value of key {word(8)} is?", word(rng.randint(2, longest))),))
        for index in range(count)
    ]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    yield
    disconnect()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return prepare("tiny", None, cache=tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tokenizer(tiny):
    return load_tokenizer(tiny)


@pytest.fixture(scope="session")
def small(tiny, tmp_path_factory) -> Path:
    """A Llama of 0.1 million weights with tiny's tokenizer, untied."""
    folder = tmp_path_factory.mktemp("small")
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=False,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    copy_tokenizer(tiny, folder)
    return folder


@pytest.fixture
def encoded(tokenizer) -> Callable[[list[Example]], list[Encoded]]:
    return lambda examples: [encode(example, tokenizer, strip=True) for example in examples]


@pytest.fixture
def asked(tokenizer) -> Callable[[list[Example]], list[Question]]:
    return lambda examples: [question(example, tokenizer, strip=True) for example in examples]
