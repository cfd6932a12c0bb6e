"""The model `tiny`: a Llama of 1.8 million weights from a fixed seed, with a tokenizer that encodes any text.

It needs no download and memorizes 200 kvr pairs in seconds on one core. The tokenizer is shipped as `tiny.json`; it was
made once by `train_tokenizer` from the NLTK word list, and a change of it is a new recipe (`TINY_RECIPE`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from raysweep.learn.weights import write_weights

__all__ = ["train_tokenizer", "write_tiny"]

END = "<|endoftext|>"
VOCABULARY = 1024
SEED = 20241107
EVERY_WORD = 40  # one word in so many stands for the list: the merges hardly differ, training takes a second
TEMPLATE = (
    "<|user|>\nThe value of key is?\n<|assistant|>\nThe answer is: \nComplete the following random word sequence:\n\n"
)


def write_tiny(folder: Path) -> None:
    """Write `tiny` as an ordinary Transformers folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=680,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(config)
    write_weights(model, folder)
    shipped = resources.files("raysweep.learn") / "tiny.json"
    with resources.as_file(shipped) as file:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=END, pad_token=END)
    tokenizer.save_pretrained(folder)


def train_tokenizer(words: Sequence[str], file: Path) -> None:
    """Make `tiny.json`: a byte-level BPE of 1,024 tokens over the template and a part of a word list.

    Every byte is a token of its own, so that any text has tokens and any tokens have a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(words[::EVERY_WORD]), trainer)
    tokenizer.save(str(file))


def _corpus(words: Iterable[str]) -> Iterable[str]:
    """Words as they stand in a sequence, and the template often enough to be merged whole."""
    for word in words:
        yield f" {word}"
    yield from [TEMPLATE] * 2000
