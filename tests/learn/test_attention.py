"""What computes attention, and which models go on from a kept state, are read from their configuration."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import BloomConfig, LlamaConfig, Mamba2Config, MistralConfig, Qwen3_5TextConfig

from raysweep.learn.attention import has_window, implementation, keeps_keys

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("config", "dtype", "device", "installed", "chosen"),
    [
        (LlamaConfig(), torch.bfloat16, GPU, True, "flash_attention_2"),
        (LlamaConfig(), torch.float32, GPU, True, None),
        (LlamaConfig(), torch.bfloat16, CPU, True, None),
        (LlamaConfig(), torch.bfloat16, GPU, False, None),
        (BloomConfig(), torch.bfloat16, GPU, True, None),
    ],
    ids=["taken", "not for 32 bits", "not on a CPU", "not installed", "not for a model without"],
)
def test_flash_attention_is_taken_where_it_can_be(monkeypatch, config, dtype, device, installed, chosen):
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: installed)
    assert implementation(config, dtype, device) == chosen


def test_keys_are_kept_by_attention_alone_and_a_window_sees_some_of_them():
    windowed = MistralConfig(sliding_window=16)
    assert keeps_keys(LlamaConfig()) and not has_window(LlamaConfig())
    assert keeps_keys(windowed) and has_window(windowed)
    assert not keeps_keys(Mamba2Config()) and not keeps_keys(Qwen3_5TextConfig())
