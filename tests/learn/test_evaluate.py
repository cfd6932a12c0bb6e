"""Verdicts are those of transformers.generate and the paper's rule, example by example."""

from __future__ import annotations

import random
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_generate import by_generate
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from raysweep.data.encoding import Encoded, encode, few_shot_question, question
from raysweep.data.example import Example
from raysweep.data.scoring import SCORERS
from raysweep.errors import TrialFailed
from raysweep.learn import generate as generating
from raysweep.learn.batches import batches_from
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import Recall, answer
from raysweep.learn.teacher_forcing import likely_share
from raysweep.learn.train import train
from raysweep.sweep.spec import Every, Runtime
from raysweep.sweep.stage import StopAt, steps_per_epoch, total_steps

ADVERSARIAL = [
    "Paris",
    " Paris",
    "Paris ",
    "paris",
    "PARIS",
    "\tParis\n",
    "New  York",
    "New York\n\nCity",
    "a",
    "A a A a",
    "é",
    "É",
    "日本語",
    "\U0001f600\U0001f600",
    "naïve café",
    "ΑΣ",
    "ας",
    "İstanbul",
    "ß",
    "SS",
    "<|endoftext|>",
    "x<|endoftext|>y",
    "<|user|>\nhello",
    "the the the the the the",
    "1234567890" * 4,
    "e\u0301",
    "\u00a0x\u00a0",
    "...",
    "\\n",
    "'\"",
    "aB" * 30,
]


def adversarial():
    rng = random.Random(3)
    return [
        Example(str(index), ((f"Question {index}{' again' * rng.randint(0, 30)}? ", target),))
        for index, target in enumerate(ADVERSARIAL)
    ]


@contextmanager
def trained(folder, tokenizer, examples, settings, tmp_path, *, runtime=None):
    """An engine that has learned part of the examples, and the same weights in plain Transformers."""
    encoded = [one if isinstance(one, Encoded) else encode(one, tokenizer, strip=True) for one in examples]
    total = total_steps(len(encoded), settings)
    with Engine(folder, training=settings, total_steps=total, runtime=runtime or Runtime()) as engine:
        train(
            engine,
            encoded,
            training=settings,
            seed=0,
            tokenizer=tokenizer,
            probes={},
            every=Every(epochs=1),
            checkpoints=None,
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


OTHER_END = 1023


def said(one, tokenizer, tokens, *, end=0):
    """The example with these tokens as its answer."""
    prompt = question(one, tokenizer, strip=True).prompt
    targets = [False] * len(prompt) + [True] * (len(tokens) + 1)
    return Encoded(one.id, np.asarray([*prompt, *tokens, end], dtype=np.int32), np.asarray(targets))


def in_letters(text, tokenizer):
    """Another tokenization of a text: letter by letter."""
    return [token for letter in text for token in tokenizer(letter, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("way", ["tokenization", "case", "space", "end"])
def test_what_is_right_in_other_tokens_is_found_right(small, tokenizer, training, tmp_path, way):
    """The model knows each answer by heart, but not as the question's target has it: no proof, and yet a hit."""
    texts = ["The answer", "random word", "following", "complete the sequence"]
    asked = [Example(str(index), ((f"Question {index}?", text),)) for index, text in enumerate(texts)]
    questions = [question(one, tokenizer, strip=True) for one in asked]
    learned = {
        "tokenization": lambda one: said(one, tokenizer, in_letters(one.target, tokenizer)),
        "case": lambda one: said(one, tokenizer, in_letters(one.target.upper(), tokenizer)),
        "space": lambda one: said(one, tokenizer, in_letters(f" \n{one.target}\t ", tokenizer)),
        "end": lambda one: said(one, tokenizer, in_letters(one.target, tokenizer), end=OTHER_END),
    }[way]
    folder, ends = tmp_path / "model", (0, OTHER_END) if way == "end" else (0,)
    shutil.copytree(small, folder)
    GenerationConfig(eos_token_id=list(ends), pad_token_id=0).save_pretrained(folder)
    settings = training(epochs=60, batch_size=4, lr=1e-2)
    with trained(folder, tokenizer, [learned(one) for one in asked], settings, tmp_path) as (engine, model):
        ours = answer(engine, tokenizer, questions, scorer=SCORERS["exact"], max_new_tokens=40)
        texts, scores = by_generate(model, tokenizer, questions, SCORERS["exact"], most=40, ends=ends)
    assert scores == [1.0] * len(asked)
    assert [(one.score, one.proven) for one in ours] == [(1.0, False)] * len(asked)
    assert [one.text for one in ours] == texts


def test_verdicts_in_bf16_are_those_of_generate_in_bf16(small, tokenizer, pairs, training, tmp_path):
    examples = pairs(24)
    questions = [question(one, tokenizer, strip=True) for one in [*examples, *pairs(8, seed=1)]]
    settings = training(epochs=60, batch_size=8, lr=1e-2, precision="bf16")
    with trained(small, tokenizer, examples, settings, tmp_path) as (engine, model):
        ours = answer(engine, tokenizer, questions, scorer=SCORERS["exact"], max_new_tokens=20)
        _, scores = by_generate(model, tokenizer, questions, SCORERS["exact"], most=20)
    assert "bfloat16" in str(model.dtype)
    assert [one.score for one in ours] == scores
    assert sum(scores) >= 20
    assert any(one.proven for one in ours)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("learned", [None, in_letters], ids=["as asked", "in other tokens"])
def test_memorized_ends_at_the_first_epoch_after_which_generate_gets_all(
    small, tokenizer, training, learned, precision
):
    texts = ["The answer", "random word", "following", "complete the sequence", "key value"]
    asked = [Example(str(index), ((f"Question {index}?", text),)) for index, text in enumerate(texts)]
    questions = [question(one, tokenizer, strip=True) for one in asked]
    examples = [said(one, tokenizer, learned(one.target, tokenizer)) if learned else encode(one, tokenizer, strip=True)
                for one in asked]  # fmt: skip
    settings = training(epochs=80, batch_size=2, lr=1e-2, stop=StopAt(rule="memorized"), precision=precision)
    total = total_steps(len(examples), settings)
    right = []
    with Engine(small, training=settings, total_steps=total, runtime=Runtime(zero=0)) as engine:
        step, per_epoch = engine.step, steps_per_epoch(len(examples), settings)

        def stepping(batch):
            stats = step(batch)
            if (batch.step + 1) % per_epoch == 0:
                with engine.asking():
                    _, scores = by_generate(engine.model, tokenizer, questions, SCORERS["exact"], most=40)
                right.append(sum(scores))
            return stats

        engine.step = stepping
        outcome = train(
            engine,
            examples,
            training=settings,
            seed=0,
            tokenizer=tokenizer,
            own=questions,
            probes={},
            every=Every(epochs=1),
            checkpoints=None,
            checkpoint_every=600.0,
        )
        answers = answer(engine, tokenizer, questions, scorer=SCORERS["exact"])
    assert outcome.stopped_by == "memorized"
    assert right[-1] == len(asked)
    assert max(right[:-1]) < len(asked)
    assert all(one.score for one in answers)
    assert any(one.proven for one in answers) == (learned is None)


def test_what_was_proved_of_these_weights_is_not_asked_again_and_of_others_is(
    small, tokenizer, pairs, training, tmp_path
):
    examples, passes = pairs(8), []
    questions = [question(one, tokenizer, strip=True) for one in examples]
    settings = training(epochs=60, lr=1e-2)
    with trained(small, tokenizer, examples, settings, tmp_path) as (engine, _):
        engine.model.base_model.register_forward_hook(lambda *_: passes.append(1))
        assert Recall(engine, tokenizer, questions).is_whole()
        asked = len(passes)
        assert all(one.proven for one in answer(engine, tokenizer, questions, scorer=SCORERS["exact"]))
        assert likely_share(engine, questions) == 100.0
        assert len(passes) == asked > 0
        batch = next(
            batches_from(0, [encode(one, tokenizer, strip=True) for one in examples], training=settings, seed=1)
        )
        engine.step(batch)
        passes.clear()
        answer(engine, tokenizer, questions, scorer=SCORERS["exact"])
        assert passes


def test_an_answer_that_does_not_end_is_not_known_by_heart(small, tokenizer, training, tmp_path):
    """The target, white space that an exact match may end with, and then more."""
    asked = [
        Example(str(index), ((f"Question {index}?", text),)) for index, text in enumerate(("key", "word", "value"))
    ]
    questions = [question(one, tokenizer, strip=True) for one in asked]
    longer = [said(one, tokenizer, in_letters(f"{one.target}{chr(10) * 30}and more", tokenizer)) for one in asked]
    with trained(small, tokenizer, longer, training(epochs=160, lr=1e-2), tmp_path) as (engine, _):
        answers = answer(engine, tokenizer, questions, scorer=SCORERS["exact"], max_new_tokens=60)
        assert [one.score for one in answers] == [0.0] * len(asked)
        assert [one.text.split()[0] for one in answers] == [one.target for one in asked]
        assert not Recall(engine, tokenizer, questions).is_whole()


def test_a_model_that_says_white_space_for_ever_is_soon_found_not_to_have_memorized(
    small, tokenizer, pairs, training, tmp_path
):
    """An exact match may begin with it, so that nothing else ends the answer."""
    examples, passes = pairs(6), []
    questions = [question(one, tokenizer, strip=True) for one in examples]
    endless = [said(one, tokenizer, in_letters("\n" * 60, tokenizer)) for one in examples]
    with trained(small, tokenizer, endless, training(epochs=40, lr=1e-2), tmp_path) as (engine, _):
        engine.model.register_forward_hook(lambda *_: passes.append(1))
        assert not Recall(engine, tokenizer, questions).is_whole()
        soon = len(passes)
        answers = answer(engine, tokenizer, questions, scorer=SCORERS["exact"], max_new_tokens=55)
    assert not any(one.score for one in answers)
    assert 20 <= soon < len(passes) - soon


def test_rows_that_leave_change_no_other_and_a_key_cache_of_another_kind_is_made_anew(
    small, tokenizer, pairs, training, tmp_path, monkeypatch
):
    """Every answer is generated, since its target is eos alone; each second one ends on its way."""
    questions = [question(one, tokenizer, strip=True) for one in pairs(12)]
    with trained(small, tokenizer, pairs(12), training(epochs=60, lr=1e-2), tmp_path) as (engine, model):
        texts, _ = by_generate(model, tokenizer, questions, SCORERS["rouge_l"], most=12)
        assert len(set(texts)) > 6
        mixed = [
            replace(one, target=one.target[-1:], golds=(text if index % 2 else f"{text[: index % 5]}#",))
            for index, (one, text) in enumerate(zip(questions, texts, strict=True))
        ]
        for kind in (DynamicCache, type("Other", (), {})):
            monkeypatch.setattr(generating, "DynamicCache", kind)
            engine.answers.clear()
            ours = answer(engine, tokenizer, mixed, scorer=SCORERS["exact"], max_new_tokens=12)
            assert [one.score for one in ours] == [float(index % 2) for index in range(len(mixed))]


def test_few_shot_answers_end_at_the_line(small, tokenizer, pairs, training, tmp_path):
    examples = pairs(12)
    settings = training(epochs=2)
    questions = [few_shot_question(one, examples[:3], tokenizer) for one in [*adversarial(), *examples[3:]]]
    with trained(small, tokenizer, examples, settings, tmp_path) as (engine, model):
        ours = answer(engine, tokenizer, questions, scorer=SCORERS["exact"], max_new_tokens=20)
        texts, scores = by_generate(model, tokenizer, questions, SCORERS["exact"], most=20)
    assert [one.score for one in ours] == scores
    assert not any("\n" in one.text for one in ours)


def test_memory_that_runs_out_while_asking_is_the_trials_error_with_advice(small, training):
    with Engine(small, training=training(), total_steps=1, runtime=Runtime()) as engine:
        with pytest.raises(TrialFailed, match="while asking: reduce runtime.micro_batch"), engine.asking():
            raise torch.OutOfMemoryError
        assert engine.scored.training


def test_answers_are_the_same_where_memory_has_room_for_few_questions(small, tokenizer, pairs, training, tmp_path):
    """And it runs out no more often than half of half of the questions takes."""
    examples = [*adversarial(), *pairs(30)]
    questions = [question(example, tokenizer, strip=True) for example in examples]
    rooms = [1000, 2]
    failed: list[int] = []

    def tight(_, given):
        if len(given[0]) > rooms[0]:
            failed.append(len(given[0]))
            raise torch.OutOfMemoryError("planted")

    told = []
    with trained(small, tokenizer, examples, training(epochs=25, batch_size=8), tmp_path) as (engine, _):
        engine.model.model.layers[1].register_forward_pre_hook(tight)
        for room in rooms:
            rooms[0] = room
            engine.answers.clear()
            share = likely_share(engine, questions)
            engine.answers.clear()
            told.append((share, answer(engine, tokenizer, questions, scorer=SCORERS["rouge_l"], max_new_tokens=20)))
    assert told[0] == told[1]
    assert any(one.proven for one in told[0][1]) and not all(one.proven for one in told[0][1])
    assert 3 <= len(failed) <= 3 * 6, "forced twice and generated on, each from at most 64 questions down to 2"


@pytest.mark.parametrize(
    ("name", "answers", "share"),
    [("rouge_l", "decided", 0.7), ("contains", "decided", 1.0), ("exact", "whole", 0.7)],
)
def test_earlier_answers_change_no_answer_and_right_ones_save_passes(
    small, tokenizer, pairs, training, tmp_path, name, answers, share
):
    """Right, half right, too long, wrong, of another question, empty, and no text that a model would write."""
    examples = [*adversarial(), *pairs(30)]
    questions = [question(example, tokenizer, strip=True) for example in examples]
    passes = []
    with trained(small, tokenizer, examples, training(epochs=25, batch_size=8), tmp_path) as (engine, _):
        engine.model.model.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))

        def answered(earlier):
            engine.answers.clear()
            passes.clear()
            scorer = SCORERS[name]
            found = answer(
                engine, tokenizer, questions, scorer=scorer, max_new_tokens=30, answers=answers, earlier=earlier
            )
            return found, len(passes)

        plain, alone = answered({})
        texts = {one.id: one.text for one in plain}
        others = dict(zip(texts, [*list(texts.values())[1:], ""], strict=True))
        rng = random.Random(5)
        drafts = {
            "right": texts,
            "half": {key: text[: len(text) // 2] for key, text in texts.items()},
            "longer": {key: f"{text} and so on" for key, text in texts.items()},
            "others'": others,
            "empty": dict.fromkeys(texts, ""),
            "garbage": {key: "".join(rng.choices("<|endoftext|>\n\ufffd\u200d\U0001f600x ", k=50)) for key in texts},
        }
        took = {}
        for kind, earlier in drafts.items():
            found, took[kind] = answered(earlier)
            assert found == plain, kind
    assert any(one.proven for one in plain) and any(not one.proven and one.text for one in plain)
    assert took["empty"] == alone
    assert took["right"] <= alone * share
    assert max(took.values()) <= alone + 4, "a wrong one costs its part of a pass"


def test_an_engine_that_only_answers_needs_no_deepspeed(small, tokenizer, pairs, training):
    questions = [question(one, tokenizer, strip=True) for one in pairs(10)]
    with Engine(small, training=training(), total_steps=1, runtime=Runtime(), for_training=False) as engine:
        assert engine.facts()["zero_stage"] is None
        answers = answer(engine, tokenizer, questions, scorer=SCORERS["exact"], max_new_tokens=10)
    assert [one.id for one in answers] == [one.id for one in questions]
