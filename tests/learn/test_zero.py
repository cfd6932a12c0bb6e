"""What a worker holds of the weights: its share once they are loaded, where ZeRO 3 shards them, and little more while
they are asked where there is no room for all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ranks
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from raysweep.learn import memory, zero
from raysweep.learn.engine import Engine
from raysweep.sweep.spec import Runtime


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


def ask(folder, training, runtime, at_once, texts, out):
    """In this rank: ask so many texts as it has, one a pass; the weights it held in each layer, and what came out."""
    torch.set_num_threads(1)
    memory.asks_at_once = lambda *_, **__: at_once
    with Engine(folder, training=training, total_steps=1, runtime=Runtime(**runtime)) as engine:
        held, said = [], []
        with engine.asking() as scored:
            for layer in scored.model.model.layers:
                layer.mlp.register_forward_hook(lambda *_: held.append(bytes_of(scored.model)))
            for text in texts[engine.ranks.rank]:
                tokens_BL = torch.tensor([text])
                said.append([one.tolist() for one in scored.greedy(tokens_BL, torch.arange(len(text)))])
        left = bytes_of(engine.model)
        engine.save(Path(out) / "weights")
    (Path(out) / f"asked-{engine.ranks.rank}.json").write_text(json.dumps([held, left, said]))


@pytest.fixture
def deep(tmp_path):
    """Eight layers, which hold nearly all weights."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=96, num_hidden_layers=8, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "deep")
    return tmp_path / "deep"


@pytest.mark.parametrize(
    ("workers", "runtime", "texts"),
    [(2, {"zero": 3}, [[[1, 2, 3], [4, 5], [6]], [[7, 8, 9, 10]]]), (1, {"offload": "all"}, [[[1, 2, 3], [4, 5]]])],
)
def test_asked_layer_by_layer_a_worker_holds_one_layer_more_and_says_the_same(
    deep, training, tmp_path, workers, runtime, texts
):
    """Ranks make unequal numbers of passes."""
    model = AutoModelForCausalLM.from_pretrained(deep, dtype=torch.float32)
    whole = bytes_of(model)
    parts = {"training": training(), "runtime": Runtime(**runtime, workers=workers), "tokens": 0, "recomputed": True}
    told_need = memory.need(memory.shape_of(deep), **parts)
    assert told_need.asking < whole / 3
    told = {}
    for at_once in (True, False):
        given = (training(), runtime, at_once, texts, tmp_path)
        assert ranks.run(ask, deep, *given, size=workers, folder=tmp_path) == [0] * workers
        told[at_once] = [json.loads((tmp_path / f"asked-{rank}.json").read_text()) for rank in range(workers)]
        for name, tensor in load_file(tmp_path / "weights" / "model.safetensors").items():
            assert torch.equal(tensor, model.state_dict()[name]), "asking changes no weight"
    for (wide, _, theirs), (held, left, ours), own in zip(told[True], told[False], texts, strict=True):
        assert ours == theirs
        assert len(held) == 8 * len(own)
        if workers > 1:  # on a CPU, weights that are offloaded stay where they are
            assert min(wide) >= whole * 1.45
            assert told_need.weights < max(held) <= told_need.weights + told_need.asking
            assert left <= whole * 0.55
        best = [model(torch.tensor([text])).logits[0].argmax(-1).tolist() for text in own]
        assert [one[0] for one in ours] == best


@pytest.mark.parametrize(("stage", "most"), [(3, 0.51), pytest.param(2, 1.01, marks=pytest.mark.slow)])
def test_of_two_workers_each_holds_its_share_as_soon_as_weights_are_loaded(small, training, tmp_path, stage, most):
    """After loading, and before DeepSpeed starts. While it loads, rank 0 reads the files whole."""
    whole = bytes_of(AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32))
    assert ranks.run(hold, small, training(), {"zero": stage}, tmp_path, size=2, folder=tmp_path) == [0, 0]
    held = [json.loads((tmp_path / f"held-{rank}.json").read_text()) for rank in range(2)]
    assert [[most - 0.02 <= each / whole <= most for each in one] for one in held] == [[True]] * 2
    assert sum(each for (each,) in held) >= whole
