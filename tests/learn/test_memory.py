"""Memory told beforehand against what is held."""

from __future__ import annotations

import gc
import json
import logging
from itertools import islice

import pytest
import torch

from raysweep.errors import TrialFailed
from raysweep.learn.batches import Batch, batches_from, deal
from raysweep.learn.engine import Engine, OutOfRoom
from raysweep.learn.loss import Scored
from raysweep.learn.memory import (
    ModelShape,
    Room,
    asks_at_once,
    asks_at_once_released,
    need,
    recomputes,
    refuse_what_does_not_fit,
    shape_of,
    tokens_at_once,
)
from raysweep.sweep.spec import Runtime
from raysweep.sweep.stage import total_steps

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
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
        engine._accumulate([parts], [1.0])  # before a step, when gradients are there too
        held = held_bytes() - before
    told = need(shape_of(tiny), training=settings, runtime=runtime, tokens=100, recomputed=False)
    assert told.held == pytest.approx(held, rel=0.15)


def test_shape_is_read_from_a_folder(tiny):
    assert shape_of(tiny) == ModelShape(weights=1_832_192, layers=2, hidden=256, intermediate=680, vocabulary=1024)


def test_shape_of_a_configuration_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    assert shape_of(tmp_path).weights == pytest.approx(8.03e9, rel=0.001)


@pytest.fixture
def llama(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return shape_of(tmp_path)


GIB = 2**30


@pytest.mark.parametrize(
    ("precision", "runtime", "room", "advice"),
    [
        ("bf16", {}, Room(80 * GIB, 500 * GIB), "set runtime.offload optimizer, or runtime.workers 2"),
        ("bf16", {"zero": 1}, Room(80 * GIB, 500 * GIB), "set runtime.zero 3 and runtime.offload optimizer, or "),
        ("bf16", {"zero": 1, "workers": 4}, Room(40 * GIB, 500 * GIB), "set runtime.zero 3, or runtime.workers 8"),
        ("bf16", {}, Room(24 * GIB, 500 * GIB), "set runtime.offload optimizer, or runtime.workers 8"),
        ("bf16", {}, Room(12 * GIB, 500 * GIB), "set runtime.offload all, or runtime.workers 16"),
        ("bf16", {}, Room(80 * GIB, 64 * GIB), "set runtime.workers 2"),
        ("bf16_pure", {}, Room(70 * GIB, 500 * GIB), "set runtime.workers 2"),
        ("fp32", {}, Room(None, 16 * GIB), "set runtime.workers 16"),
        ("fp32", {}, Room(2**20, 2**20), "use a smaller model or larger devices"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_does(training, llama, precision, runtime, room, advice):
    settings = training(precision=precision)
    with pytest.raises(TrialFailed) as refused:
        refuse_what_does_not_fit(llama, training=settings, runtime=Runtime(**runtime), room=room)
    assert advice in str(refused.value)


def test_what_is_advised_is_not_refused(training, llama):
    settings = training(precision="bf16")
    for runtime in (Runtime(offload="optimizer"), Runtime(workers=2)):
        refuse_what_does_not_fit(llama, training=settings, runtime=runtime, room=Room(80 * GIB, 500 * GIB))
    refuse_what_does_not_fit(llama, training=settings, runtime=Runtime(), room=Room(None, None))  # nobody knows


@pytest.mark.parametrize(
    ("runtime", "room", "at_once"),
    [
        ({"workers": 2}, Room(80 * GIB, 500 * GIB), False),
        ({"workers": 4}, Room(80 * GIB, 500 * GIB), True),
        ({"workers": 2}, Room(141 * GIB, 500 * GIB), True),
        ({"workers": 2, "offload": "optimizer"}, Room(80 * GIB, 500 * GIB), True),
        ({"workers": 1, "offload": "all"}, Room(24 * GIB, 500 * GIB), True),
        ({"workers": 1, "offload": "all"}, Room(16 * GIB, 500 * GIB), False),
        ({"workers": 4}, Room(None, 40 * GIB), False),
        ({"workers": 4}, Room(None, None), True),
    ],
)
def test_all_weights_are_brought_together_where_they_have_room(training, llama, runtime, room, at_once):
    told = {"training": training(precision="bf16"), "runtime": Runtime(**runtime), "room": room}
    assert asks_at_once(llama, **told) == at_once


def test_a_stage_that_is_trained_leaves_room_for_all_weights(training, llama):
    told = {"training": training(precision="bf16"), "runtime": Runtime(workers=2), "room": Room(80 * GIB, 500 * GIB)}
    assert asks_at_once_released(llama, **told) and not asks_at_once(llama, **told)
    told["room"] = Room(24 * GIB, 500 * GIB)
    assert not asks_at_once_released(llama, **told), "then it is asked layer by layer"


def test_what_each_worker_may_use_is_what_the_poorest_may():
    rooms = [Room(80, 500), Room(40, None), Room(None, 300)]
    assert Room.least(rooms) == Room(40, 300)
    assert Room.least([Room(None, None)]) == Room(None, None)


def test_micro_batches_are_as_large_as_there_is_room_for(training, llama, caplog):
    def tokens(available, *, longest=500, workers=8, recomputed=True):
        told = {"training": training(precision="bf16"), "runtime": Runtime(workers=workers)}
        return tokens_at_once(llama, **told, available=available, longest=longest, most=16384, recomputed=recomputed)

    assert tokens(141 * GIB) == 16384 and not caplog.records
    assert tokens(30 * GIB, workers=4) == 500 < tokens(40 * GIB, workers=4) < 16384
    assert tokens(60 * GIB, recomputed=False) < tokens(60 * GIB)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert tokens(20 * GIB, longest=2048) == 2048, "an example is never cut"
    assert "an example of 2048 tokens" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert tokens(80 * GIB, workers=2) > 500 and not caplog.records
    assert recomputes(llama, Runtime(), on_gpu=True)
    assert not recomputes(llama, Runtime(gradient_checkpointing=False), on_gpu=True)


def test_recomputed_activations_change_no_bit(tiny, pairs, training, encoded):
    """And are fewer: what the backward pass needs is not kept by the forward pass."""
    examples, settings = encoded(pairs(16)), training()
    told = []
    for recomputed in (False, True):
        runtime = Runtime(gradient_checkpointing=recomputed)
        with Engine(tiny, training=settings, total_steps=total_steps(16, settings), runtime=runtime) as engine:
            batches = islice(batches_from(0, examples, training=settings, seed=0), 3)
            told.append([engine.step(batch) for batch in batches])
            assert engine.model.is_activation_checkpointing == recomputed
    assert told[0] == told[1]


def test_a_stage_without_room_is_refused_before_its_weights_are_read(tiny, training, monkeypatch):
    monkeypatch.setattr("raysweep.learn.memory.free_memory", lambda: 10**7)
    monkeypatch.setattr("raysweep.learn.engine.load_weights", None)
    with pytest.raises(TrialFailed, match="machine's free memory"):
        Engine(tiny, training=training(), total_steps=1, runtime=Runtime())


@pytest.mark.parametrize("packed", [False, True])
def test_only_a_single_example_without_room_ends_a_stage(tiny, pairs, training, encoded, monkeypatch, packed):
    def full(*_):
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(Scored, "forward", full)
    examples = tuple(encoded(pairs(4)))
    with Engine(tiny, training=training(), total_steps=1, runtime=Runtime()) as engine:
        engine.packed = packed
        with pytest.raises(OutOfRoom) as found:
            engine.step(Batch(0, 0, examples))
        assert 0 < found.value.tokens <= sum(map(len, examples)) * 0.6
        with pytest.raises(TrialFailed, match="one example at a time"):
            engine.step(Batch(0, 0, examples[:1]))
