"""The experiment in plain PyTorch: own data walk, own loop, own greedy decoding. It shares nothing with raysweep but the
tokenizer, so that what both say is said twice.

A chain is a list of `Stage`; `run` gives after each stage the weights, and how it went.
"""

from __future__ import annotations

import hashlib
import math
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Pair = tuple[str, str]  # prompt and target


@dataclass
class Stage:
    """What one stage trains on and when it ends: `stop` is "epochs", "memorized", or a loss and how many hits."""

    own: list[Pair]
    mixed: list[Pair]
    epochs: int
    stop: Any = "epochs"


@dataclass
class Result:
    """A stage that is over: weights, steps, why it ended, hits, and right answers on all stages' own sets so far."""

    weights: dict[str, torch.Tensor]
    steps: int
    stopped_by: str
    hits: int
    right: list[list[bool]]


def kvr(count: int, *, skip: int = 0, data_seed: int = 0) -> list[Pair]:
    drawn = random.Random(f"kvr/1/{data_seed}")
    words = ["".join(drawn.choices(string.ascii_letters + string.digits, k=8)) for _ in range(2 * (skip + count))]
    return [(f"The value of key {key} is?", value) for key, value in zip(words[::2], words[1::2], strict=True)][skip:]


def asked_in_order(rows: Sequence[Pair], *, data_seed: int = 0) -> list[Pair]:
    """Questions and answers in the order that the seed gives, whatever the file's."""
    key = lambda row: hashlib.sha256(f"{data_seed}\n{' '.join(row[0].casefold().split())}".encode()).hexdigest()  # noqa: E731
    return sorted(rows, key=key)


def random_words(listed: Sequence[str], count: int, *, words: int, data_seed: int = 0) -> list[Pair]:
    drawn, half = random.Random(f"random/{words}/{data_seed}"), words // 2
    several = [drawn.choices(listed, k=words) for _ in range(count)]
    prompt = "Complete the following random word sequence:\n\n"
    return [(prompt + " ".join(one[:half]), " ".join(one[half:])) for one in several]


def replay(own: Sequence[Pair], count: int, *, data_seed: int = 0) -> list[Pair]:
    order = list(own)
    random.Random(f"replay/{data_seed}").shuffle(order)
    return order[:count]


class Reference:
    """A model folder and training settings."""

    def __init__(self, folder: Path, *, lr: float, batch_size: int, seed: int, clip: float = 1.0):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.lr, self.batch_size, self.seed, self.clip = lr, batch_size, seed, clip

    def run(self, chain: Sequence[Stage]) -> list[Result]:
        found = []
        for index, stage in enumerate(chain):
            steps, stopped_by, hits = self.train(stage)
            weights = {name: one.clone() for name, one in self.model.state_dict().items()}
            right = [self.right(before.own) for before in chain[: index + 1]]
            found.append(Result(weights, steps, stopped_by, hits, right))
        return found

    def train(self, stage: Stage) -> tuple[int, str, int]:
        examples = [self.encode(*pair) for pair in [*stage.own, *stage.mixed]]
        per_epoch = math.ceil(len(examples) / self.batch_size)
        total, hits, step = per_epoch * stage.epochs, 0, 0
        optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        self.model.train()
        for epoch in range(stage.epochs):
            order = list(range(len(examples)))
            random.Random(f"order/{self.seed}/{epoch}").shuffle(order)
            for start in range(0, len(order), self.batch_size):
                optimizer.param_groups[0]["lr"] = self.lr * self.share(step, total)
                loss = self.loss([examples[number] for number in order[start : start + self.batch_size]])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
                optimizer.step()
                step += 1
                if isinstance(stage.stop, dict):
                    hits += loss.item() < stage.stop["loss"]
                    if hits >= stage.stop["hits"]:
                        return step, "loss", hits
            if stage.stop == "memorized" and all(self.is_right(*pair) for pair in stage.own):
                return step, "memorized", hits
        return step, "epochs", hits

    def share(self, step: int, total: int) -> float:
        """Of the learning rate: up over 5 % of the steps, then down a cosine."""
        warm = math.ceil(0.05 * total)
        return step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    def loss(self, batch: Sequence[tuple[list[int], int]]) -> torch.Tensor:
        """The mean over the batch's target tokens, one example at a time: nothing is padded."""
        losses = []
        for tokens, begin in batch:
            logits_LV = self.model(torch.tensor([tokens])).logits[0]
            wanted = torch.tensor(tokens[begin:])
            losses.append(torch.nn.functional.cross_entropy(logits_LV[begin - 1 : -1], wanted, reduction="sum"))
        return torch.stack(losses).sum() / sum(len(tokens) - begin for tokens, begin in batch)

    def encode(self, prompt: str, target: str) -> tuple[list[int], int]:
        """Tokens, and where the target begins."""
        start = self.tokens(f"<|user|>\n{prompt.strip()}\n<|assistant|>\n")
        whole = self.tokens(f"<|user|>\n{prompt.strip()}\n<|assistant|>\n{target}")
        whole = whole if whole[: len(start)] == start else start + self.tokens(target)
        return [*whole, self.tokenizer.eos_token_id], len(start)

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def right(self, pairs: Sequence[Pair]) -> list[bool]:
        return [self.is_right(*pair) for pair in pairs]

    @torch.no_grad()
    def is_right(self, prompt: str, target: str, most: int = 40) -> bool:
        """Whether greedy decoding, token by token without a cache, gives the target."""
        tokens, begin = self.encode(prompt, target)
        said = tokens[:begin]
        self.model.eval()
        while len(said) < begin + most:
            best = int(self.model(torch.tensor([said])).logits[0, -1].argmax())
            if best == self.tokenizer.eos_token_id:
                break
            said.append(best)
        self.model.train()
        text = self.tokenizer.decode(said[begin:], skip_special_tokens=True)
        return text.strip().lower() == target.strip().lower()
