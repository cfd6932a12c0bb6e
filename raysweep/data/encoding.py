"""Text to tokens: the Tulu v2 template, for training and for asking.

A conversation is `<|user|>\\n{prompt}\\n<|assistant|>\\n{target}{eos}`, further turns after a line break; only the
assistant's tokens and their eos are trained on (the paper, appendix; the released code's encoder does the same for one
turn). What a question asks is the training prefix, token by token: each assistant turn is encoded so that its prefix
stands alone. The tokenizer decides about a token at the beginning (bos); the end is always its eos. Control tokens
spelled out in the data are ordinary text, so no example can end itself early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from raysweep.data.example import Example
from raysweep.errors import BadInput
from raysweep.sweep.stage import TextForm

__all__ = ["AS_DESCRIBED", "Encoded", "Question", "encode", "few_shot_question", "question"]

LINE_END = "\n"
AS_DESCRIBED = TextForm()


@dataclass(frozen=True, slots=True)
class Encoded:
    """One training example: `tokens` int32[length] and `targets` bool[length], true where a token is trained on."""

    id: str
    tokens: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the prompt's tokens, the gold target's tokens (eos last, as trained), and every gold text.

    `stop` is a text that ends an answer beside eos; None where eos alone does. `shown`: the answer is what follows the
    first so many characters of prompt and answer decoded together (None: what follows the prompt's tokens).
    """

    id: str
    prompt: tuple[int, ...]
    target: tuple[int, ...]
    golds: tuple[str, ...]
    stop: str | None = None
    shown: int | None = None


def encode(example: Example, tokenizer: Any, *, strip: bool, form: TextForm = AS_DESCRIBED) -> Encoded:
    """Tokens of a whole conversation. `strip` takes outer white space off every prompt; `form` is what else is done as in
    the released code."""
    tokens = list(_opening(tokenizer))
    targets = [False] * len(tokens)
    for index, turn in enumerate(example.turns):
        prefix, target = _turn(turn, tokenizer, strip=strip, first=index == 0, form=form)
        ended = len(_plain(LINE_END, tokenizer)) if index and form.line_ends == "trained" else 0
        tokens += prefix + target
        targets += [True] * ended + [False] * (len(prefix) - ended) + [True] * len(target)
    if example.unanswered is not None:
        rest, ended = _unanswered(example, tokenizer, strip=strip, form=form)
        tokens += rest
        targets += [True] * ended + [False] * (len(rest) - ended)
    return Encoded(example.id, np.asarray(tokens, dtype=np.int32), np.asarray(targets, dtype=bool))


def question(
    example: Example, tokenizer: Any, *, strip: bool, cut: Literal["tokens", "characters"] = "tokens"
) -> Question:
    """The last turn of an example as it is asked: everything before its answer is the prompt.

    What was trained on alone is right here (METHOD, Evaluation); other names of the same answer are not.
    """
    prompt = list(_opening(tokenizer))
    for index, turn in enumerate(example.turns[:-1]):
        prefix, target = _turn(turn, tokenizer, strip=strip, first=index == 0)
        prompt += prefix + target
    prefix, target = _turn(example.turns[-1], tokenizer, strip=strip, first=len(example.turns) == 1)
    whole = tuple(prompt + prefix)
    shown = len(_text_of(example.turns, strip=strip)) if cut == "characters" else None
    return Question(example.id, whole, tuple(target), (example.target,), shown=shown)


def few_shot_question(
    example: Example, shots: Sequence[Example], tokenizer: Any, *, form: Literal["plain", "chat"] = "plain"
) -> Question:
    """`Q: …\\nA: …` lines of the shots, then the example's question; its answer ends at the first line end, or in the
    `chat` form, which puts the same text into the template, as any answer does."""
    lines = [f"Q: {shot.prompt.strip()}\nA: {shot.target.strip()}\n" for shot in shots]
    text = "".join(lines) + f"Q: {example.prompt.strip()}\nA:"
    if form == "chat":
        asked = question(replace(example, turns=((text, example.target.strip()),)), tokenizer, strip=False)
        return replace(asked, golds=example.answers or (example.target,))
    prompt, target = _split(text, " " + example.target.strip() + LINE_END, tokenizer)
    golds = example.answers or (example.target,)
    return Question(example.id, (*_opening(tokenizer), *prompt), tuple(target), golds, stop=LINE_END)


def _turn(
    turn: tuple[str, str], tokenizer: Any, *, strip: bool, first: bool, form: TextForm = AS_DESCRIBED
) -> tuple[list[int], list[int]]:
    prompt, target = turn
    target = target.strip() if form.targets == "stripped" else target
    prefix = ("" if first else LINE_END) + _prefix(prompt, strip=strip)
    prefix_tokens, target_tokens = _split(prefix, target, tokenizer, parsed=form.control_tokens == "parsed")
    return prefix_tokens, [*target_tokens, _end(tokenizer)]


def _unanswered(example: Example, tokenizer: Any, *, strip: bool, form: TextForm) -> tuple[list[int], int]:
    """A user's last word, and how many of its tokens are trained on: those of the line end after the answer before it."""
    word = (example.unanswered or "").strip() if strip else example.unanswered
    text = (LINE_END if example.turns else "") + f"<|user|>\n{word}"
    ended = len(_plain(LINE_END, tokenizer)) if example.turns and form.line_ends == "trained" else 0
    return _plain(text, tokenizer, parsed=form.control_tokens == "parsed"), ended


def _prefix(prompt: str, *, strip: bool) -> str:
    return f"<|user|>\n{prompt.strip() if strip else prompt}\n<|assistant|>\n"


def _text_of(turns: Sequence[tuple[str, str]], *, strip: bool) -> str:
    """A conversation as text, up to where its last answer begins."""
    answered = [f"{_prefix(user, strip=strip)}{said}{LINE_END}" for user, said in turns[:-1]]
    return "".join(answered) + _prefix(turns[-1][0], strip=strip)


def _split(prefix: str, text: str, tokenizer: Any, *, parsed: bool = False) -> tuple[list[int], list[int]]:
    """Tokens of `prefix` and of what follows it.

    Encoded together, as the released code does, unless a token would lie across the border: then the model could never
    be asked what it was trained on, and the two are encoded one after the other.
    """
    prefix_tokens = _plain(prefix, tokenizer, parsed=parsed)
    together = _plain(prefix + text, tokenizer, parsed=parsed)
    if together[: len(prefix_tokens)] == prefix_tokens:
        return prefix_tokens, together[len(prefix_tokens) :]
    return prefix_tokens, _plain(text, tokenizer, parsed=parsed)


def _plain(text: str, tokenizer: Any, *, parsed: bool = False) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=not parsed)["input_ids"]


@lru_cache(maxsize=8)
def _opening(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer itself puts before a text: bos for Llama, Mistral and Gemma, nothing for others."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def _end(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise BadInput(f"tokenizer {tokenizer.name_or_path!r} has no eos token: no answer could end; set one in it")
    return tokenizer.eos_token_id
