"""Ranks whose examples differ in length make the same collective calls: with a real vocabulary no batch hangs."""

from __future__ import annotations

import numpy as np
import pytest
import ranks
import torch
from rank_dependent import steps
from transformers import LlamaConfig, LlamaForCausalLM

from raysweep.data.encoding import Encoded
from raysweep.learn.batches import Batch

VOCABULARY = 128_256
PATIENCE = 60


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A Llama with the vocabulary of Llama 3 and hardly anything else."""
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=False, max_position_embeddings=2048, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def example(name, length, seed):
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, length, dtype=np.int32)
    return Encoded(name, tokens, np.arange(length) > 0)


def test_ranks_with_1500_and_700_target_tokens_train(wide, training, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "PATIENCE", PATIENCE)
    batch = Batch(0, 0, (example("a", 1501, 1), example("b", 701, 2)))
    job = {"folder": wide, "training": training(), "batches": [batch], "runtime": {"zero": 3}, "out": tmp_path}
    assert ranks.run(steps, job, size=2, folder=tmp_path) == [0, 0]
