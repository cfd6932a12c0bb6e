"""Evaluation speed against batched `generate`, with identical verdicts.

Sets: `kvr` pairs, `popqa` objects and `gsm8k` rationales, asked as the experiment asks them; those that are not here are
left out. `all_memorized`: a model asked what it has memorized; `none_memorized`: the same model asked what it never
saw. Both ratios are medians over the sets, whose own ratios stand beside them. The reference generates greedily in
left-padded batches of 20 in the given order with up to 1,000 new tokens (512 for gsm8k), as the released code does,
and applies the same rule. Stronger references that a user can switch on: `generate_same_batch_*`, `generate` in batches as
large as ours (64), sorted by length; and on a GPU `generate_batch_*`, Transformers' continuous batching.

`at_stage_end_*`: the same questions asked of the model in memory when the stage that memorized them has ended, as a sweep
asks: its stop rule `memorized` has proved them on these weights, and nothing is computed again.

The model is `tiny`, in float32 and (`_bf16`) in the bfloat16 that sweeps train in unless their file says otherwise.
`products_*`: the reference ÷ the bare matrix products of a proof in float32, on as many rows at once as a pass of ours
has. No way to ask every token that differs from question to question is faster. `smollm2_*`: the passes alone on a model
of 135 million weights, which has memorized nothing: the reference is told to stop at each batch's longest answer.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

from run import machine, turns

from raysweep.data.encoding import Question, encode, question
from raysweep.data.examples import candidates
from raysweep.data.scoring import SCORERS, Scorer
from raysweep.data.sources import find
from raysweep.errors import SourceMissing
from raysweep.sweep.stage import StopAt, Training

BATCH = 64
RELEASED_BATCH = 20
PRECISIONS = {"fp32": "", "bf16": "_bf16"}  # and what is told of each ends in
KEYS = {
    "reference": "",
    "same_batch": "generate_same_batch_",
    "continuous": "generate_batch_",
}  # what ratios begin with
SHAPED = 20  # questions asked of the larger model: one batch of the reference
SETTINGS = Training(
    lr=1e-3,
    batch_size=32,
    epochs=60,
    stop=StopAt(rule="memorized"),
    max_length=2048,
    precision="fp32",
    order="reshuffled",
    last_batch="keep",
    label_padding="ignore",
    weight_decay=0.0,
    warmup=0.05,
    clip=1.0,
    betas=(0.9, 0.95),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How many questions of a set, how they are scored, and what the model needs to memorize them."""

    name: str
    count: int
    scorer: Scorer
    training: Training = SETTINGS


SETS = (
    Asked(name="kvr", count=200, scorer=SCORERS["exact"]),
    Asked(name="popqa", count=200, scorer=SCORERS["exact"]),
    Asked(name="gsm8k", count=20, scorer=SCORERS["numeric"], training=replace(SETTINGS, batch_size=4, epochs=100)),
)


def measure(*, data_dir: Path, repeats: int = 3) -> dict[str, Any]:
    """Ratios of seconds for all questions, reference ÷ ours; `verdicts_differ` counts questions judged otherwise."""
    logging.disable(logging.WARNING)
    figures: dict[str, Any] = {f"verdicts_differ{suffix}": 0 for suffix in PRECISIONS.values()}
    ratios: dict[str, float] = {}
    for asked in turns(SETS):
        try:
            found = _examples(asked, data_dir)
        except SourceMissing:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder, at_end = _memorize(Path(place), found[: asked.count], asked)
            cases = {"all": found[: asked.count], "none": found[asked.count :]}
            for (case, examples), (precision, suffix) in product(cases.items(), PRECISIONS.items()):
                name = f"{case}_memorized_{asked.name}{suffix}"
                told = _compared(folder, examples, asked, precision, repeats)
                ratios |= {
                    f"{key}{name}": round(told[f"{of}_seconds"] / told["ours_seconds"], 2)
                    for of, key in KEYS.items()
                    if f"{of}_seconds" in told
                }
                figures[f"verdicts_differ{suffix}"] += told.pop("differ")
                figures |= {f"{name}_{key}": value for key, value in told.items()}
            seconds = figures[f"all_memorized_{asked.name}_reference_seconds"]
            figures[f"at_stage_end_{asked.name}_ours_seconds"] = round(at_end, 4)
            ratios[f"at_stage_end_{asked.name}"] = round(seconds / at_end, 1)
            figures[f"products_{asked.name}"] = round(seconds / _products(folder, cases["all"]), 2)
    for key, case, suffix in product(KEYS.values(), ("all", "none"), PRECISIONS.values()):
        of_sets = [ratios.get(f"{key}{case}_memorized_{asked.name}{suffix}") for asked in SETS]
        if any(of_sets):
            ratios[f"{key}{case}_memorized{suffix}"] = round(statistics.median(filter(None, of_sets)), 2)
    figures |= _shaped(data_dir)
    return {"name": "evaluate", "ratios": dict(sorted(ratios.items())), "figures": figures, "machine": machine()}


def _examples(asked: Asked, data_dir: Path) -> list[Any]:
    """Twice as many as are memorized."""
    source = find(asked.name, data_dir=data_dir if data_dir.is_dir() else None)
    return list(islice(candidates(source, data_seed=0), 2 * asked.count))


def _memorize(place: Path, examples: Sequence[Any], asked: Asked) -> tuple[Path, float]:
    """A folder of the model that has memorized them, and the seconds that asking took when the stage had ended."""
    from raysweep.learn.engine import Engine
    from raysweep.learn.model import load_tokenizer, prepare
    from raysweep.learn.train import train
    from raysweep.sweep.spec import Every, Runtime
    from raysweep.sweep.stage import total_steps

    base = prepare("tiny", None, cache=place)
    tokenizer = load_tokenizer(base)
    encoded = [encode(one, tokenizer, strip=True) for one in examples]
    own = [question(one, tokenizer, strip=True) for one in examples]
    training, total = asked.training, total_steps(len(encoded), asked.training)
    with Engine(base, training=training, total_steps=total, runtime=Runtime(zero=0)) as engine:
        train(
            engine,
            encoded,
            training=training,
            seed=0,
            tokenizer=tokenizer,
            own=own,
            probes={},
            every=Every(epochs=1),
            checkpoints=None,
            checkpoint_every=600.0,
        )
        begun = time.perf_counter()
        scores = _by_us(engine, tokenizer, own, asked.scorer)
        seconds = time.perf_counter() - begun
        assert all(scores.values())
        engine.save(place / "memorized")
    return place / "memorized", seconds


def _compared(folder: Path, examples: Sequence[Any], asked: Asked, precision: str, repeats: int) -> dict[str, Any]:
    """Ours and both references on the same questions."""
    from raysweep.learn.engine import Engine
    from raysweep.learn.model import load_tokenizer
    from raysweep.sweep.spec import Runtime

    tokenizer = load_tokenizer(folder)
    questions = [question(one, tokenizer, strip=True) for one in examples]
    training = replace(asked.training, precision=precision)
    with Engine(folder, training=training, total_steps=1, runtime=Runtime(), for_training=False) as engine:
        generate = partial(_by_generate, engine.model, tokenizer, scorer=asked.scorer)
        contenders = {
            "ours": partial(_by_us_anew, engine, tokenizer, questions, asked.scorer),
            "reference": partial(generate, questions, batch=RELEASED_BATCH),
            "same_batch": partial(generate, sorted(questions, key=_length), batch=BATCH),
        }
        if engine.device.type == "cuda":
            contenders["continuous"] = partial(_by_generate_batch, engine.model, tokenizer, questions, asked.scorer)
        return _in_turn(contenders, repeats)


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
    ours, reference = scores["ours"], scores["reference"]
    told["differ"] = sum(reference[name] != score for name, score in ours.items())
    return told | {"accuracy": 100 * sum(ours.values()) / len(ours)}


def _products(folder: Path, examples: Sequence[Any]) -> float:
    """Seconds of the layers' matrix products on all that a proof must read, and of the vocabulary's on what it predicts."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    from raysweep.learn.model import load_tokenizer
    from raysweep.learn.prefix import shared_length
    from raysweep.learn.teacher_forcing import TOKENS_AT_ONCE

    tokenizer = load_tokenizer(folder)
    questions = [question(one, tokenizer, strip=True) for one in examples]
    targets = sum(len(one.target) for one in questions)
    shared = shared_length([one.prompt for one in questions])
    read = sum(len(one.prompt) - shared - 1 for one in questions) + targets
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    outputs = model.get_output_embeddings()
    layers = [one for one in model.modules() if isinstance(one, nn.Linear) and one is not outputs]
    with torch.inference_mode():
        asked = {layer: torch.randn(TOKENS_AT_ONCE["cpu"], layer.in_features) for layer in (*layers, outputs)}

        def run(layer: nn.Linear, count: int) -> None:
            for part in torch.arange(count).split(TOKENS_AT_ONCE["cpu"]):
                layer(asked[layer][: len(part)])

        taken = []
        for _ in range(4):
            begun = time.perf_counter()
            for layer in layers:
                run(layer, read)
            run(outputs, targets)
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


def _length(one: Question) -> int:
    return len(one.prompt)


def _by_us(engine: Any, tokenizer: Any, questions: Sequence[Question], scorer: Scorer) -> dict[str, float]:
    from raysweep.learn.evaluate import answer

    answers = answer(engine, tokenizer, questions, scorer=scorer, batch_size=BATCH)
    return {one.id: one.score for one in answers}


def _by_us_anew(engine: Any, *arguments: Any) -> dict[str, float]:
    engine.answers.clear()
    return _by_us(engine, *arguments)


def _by_generate(
    model: Any, tokenizer: Any, questions: Sequence[Question], *, scorer: Scorer, batch: int
) -> dict[str, float]:
    scores: dict[str, float] = {}
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        out = _generated(model, part, most=scorer.max_new_tokens, end=tokenizer.eos_token_id)
        for one, text in zip(part, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
            scores[one.id] = scorer.score(text, one.golds)
    return scores


def _by_generate_batch(model: Any, tokenizer: Any, questions: Sequence[Question], scorer: Scorer) -> dict[str, float]:
    """Continuous batching, which takes requests as others end; answers come back by their prompts."""
    from transformers import GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=scorer.max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    given = model.generate_batch([list(one.prompt) for one in questions], generation_config=settings)
    answers = {tuple(one.prompt_ids): one.generated_tokens for one in given.values()}
    said = tokenizer.batch_decode([answers[one.prompt] for one in questions], skip_special_tokens=True)
    return {one.id: scorer.score(text, one.golds) for one, text in zip(questions, said, strict=True)}


def _generated(model: Any, part: Sequence[Question], *, most: int, end: int, **more: int) -> Any:
    """What one padded batch goes on with."""
    import torch

    width = max(len(one.prompt) for one in part)
    ids = torch.tensor([[0] * (width - len(one.prompt)) + list(one.prompt) for one in part])
    mask = torch.tensor([[0] * (width - len(one.prompt)) + [1] * len(one.prompt) for one in part])
    with torch.inference_mode():
        return model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=most,
            eos_token_id=end,
            pad_token_id=end,
            **more,
        )[:, width:]


def _shaped(data_dir: Path) -> dict[str, float]:
    """Ratios of one run of the passes that proof and generation of memorized answers need, on a larger model."""
    from raysweep.learn.engine import Engine
    from raysweep.learn.model import load_tokenizer, prepare
    from raysweep.sweep.spec import Runtime

    figures = {}
    with tempfile.TemporaryDirectory() as place:
        try:
            folder = prepare("smollm2-135m", None, cache=Path(place))
        except SourceMissing:
            return {}
        tokenizer = load_tokenizer(folder)
        with Engine(folder, training=SETTINGS, total_steps=1, runtime=Runtime(), for_training=False) as engine:
            for asked in SETS:
                try:
                    examples = _examples(asked, data_dir)[:SHAPED]
                except SourceMissing:
                    continue
                questions = [question(one, tokenizer, strip=True) for one in examples]
                figures[f"smollm2_{asked.name}"] = _passes(engine, questions, end=tokenizer.eos_token_id)
    return figures


def _passes(engine: Any, questions: Sequence[Question], *, end: int) -> float:
    from raysweep.learn.teacher_forcing import force

    most = max(len(one.target) for one in questions)
    with engine.asking() as scored:
        list(force(engine, scored, questions[:2]))  # warms up
        engine.answers.clear()
        begun = time.perf_counter()
        list(force(engine, scored, questions))
        proved = time.perf_counter()
        _generated(engine.model, questions, most=most, end=end, min_new_tokens=most)
        return round((time.perf_counter() - proved) / (proved - begun), 2)
