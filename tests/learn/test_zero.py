"""What a worker holds once weights are loaded: its share of them, where ZeRO 3 shards them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ranks
import torch
from transformers import AutoModelForCausalLM

from raysweep.learn import zero
from raysweep.learn.engine import Engine
from raysweep.spec import Runtime


def hold(folder, training, runtime, out):
    """In this rank: open an engine, and tell the bytes that its weights take after loading, before DeepSpeed starts."""
    torch.set_num_threads(1)
    start, held = zero.start, []

    def starting(model, **parts):
        held.append(bytes_of(model))
        return start(model, **parts)

    zero.start = starting
    with Engine(folder, training=training, total_steps=1, runtime=Runtime(**runtime)) as engine:
        (Path(out) / f"held-{engine.ranks.rank}.json").write_text(json.dumps(held))


def bytes_of(model):
    """Each storage once: parameters, ZeRO's shards of them, buffers."""
    tensors = [*model.buffers(), *model.parameters()]
    tensors += [shard for one in model.parameters() if (shard := getattr(one, "ds_tensor", None)) is not None]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors if one.numel()}
    return sum(storages.values())


@pytest.mark.parametrize(("stage", "most"), [(3, 0.51), pytest.param(2, 1.01, marks=pytest.mark.slow)])
def test_of_two_workers_each_holds_its_share_as_soon_as_weights_are_loaded(small, training, tmp_path, stage, most):
    """After loading, and before DeepSpeed starts. While it loads, rank 0 reads the files whole."""
    whole = bytes_of(AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32))
    assert ranks.run(hold, small, training(), {"zero": stage}, tmp_path, size=2, folder=tmp_path) == [0, 0]
    held = [json.loads((tmp_path / f"held-{rank}.json").read_text()) for rank in range(2)]
    assert [[most - 0.02 <= each / whole <= most for each in one] for one in held] == [[True]] * 2
    assert sum(each for (each,) in held) >= whole
