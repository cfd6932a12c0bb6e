"""The experiment once more, in plain PyTorch: what `execute` is compared with.

It shares nothing with raysweep but the tokenizer and the base model's folder: its own walk over the data, its own loop, its
own greedy decoding, its own scores. Rules are those of the paper and of METHOD; seeds are spelled as raysweep spells them,
since the same seed must give the same experiment for ever.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LETTERS = string.ascii_letters + string.digits
Pair = tuple[str, str]  # prompt, target


def kvr(data_seed: int) -> Iterator[Pair]:
    """Random pairs: key and value of eight letters and digits."""
    rng = random.Random(f"kvr/1/{data_seed}")
    while True:
        key, value = ("".join(rng.choices(LETTERS, k=8)) for _ in range(2))
        yield f"The value of key {key} is?", value


def facts(file: Path, data_seed: int) -> list[Pair]:
    """Questions of a file, in the order of a digest of what they ask."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    pairs = [(f"{row['question']}\nThe answer is: ", row["answer"]) for row in rows]
    return sorted(
        pairs, key=lambda pair: hashlib.sha256(f"{data_seed}\n{' '.join(pair[0].lower().split())}".encode()).hexdigest()
    )


def random_words(words: Sequence[str], length: int, data_seed: int) -> Iterator[Pair]:
    """Half of a random sequence asks for the other half."""
    rng = random.Random(f"random/{length}/{data_seed}")
    while True:
        drawn = rng.choices(words, k=length)
        start, end = (" ".join(part) for part in (drawn[: length // 2], drawn[length // 2 :]))
        yield f"Complete the following random word sequence:\n\n{start}", end


def replay(d_a: Sequence[Pair], count: int, data_seed: int) -> list[Pair]:
    """Some of D_A."""
    order = list(d_a)
    random.Random(f"replay/{data_seed}").shuffle(order)
    return order[:count]


@dataclass
class Stage:
    """What a stage left: why it stopped, after how many steps, its losses, its weights, and what it answers of every set."""

    stopped_by: str
    losses: list[float]
    weights: dict[str, torch.Tensor]
    accuracy: dict[str, float]


class Reference:
    """A chain of stages on one base model."""

    def __init__(self, base: Path, *, max_new_tokens: int = 24) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.max_new_tokens = max_new_tokens

    def stage(
        self,
        own: Sequence[Pair],
        mixed: Sequence[Pair],
        asked: Mapping[str, Sequence[Pair]],
        *,
        seed: int,
        train: Mapping[str, Any],
    ) -> Stage:
        """Train on `own` and `mixed` from the weights as they are, then ask."""
        examples = [self._encode(*pair) for pair in [*own, *mixed]]
        per_epoch = math.ceil(len(examples) / train["batch_size"])
        total, hits, losses = per_epoch * train["epochs"], 0, []
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        stopped_by = ""
        while not stopped_by:
            epoch, index = divmod(len(losses), per_epoch)
            order = list(range(len(examples)))
            random.Random(f"order/{seed}/{epoch}").shuffle(order)
            chosen = order[index * train["batch_size"] : (index + 1) * train["batch_size"]]
            optimizer.param_groups[0]["lr"] = train["lr"] * _schedule(len(losses), total, warmup=0.05)
            losses.append(self._step([examples[one] for one in chosen], optimizer))
            match train["stop"]:
                case {"loss": below, "hits": most}:
                    hits += losses[-1] < below
                    stopped_by = "loss" if hits >= most else ""
                case "memorized" if len(losses) % per_epoch == 0:
                    stopped_by = "memorized" if self.accuracy(own) == 100.0 else ""
            stopped_by = stopped_by or ("epochs" if len(losses) == total else "")
        weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        return Stage(stopped_by, losses, weights, {name: self.accuracy(pairs) for name, pairs in asked.items()})

    def accuracy(self, pairs: Sequence[Pair]) -> float:
        """Greedy decoding, exact match after strip and lower-case, in percent."""
        right = [self._answer(prompt).strip().lower() == target.strip().lower() for prompt, target in pairs]
        return 100.0 * sum(right) / len(right)

    def _step(self, batch: Sequence[tuple[list[int], int]], optimizer: torch.optim.Optimizer) -> float:
        """The mean loss over the batch's target tokens, example by example; clipped at 1."""
        targets = sum(len(tokens) - start for tokens, start in batch)
        total = 0.0
        for tokens, start in batch:
            logits = self.model(torch.tensor([tokens])).logits[0, start - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[start:]), reduction="sum") / targets
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    @torch.no_grad()
    def _answer(self, prompt: str) -> str:
        tokens, said = self._prefix(prompt), []
        while len(said) < self.max_new_tokens:
            following = int(self.model(torch.tensor([tokens + said])).logits[0, -1].argmax())
            if following == self.tokenizer.eos_token_id:
                break
            said.append(following)
        return self.tokenizer.decode(said)

    def _prefix(self, prompt: str) -> list[int]:
        return self.tokenizer(f"<|user|>\n{prompt.strip()}\n<|assistant|>\n")["input_ids"]

    def _encode(self, prompt: str, target: str) -> tuple[list[int], int]:
        """Tokens of an example, and where its target begins."""
        prefix = self._prefix(prompt)
        whole = self.tokenizer(f"<|user|>\n{prompt.strip()}\n<|assistant|>\n{target}")["input_ids"]
        answer = whole[len(prefix) :] if whole[: len(prefix)] == prefix else self.tokenizer(target)["input_ids"]
        return [*prefix, *answer, self.tokenizer.eos_token_id], len(prefix)


def _schedule(step: int, total: int, *, warmup: float) -> float:
    """Linear warm-up, then a cosine to 0."""
    first = math.ceil(total * warmup)
    return step / first if step < first else 0.5 * (1 + math.cos(math.pi * (step - first) / (total - first)))
