"""Answers and scores by transformers.generate alone, and the paper's rule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from raysweep.data.encoding import Question
from raysweep.data.scoring import Scorer


def by_generate(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    scorer: Scorer,
    *,
    most: int,
    batch_size: int = 7,
    ends: Sequence[int] = (0,),
) -> tuple[list[str], list[float]]:
    """Batched, left-padded greedy generation to its end, then the rule."""
    texts = []
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        width = max(len(one.prompt) for one in batch)
        ids = torch.tensor([[0] * (width - len(one.prompt)) + list(one.prompt) for one in batch])
        mask = torch.tensor([[0] * (width - len(one.prompt)) + [1] * len(one.prompt) for one in batch])
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=most,
            pad_token_id=0,
            eos_token_id=list(ends),
        )
        answers = [list(takewhile(lambda token: token not in ends, row)) for row in out[:, width:].tolist()]
        texts += tokenizer.batch_decode(answers, skip_special_tokens=True)
    texts = [text.split(one.stop, 1)[0] if one.stop else text for text, one in zip(texts, questions, strict=True)]
    return texts, [scorer.score(text, one.golds) for text, one in zip(texts, questions, strict=True)]
