"""Verdicts are those of transformers.generate and the paper's rule, example by example."""

from __future__ import annotations

import random
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM

from raysweep.data.encoding import encode, few_shot_question, question
from raysweep.data.example import Example
from raysweep.data.scoring import SCORERS
from raysweep.learn.batches import total_steps
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.learn.train import train
from raysweep.spec import Every, Runtime

ADVERSARIAL = [
    "Paris", " Paris", "Paris ", "paris", "PARIS", "\tParis\n", "New  York", "New York\n\nCity", "a", "A a A a", "é",
    "É", "日本語", "\U0001f600\U0001f600", "naïve café", "ΑΣ", "ας", "İstanbul", "ß", "SS", "<|endoftext|>",
    "x<|endoftext|>y", "<|user|>\nhello", "the the the the the the", "1234567890" * 4, "e\u0301", "\u00a0x\u00a0",
    "...", "\\n", "'\"", "aB" * 30,
]


def adversarial():
    rng = random.Random(3)
    return [
        Example(str(index), ((f"Question {index}{' again' * rng.randint(0, 30)}? ", target),))
        for index, target in enumerate(ADVERSARIAL)
    ]


def by_generate(model, tokenizer, questions, scorer, *, most, batch_size=7):
    """Batched, left-padded greedy generation to its end, then the rule."""
    texts = []
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        width = max(len(one.prompt) for one in batch)
        ids = torch.tensor([[0] * (width - len(one.prompt)) + list(one.prompt) for one in batch])
        mask = torch.tensor([[0] * (width - len(one.prompt)) + [1] * len(one.prompt) for one in batch])
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=most, pad_token_id=0, eos_token_id=0
        )[:, width:]
        texts += tokenizer.batch_decode(out, skip_special_tokens=True)
    texts = [text.split(one.stop, 1)[0] if one.stop else text for text, one in zip(texts, questions, strict=True)]
    return texts, [scorer.score(text, one.golds) for text, one in zip(texts, questions, strict=True)]


@contextmanager
def trained(folder, tokenizer, examples, settings, tmp_path, *, runtime=None):
    """An engine that has learned part of the examples, and the same weights in plain Transformers."""
    encoded = [encode(example, tokenizer, strip=True) for example in examples]
    total = total_steps(len(encoded), settings)
    with Engine(folder, training=settings, total_steps=total, runtime=runtime or Runtime()) as engine:
        train(
            engine, encoded, training=settings, seed=0, probes={}, every=Every(epochs=1), checkpoints=None,
            checkpoint_every=600.0,
        )
        engine.save(tmp_path / "out")
        yield engine, AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()


@pytest.mark.parametrize(
    ("zero", "epochs"),
    [(0, 1), (0, 25), (0, 80), (3, 1), *(pytest.param(3, more, marks=pytest.mark.slow) for more in (25, 80))],
)
def test_verdicts_are_those_of_generate(small, tokenizer, pairs, training, tmp_path, epochs, zero):
    examples = [*adversarial(), *pairs(40)]
    settings = training(epochs=epochs, batch_size=8)
    questions = [question(example, tokenizer, strip=True) for example in examples]
    with trained(small, tokenizer, examples, settings, tmp_path, runtime=Runtime(zero=zero)) as (engine, model):
        for name, most in (("exact", 60), ("contains", 30), ("numeric", 40), ("rouge_l", 40)):
            ours = answer(engine, tokenizer, questions, scorer=SCORERS[name], max_new_tokens=most, batch_size=9)
            texts, scores = by_generate(model, tokenizer, questions, SCORERS[name], most=most)
            assert [one.id for one in ours] == [one.id for one in questions]
            assert [one.score for one in ours] == scores
            for one, text in zip(ours, texts, strict=True):
                assert text.startswith(one.text.rstrip("\ufffd"))
                assert one.text == text or not (one.score or one.whole)
        if epochs == 80:
            assert sum(scores) > 20
            assert sum(one.proven for one in ours) > 10


@pytest.mark.slow
def test_a_proof_alone_gives_the_text(small, tokenizer, training, tmp_path):
    """Memorized answers are proved, whatever they are made of, and read as they were trained."""
    examples = adversarial()
    with trained(small, tokenizer, examples, training(epochs=120), tmp_path) as (engine, _):
        questions = [question(example, tokenizer, strip=True) for example in examples]
        answers = answer(engine, tokenizer, questions, scorer=SCORERS["exact"])
        proved = [(one.text, example.target) for one, example in zip(answers, examples, strict=True) if one.proven]
    assert len(proved) > 20
    assert all(text == target for text, target in proved)


def test_few_shot_answers_end_at_the_line(small, tokenizer, pairs, training, tmp_path):
    examples = pairs(12)
    settings = training(epochs=2)
    questions = [few_shot_question(one, examples[:3], tokenizer) for one in [*adversarial(), *examples[3:]]]
    with trained(small, tokenizer, examples, settings, tmp_path) as (engine, model):
        ours = answer(engine, tokenizer, questions, scorer=SCORERS["exact"], max_new_tokens=20)
        texts, scores = by_generate(model, tokenizer, questions, SCORERS["exact"], most=20)
    assert [one.score for one in ours] == scores
    assert not any("\n" in one.text for one in ours)


def test_an_engine_that_only_answers_needs_no_deepspeed(small, tokenizer, pairs, training):
    questions = [question(one, tokenizer, strip=True) for one in pairs(10)]
    with Engine(small, training=training(), total_steps=1, runtime=Runtime(), for_training=False) as engine:
        assert engine.facts()["zero_stage"] is None
        answers = answer(engine, tokenizer, questions, scorer=SCORERS["exact"], max_new_tokens=10)
    assert [one.id for one in answers] == [one.id for one in questions]
