"""Llama shapes with random weights: how many they have, what a step costs in FLOPs, and Transformers folders of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SEED = 20241107
SPREAD = 0.02  # of the weights, as Llama's are drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama:
    """A Llama's sizes; `keys` counts the heads of keys and values, `tied` shares input and output embedding."""

    hidden: int
    layers: int
    heads: int
    keys: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def matrices(self) -> int:
        """Weights of the layers' matrices: what every token is multiplied by."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.hidden * self.keys // self.heads
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def weights(self) -> int:
        """All weights, those of norms and embeddings too; a shared embedding counts once."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.matrices + norms + self.vocabulary * self.hidden * (1 if self.tied else 2)


SHAPES = {
    "small": Llama(hidden=256, layers=2, heads=4, keys=4, intermediate=680, vocabulary=1024, tied=True),
    "llama_1b": Llama(hidden=2048, layers=16, heads=32, keys=8, intermediate=8192, vocabulary=128256, tied=True),
    "llama_8b": Llama(hidden=4096, layers=32, heads=32, keys=8, intermediate=14336, vocabulary=128256, tied=False),
}

# A quarter of the layers, whole embeddings: what fits where the whole does not, or takes too long.
QUARTERS = {
    f"{name}_quarter": replace(SHAPES[name], layers=SHAPES[name].layers // 4) for name in ("llama_1b", "llama_8b")
}


def model_flops(llama: Llama, lengths: Sequence[int]) -> int:
    """FLOPs of a forward and backward pass over examples of these lengths, as utilisation is usually told.

    6 × weights × tokens + 12 × layers × hidden × pairs. Pairs are those of a token and one that it sees, itself
    included: n (n + 1) / 2 of an example of n tokens. Padding and recomputed activations do not count.
    """
    return 6 * llama.weights * sum(lengths) + _attention_flops(llama, lengths)


def product_flops(llama: Llama, lengths: Sequence[int], *, targets: int) -> int:
    """FLOPs of those products alone that the engine cannot leave out.

    As `model_flops`, but input embeddings are looked up, norms are no product, and the output embedding is multiplied
    only where the next token is one of `targets`.
    """
    head = 6 * llama.vocabulary * llama.hidden * targets
    return 6 * llama.matrices * sum(lengths) + head + _attention_flops(llama, lengths)


def write_random(llama: Llama, folder: Path, *, tokenizer: Path) -> None:
    """Write random bfloat16 weights as a Transformers folder with the tokenizer of another one.

    Layer by layer: no more of the model is in memory than its embedding. Drawn on a GPU where there is one.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    from raysweep.learn.model import copy_tokenizer

    config = _config(llama)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in model.named_parameters():
        layer = re.search(r"layers\.\d+\.", name)
        shards.setdefault(layer[0] if layer else name, {})[name] = parameter.shape
    folder.mkdir(parents=True)
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(SEED)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards.values(), start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _drawn(shape, generator) for name, shape in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 2 * llama.weights}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)


def _attention_flops(llama: Llama, lengths: Sequence[int]) -> int:
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    return 12 * llama.layers * llama.hidden * pairs


def _config(llama: Llama) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=llama.hidden,
        num_hidden_layers=llama.layers,
        num_attention_heads=llama.heads,
        num_key_value_heads=llama.keys,
        intermediate_size=llama.intermediate,
        vocab_size=llama.vocabulary,
        tie_word_embeddings=llama.tied,
        max_position_embeddings=4096,
        dtype="bfloat16",
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )


def _drawn(shape: Any, generator: Any) -> Any:
    """A random matrix, or a norm's ones."""
    import torch

    drawn = torch.ones(shape, dtype=torch.bfloat16, device=generator.device)
    return (drawn.normal_(0.0, SPREAD, generator=generator) if drawn.dim() > 1 else drawn).cpu()
