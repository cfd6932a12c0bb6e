"""What only a GPU can show: its verdicts, its memory, and the kernel that takes packed examples.

`tests/bench/gpu.py` runs these where nothing but PyTorch and a few wheels is.
"""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from plain_generate import by_generate
from test_evaluate import trained
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config

from raysweep.data.encoding import question
from raysweep.data.scoring import SCORERS
from raysweep.learn.attention import VARLEN
from raysweep.learn.batches import batches_from, deal, pack
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.learn.loss import Scored
from raysweep.learn.memory import need, shape_of
from raysweep.sweep.spec import Runtime
from raysweep.sweep.stage import total_steps

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
    before = held_bytes()
    with Engine(tiny, training=settings, total_steps=9, runtime=runtime) as engine:
        batches = batches_from(0, encoded(pairs(16)), training=settings, seed=0)
        engine.step(next(batches))
        parts = deal(next(batches).examples, rank=0, ranks=1, most=4, most_tokens=1000, overhead=1)
        engine._accumulate([parts], [1.0])  # before a step, when gradients are there too
        held = held_bytes() - before
    assert held == pytest.approx(told.held, rel=0.25)


def held_bytes():
    """Without what cuBLAS sets aside for itself at its first product: 32 MiB for each thread on a H100, as much as `tiny`."""
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


SIZES = {
    "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
KERNEL = {
    "grouped heads": LlamaConfig(**SIZES),
    "a window": MistralConfig(**SIZES, sliding_window=8),
    "normed heads": Qwen3Config(**SIZES),
}


@pytest.mark.parametrize("config", KERNEL.values(), ids=KERNEL)
def test_the_kernel_gives_what_block_diagonal_sdpa_gives(config, pairs, encoded):
    """In bfloat16, so near, and in gradients too; what test_packing says of the adapter with a stand-in."""
    batch = pack(encoded(pairs(16, longest=60)))
    arrays = (batch.tokens_BL, batch.source_N, batch.labels_N, batch.positions_BL, batch.starts_M)
    given = [torch.from_numpy(array).cuda() for array in arrays]
    losses, gradients = {}, {}
    for chosen in (VARLEN, "sdpa"):
        torch.manual_seed(3)
        model = (
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=chosen).cuda().train()
        )
        total = Scored(model)(*given, batch.longest)
        total.backward()
        losses[chosen] = total.item()
        gradients[chosen] = torch.cat([one.grad.float().flatten() for one in model.parameters()])
    assert losses[VARLEN] == pytest.approx(losses["sdpa"], rel=0.01)
    assert torch.cosine_similarity(gradients[VARLEN], gradients["sdpa"], dim=0) > 0.995


def test_packed_examples_train_as_padded_ones_do(tiny, pairs, training, encoded):
    """Examples of unequal length, by whichever kernel is here: PyTorch's own needs no extra."""
    examples, settings = encoded(pairs(16, longest=60)), training(precision="bf16")
    losses = {}
    for packed in (True, False):
        with Engine(tiny, training=settings, total_steps=total_steps(16, settings), runtime=Runtime()) as engine:
            assert engine.packed, engine.facts()["attention"]
            engine.packed = packed
            steps = islice(batches_from(0, examples, training=settings, seed=0), 6)
            losses[packed] = [engine.step(batch).loss_sum for batch in steps]
    assert losses[True] == pytest.approx(losses[False], rel=0.01)


def test_float32_keeps_sorted_batches(small, training):
    with Engine(small, training=training(precision="fp32"), total_steps=1, runtime=Runtime()) as engine:
        assert not engine.packed and engine.facts()["attention"] == "sdpa"
