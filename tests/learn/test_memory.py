"""Memory told beforehand against what is held."""

from __future__ import annotations

import gc
import json

import pytest
import torch

from raysweep.errors import TrialFailed
from raysweep.learn.batches import batches_from, deal, total_steps
from raysweep.learn.engine import Engine
from raysweep.learn.memory import Shape, need, refuse_what_does_not_fit, shape_of
from raysweep.spec import Runtime

LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}


def held_bytes() -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_pure"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_what_is_held_was_told(tiny, pairs, training, encoded, precision, zero):
    examples = encoded(pairs(16))
    settings = training(precision=precision)
    runtime = Runtime(zero=zero)
    before = held_bytes()
    with Engine(tiny, training=settings, total_steps=total_steps(16, settings), runtime=runtime) as engine:
        batches = batches_from(0, examples, training=settings, seed=0)
        for _ in range(2):
            engine.step(next(batches))
        parts = deal(next(batches).examples, rank=0, ranks=1, most=4, most_tokens=1000, overhead=1)
        engine._accumulate(parts, 1.0)  # before a step, when gradients are there too
        held = held_bytes() - before
    told = need(shape_of(tiny), training=settings, runtime=runtime, tokens=100, recomputed=False)
    assert told.held == pytest.approx(held, rel=0.15)


def test_shape_is_read_from_a_folder(tiny):
    assert shape_of(tiny) == Shape(weights=1_832_192, layers=2, hidden=256, intermediate=680, vocabulary=1024)


def test_shape_of_a_configuration_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    assert shape_of(tmp_path).weights == pytest.approx(8.03e9, rel=0.001)


def test_what_does_not_fit_is_refused_with_what_to_change(training, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    shape = shape_of(tmp_path)

    def told(**runtime):
        return need(shape, training=training(precision="bf16"), runtime=Runtime(**runtime), tokens=16384, recomputed=True)

    with pytest.raises(TrialFailed, match=r"runtime\.offload to optimizer"):
        refuse_what_does_not_fit(told(), available=80 * 2**30, runtime=Runtime())
    offloaded = Runtime(offload="optimizer")
    refuse_what_does_not_fit(told(offload="optimizer"), available=80 * 2**30, runtime=offloaded)
    assert told(workers=8).held < told().held / 6
