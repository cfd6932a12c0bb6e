"""What repeats itself bit for bit, and what must not: dropout of two ranks, of a stage resumed; deterministic kernels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import ranks
import torch
import unequal_ranks
from safetensors.torch import load_file
from stage_in_workers import stage
from transformers import LlamaConfig, LlamaForCausalLM

from raysweep.learn.batches import Batch
from raysweep.learn.engine import Engine
from raysweep.learn.model import copy_tokenizer
from raysweep.learn.teacher_forcing import likely_share
from raysweep.sweep.spec import Runtime


@pytest.fixture
def dropping(small, tmp_path):
    """A Llama that forgets a third of what it attends to while it is trained."""
    config = LlamaConfig.from_pretrained(small, attention_dropout=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "dropping")
    copy_tokenizer(small, tmp_path / "dropping")
    return tmp_path / "dropping"


def test_ranks_drop_out_other_places(dropping, small, training, encoded, pairs, tmp_path):
    """Without dropout, the same example has the same loss on both."""
    (one,) = encoded(pairs(1))
    job = {
        "training": training(batch_size=2, epochs=2, warmup=0.0),
        "examples": [one, replace(one, id="again")],
        "out": tmp_path,
    }
    for folder, same in ((small, True), (dropping, False)):
        assert ranks.run(unequal_ranks.drop_out, job | {"folder": folder}, size=2, folder=tmp_path) == [0, 0]
        first, second = (torch.load(tmp_path / f"told-{rank}.pt") for rank in range(2))
        assert [(left == right) for left, right in zip(first, second, strict=True)] == [same] * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_resumed_stage_drops_out_what_it_would_have(dropping, training, encoded, asked, pairs, tmp_path, workers):
    examples = pairs(17)
    job = {
        "folder": str(dropping),
        "training": training(epochs=2),
        "examples": encoded(examples),
        "questions": asked(examples[:3]),
        "runtime": {"workers": workers},
    }

    def made(name, **more):
        out = tmp_path / name
        out.mkdir()
        codes = ranks.run(stage, job | more | {"out": str(out)}, size=workers, folder=out)
        return out, codes

    kept = {"checkpoints": [Path(tmp_path / "kept")] * workers}
    whole, codes = made("whole")
    assert codes == [0] * workers
    _, codes = made("killed", **kept, dies_after=4, checkpoint_every=0.0)
    assert codes == [3] * workers
    resumed, codes = made("resumed", **kept)
    assert codes == [0] * workers
    told = [json.loads((out / "told-0.json").read_text()) for out in (whole, resumed)]
    assert told[1]["first"] > 1 and told[0]["losses"] == told[1]["losses"]
    weights = [load_file(out / "model.safetensors") for out in (whole, resumed)]
    assert all(one.equal(weights[1][name]) for name, one in weights[0].items())


def test_deterministic_kernels_are_asked_for_while_an_engine_is_open(small, training, encoded, asked, pairs):
    """And every operation of ours has one, on a CPU at least; the process is afterwards what it was."""
    batch = Batch(1, 0, tuple(encoded(pairs(5))))
    told = []
    for deterministic in (False, True, True):
        runtime = Runtime(deterministic=deterministic)
        with Engine(small, training=training(), total_steps=2, runtime=runtime) as engine:
            assert torch.are_deterministic_algorithms_enabled() == deterministic
            told.append((engine.step(batch), likely_share(engine, asked(pairs(3)))))
        assert not torch.are_deterministic_algorithms_enabled()
    assert told[1] == told[2]
    assert told[0][0].loss_sum == pytest.approx(told[1][0].loss_sum, rel=1e-6)
