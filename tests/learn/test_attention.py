"""What computes attention, and which models go on from a kept state, are read from their configuration."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    Qwen3_5TextConfig,
)

from raysweep.learn.attention import VARLEN, has_window, implementation, keeps_keys

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("config", "dtype", "device", "installed", "chosen"),
    [
        (LlamaConfig(), torch.bfloat16, GPU, {2}, "flash_attention_2"),
        (LlamaConfig(), torch.bfloat16, GPU, {2, 3}, "flash_attention_3"),
        (LlamaConfig(attention_dropout=0.1), torch.bfloat16, GPU, {2, 3}, "flash_attention_2"),
        (LlamaConfig(), torch.float32, GPU, {2, 3}, None),
        (LlamaConfig(), torch.bfloat16, CPU, {2, 3}, None),
        (LlamaConfig(), torch.bfloat16, GPU, set(), VARLEN),
        (LlamaConfig(), torch.float32, GPU, set(), None),
        (LlamaConfig(), torch.bfloat16, CPU, set(), None),
        (GPT2Config(), torch.bfloat16, GPU, set(), None),
        (Gemma2Config(), torch.bfloat16, GPU, set(), None),
        (GPTJConfig(), torch.bfloat16, GPU, set(), None),
        (BloomConfig(), torch.bfloat16, GPU, {2, 3}, None),
    ],
    ids=[
        "taken", "the faster one", "only this one drops out", "not for 32 bits", "not on a CPU", "PyTorch's own", "nor for 32 bits",
        "nor on a CPU", "nor with dropout", "nor with capped logits", "nor past the interface", "not for a model without",
    ],
)  # fmt: skip
def test_varlen_attention_is_taken_where_it_can_be(monkeypatch, config, dtype, device, installed, chosen):
    for version in (2, 3):
        found = version in installed
        monkeypatch.setattr(transformers.utils, f"is_flash_attn_{version}_available", lambda found=found: found)
    assert implementation(config, dtype, device) == chosen


def test_keys_are_kept_by_attention_alone_and_a_window_sees_some_of_them():
    windowed = MistralConfig(sliding_window=16)
    assert keeps_keys(LlamaConfig()) and not has_window(LlamaConfig())
    assert keeps_keys(windowed) and has_window(windowed)
    assert not keeps_keys(Mamba2Config()) and not keeps_keys(Qwen3_5TextConfig())
