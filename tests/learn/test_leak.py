"""Stage after stage in one process: nothing of an engine outlives its close."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from raysweep.data.scoring import SCORERS
from raysweep.learn.batches import Batch
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.learn.train import train
from raysweep.learn.zero import disconnect
from raysweep.sweep.spec import Every, Runtime
from raysweep.sweep.stage import total_steps


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize(
    ("zero", "offload"),
    [
        (3, "none"),
        (0, "none"),
        *(pytest.param(*way, marks=pytest.mark.slow) for way in ((1, "none"), (2, "none"), (1, "optimizer"))),
        *(pytest.param(*way, marks=pytest.mark.slow) for way in ((2, "optimizer"), (3, "optimizer"), (3, "all"))),
    ],
)
def test_a_closed_engine_is_gone(small, tokenizer, pairs, training, encoded, asked, tmp_path, zero, offload):
    examples, questions = encoded(pairs(8)), asked(pairs(8))
    settings = training(epochs=2)

    def trial() -> list[weakref.ref]:
        total = total_steps(len(examples), settings)
        with Engine(small, training=settings, total_steps=total, runtime=Runtime(zero=zero, offload=offload)) as engine:
            train(
                engine,
                examples,
                training=settings,
                seed=0,
                tokenizer=tokenizer,
                probes={"a": questions},
                every=Every(epochs=1),
                checkpoints=None,
                checkpoint_every=600.0,
            )
            first = [weakref.ref(thing) for thing in (engine._engine, engine._engine.optimizer)]
            engine.release()
            assert not alive(first), "only the weights are left while a stage is asked"
            answer(engine, tokenizer, questions, scorer=SCORERS["exact"], max_new_tokens=4)
            engine.save(tmp_path)
            engine.go_on(training=settings, total_steps=total)
            engine.step(Batch(1, 0, tuple(examples)))
            held = [engine.model, engine._engine, engine._engine.optimizer, *engine.model.parameters()]
            return [weakref.ref(thing) for thing in held]

    def alive(references: list[weakref.ref]) -> list[object]:
        gc.collect()
        return [reference() for reference in references if reference() is not None]

    assert not alive(trial())
    disconnect()
    after_first = tensors()
    for _ in range(2):
        assert not alive(trial())
        disconnect()
    assert tensors() <= after_first
