"""A stage takes no less than any one thing that its machine must do."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.data.encoding import encode
from raysweep.data.examples import candidates
from raysweep.data.sources import find
from raysweep.errors import SourceMissing
from raysweep.forecast.roofline import CPU, GPU, Work, spent_on
from raysweep.learn.model import load_tokenizer, prepare
from raysweep.sweep.catalog import DATASETS
from raysweep.sweep.spec import Runtime

KVR_8B = Work(weights=8 * 10**9, precision="bf16", steps=1260, tokens=1260 * 32 * 34, batch=32)


def a_step(work, machine=GPU, **runtime):
    given = Runtime(**runtime)
    return spent_on(work, given, machine).steps / work.steps / given.workers


def test_a_step_on_short_examples_takes_the_optimizers_traffic_and_more():
    """Eight billion weights: their gradients, moments and master copies are 240 GB to move."""
    traffic = 8e9 * 30 / GPU.memory
    assert a_step(KVR_8B) > traffic + 8 * 8e9 * 32 * 34 / GPU.flops
    assert a_step(KVR_8B, workers=2) > traffic / 2
    assert a_step(KVR_8B, offload="optimizer") > 10 * traffic, "the machine's memory is slower"


def test_bringing_weights_together_costs_what_smaller_micro_batches_multiply():
    assert (
        a_step(KVR_8B, workers=2) < a_step(KVR_8B, workers=2, micro_batch=4) < a_step(KVR_8B, workers=2, micro_batch=1)
    )
    assert a_step(KVR_8B, workers=2, micro_batch=1, zero=1) < a_step(KVR_8B, workers=2, micro_batch=1)


def test_weights_are_loaded_and_saved_once_a_stage():
    nothing = replace(KVR_8B, steps=0, tokens=0)
    assert spent_on(nothing, Runtime(), GPU).whole == pytest.approx(2 * 16e9 / GPU.disk)


@given(
    tokens=st.integers(10**5, 10**8),
    steps=st.integers(1, 5000),
    workers=st.integers(1, 8),
    precision=st.sampled_from(["fp32", "bf16", "bf16_pure"]),
)
def test_more_work_never_takes_less(tokens, steps, workers, precision):
    work = Work(weights=10**9, precision=precision, steps=steps, tokens=tokens, batch=32)
    runtime = Runtime(workers=workers)
    here = spent_on(work, runtime, GPU).whole
    assert here >= 6 * 1e9 * tokens / GPU.flops
    for more in ({"tokens": 2 * tokens}, {"weights": 2 * 10**9}, {"steps": steps + 1}):
        assert spent_on(replace(work, **more), runtime, GPU).whole >= here
    assert spent_on(work, runtime, CPU).whole > here


@pytest.mark.parametrize("name", [name for name, one in DATASETS.items() if not one.length.guessed])
def test_declared_lengths_are_those_of_the_samples(name, data_dir, tmp_path_factory):
    """By another tokenizer than they were counted with, of 1,024 words: two to three times as many tokens."""
    try:
        source = find(name, data_dir=data_dir)
    except SourceMissing:
        pytest.skip(f"{name} is not here")
    tokenizer = load_tokenizer(prepare("tiny", None, cache=tmp_path_factory.mktemp("tiny")))
    lengths = [len(encode(one, tokenizer, strip=True)) for one in islice(candidates(source, data_seed=0), 200)]
    ours = DATASETS[name].length.tokens
    assert 0.8 * ours < sum(lengths) / len(lengths) < 3 * ours
