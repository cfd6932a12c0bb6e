"""Evaluation speed against batched `generate`, with identical verdicts.

`all_memorized`: a model asked what it has memorized. `none_memorized`: the same model asked keys that it never saw,
so that it answers wrongly. The reference generates greedily in left-padded batches and applies the same
rule: in batches of 20 in the given order, as the released code does, which the ratios are against; and, as a figure,
in batches as large as ours, sorted by length.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from run import machine

from raysweep.chain import StopAt, Training
from raysweep.data.encoding import Question, encode, question
from raysweep.data.examples import candidates
from raysweep.data.scoring import SCORERS
from raysweep.data.sources import find

PAIRS = 200
BATCH = 64
RELEASED_BATCH = 20
SETTINGS = Training(
    lr=1e-3, batch_size=32, epochs=60, stop=StopAt(rule="memorized"), max_length=2048, precision="fp32",
    order="reshuffled", last_batch="keep", label_padding="ignore", weight_decay=0.0, warmup=0.05, clip=1.0,
    betas=(0.9, 0.95),
)


def measure(*, data_dir: Path, repeats: int = 3) -> dict[str, Any]:
    """Ratios of seconds for 200 questions, reference ÷ ours; `verdicts_differ` counts questions judged otherwise."""
    from raysweep.learn.engine import Engine
    from raysweep.learn.model import load_tokenizer
    from raysweep.spec import Runtime

    logging.disable(logging.WARNING)
    figures: dict[str, Any] = {"verdicts_differ": 0}
    ratios: dict[str, float] = {}
    pairs = list(islice(candidates(find("kvr", data_dir=None), data_seed=0), 2 * PAIRS))
    with tempfile.TemporaryDirectory() as place:
        folder = _memorize(Path(place), pairs[:PAIRS])
        tokenizer = load_tokenizer(folder)
        with Engine(folder, training=SETTINGS, total_steps=1, runtime=Runtime(zero=3)) as engine:
            for name, asked in (("all_memorized", pairs[:PAIRS]), ("none_memorized", pairs[PAIRS:])):
                questions = [question(one, tokenizer, strip=True) for one in asked]
                told = _in_turn(
                    {
                        "ours": partial(_by_us, engine, tokenizer, questions),
                        "reference": partial(_by_generate, engine.model, tokenizer, questions, batch=RELEASED_BATCH),
                        "same_batch": partial(
                            _by_generate, engine.model, tokenizer, sorted(questions, key=_length), batch=BATCH
                        ),
                    },
                    repeats,
                )
                ratios[name] = round(told["reference_seconds"] / told["ours_seconds"], 2)
                figures["verdicts_differ"] += told.pop("differ")
                figures |= {f"{name}_{key}": value for key, value in told.items()}
    return {"name": "evaluate", "ratios": ratios, "figures": figures, "machine": machine()}


def _memorize(place: Path, pairs: Sequence[Any]) -> Path:
    from raysweep.learn.batches import total_steps
    from raysweep.learn.engine import Engine
    from raysweep.learn.model import load_tokenizer, prepare
    from raysweep.learn.train import train
    from raysweep.spec import Every, Runtime

    base = prepare("tiny", None, cache=place)
    tokenizer = load_tokenizer(base)
    examples = [encode(one, tokenizer, strip=True) for one in pairs]
    own = [question(one, tokenizer, strip=True) for one in pairs]
    total = total_steps(len(examples), SETTINGS)
    with Engine(base, training=SETTINGS, total_steps=total, runtime=Runtime(zero=0)) as engine:
        train(
            engine, examples, training=SETTINGS, seed=0, own=own, probes={}, every=Every(epochs=1), checkpoints=None,
            checkpoint_every=600.0,
        )
        engine.save(place / "memorized")
    return place / "memorized"


def _in_turn(contenders: dict[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, Any]:
    """Medians and spreads of each contender's seconds; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    scores: dict[str, dict[str, float]] = {}
    for _ in range(repeats + 1):
        for name, work in contenders.items():
            begun = time.perf_counter()
            scores[name] = work()
            seconds[name].append(time.perf_counter() - begun)
    told: dict[str, Any] = {}
    for name, taken in seconds.items():
        told[f"{name}_seconds"] = round(statistics.median(taken[1:]), 4)
        told[f"{name}_spread"] = round(max(taken[1:]) - min(taken[1:]), 4)
    ours = scores["ours"]
    told["differ"] = sum(score != theirs[name] for theirs in scores.values() for name, score in ours.items())
    return told | {"accuracy": 100 * sum(ours.values()) / len(ours)}


def _length(one: Question) -> int:
    return len(one.prompt)


def _by_us(engine: Any, tokenizer: Any, questions: Sequence[Question]) -> dict[str, float]:
    from raysweep.learn.evaluate import answer

    answers = answer(engine, tokenizer, questions, scorer=SCORERS["exact"], batch_size=BATCH)
    return {one.id: one.score for one in answers}


def _by_generate(model: Any, tokenizer: Any, questions: Sequence[Question], *, batch: int) -> dict[str, float]:
    import torch

    scores: dict[str, float] = {}
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        width = max(len(one.prompt) for one in part)
        ids = torch.tensor([[0] * (width - len(one.prompt)) + list(one.prompt) for one in part])
        mask = torch.tensor([[0] * (width - len(one.prompt)) + [1] * len(one.prompt) for one in part])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), do_sample=False,
                max_new_tokens=SCORERS["exact"].max_new_tokens, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )
        for one, text in zip(part, tokenizer.batch_decode(out[:, width:], skip_special_tokens=True), strict=True):
            scores[one.id] = SCORERS["exact"].score(text, one.golds)
    return scores
