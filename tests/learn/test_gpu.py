"""What only a GPU can show: its verdicts, its memory, and examples packed for flash-attention."""

from __future__ import annotations

import importlib.util
from itertools import islice

import pytest
import torch
from plain_generate import by_generate
from test_evaluate import trained

from raysweep.data.encoding import question
from raysweep.data.scoring import SCORERS
from raysweep.learn.batches import batches_from, deal, total_steps
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.learn.memory import need, shape_of
from raysweep.sweep.spec import Runtime

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_verdicts_are_those_of_generate_on_the_same_gpu(small, tokenizer, pairs, training, tmp_path, precision):
    examples = pairs(24)
    questions = [question(one, tokenizer, strip=True) for one in [*examples, *pairs(8, seed=1)]]
    settings = training(epochs=60, batch_size=8, lr=1e-2, precision=precision)
    with trained(small, tokenizer, examples, settings, tmp_path) as (engine, model):
        ours = answer(engine, tokenizer, questions, scorer=SCORERS["exact"], max_new_tokens=20)
        _, scores = by_generate(model.to(engine.device), tokenizer, questions, SCORERS["exact"], most=20)
    assert [one.score for one in ours] == scores
    assert sum(scores) >= 20
    assert any(one.proven for one in ours)


@pytest.mark.parametrize("precision", ["bf16", "bf16_pure"])
def test_what_a_stage_holds_was_told(tiny, pairs, training, encoded, precision):
    settings, runtime = training(precision=precision), Runtime()
    told = need(shape_of(tiny), training=settings, runtime=runtime, tokens=0, recomputed=False)
    before = torch.cuda.memory_allocated()
    with Engine(tiny, training=settings, total_steps=9, runtime=runtime) as engine:
        batches = batches_from(0, encoded(pairs(16)), training=settings, seed=0)
        engine.step(next(batches))
        parts = deal(next(batches).examples, rank=0, ranks=1, most=4, most_tokens=1000, overhead=1)
        engine._accumulate(parts, 1.0)  # before a step, when gradients are there too
        held = torch.cuda.memory_allocated() - before
    assert held == pytest.approx(told.held, rel=0.25)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs flash-attn")
def test_packed_examples_train_as_padded_ones_do(small, pairs, training, encoded):
    """Examples of unequal length, told apart by their positions."""
    examples, settings = encoded(pairs(16, longest=60)), training(precision="bf16")
    losses = {}
    for packed in (True, False):
        with Engine(small, training=settings, total_steps=total_steps(16, settings), runtime=Runtime()) as engine:
            assert engine.packed
            engine.packed = packed
            steps = islice(batches_from(0, examples, training=settings, seed=0), 6)
            losses[packed] = [engine.step(batch).loss_sum for batch in steps]
    assert losses[True] == pytest.approx(losses[False], rel=0.01)
