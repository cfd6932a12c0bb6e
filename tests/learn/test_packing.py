"""Packed examples: the adapter against block-diagonal SDPA, and models that mix them are found out. The kernel of PyTorch
has no CPU half: a stand-in is called in its place, as it would be; the kernel itself is test_gpu's."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from test_families import FAMILIES
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
    Olmo2Config,
    PreTrainedModel,
    modeling_flash_attention_utils,
    modeling_utils,
)
from transformers.models.gpt_neo import modeling_gpt_neo
from transformers.models.gptj import modeling_gptj

from raysweep.learn import attention, loss, packing, weights
from raysweep.learn.attention import VARLEN
from raysweep.learn.batches import batches_from, collate, pack
from raysweep.learn.engine import Engine
from raysweep.learn.loss import Scored
from raysweep.learn.ranks import connect
from raysweep.sweep.spec import Runtime
from raysweep.sweep.stage import total_steps

CPU = torch.device("cpu")
VARLEN_FAMILIES = [name for name in FAMILIES if name != "gemma2"]  # which caps its logits: Transformers keeps it eager
SIZES = {"vocab_size": 1024, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
BIGCODE = GPTBigCodeConfig(**SIZES, n_embd=64, n_layer=2, n_head=4, n_positions=256)
MIXING = {
    "gptj": GPTJConfig(**SIZES, n_embd=64, n_layer=2, n_head=4, n_positions=256, rotary_dim=8),
    "gpt_neo": GPTNeoConfig(
        **SIZES, hidden_size=64, num_layers=2, num_heads=4, max_position_embeddings=256, attention_types=[[["global"], 2]]
    ),
}  # fmt: skip


def block_by_block(query, key, value, starts, starts_k, longest, longest_k, *, scale, window_size, enable_gqa=False):
    """What PyTorch's kernel gives: causal attention within each example, by one SDPA call for each."""
    assert starts.dtype == torch.int32 and starts is starts_k
    assert type(longest) is int and longest == longest_k == int(starts.diff().max())
    assert enable_gqa == (query.shape[1] != key.shape[1])
    done = []
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        parts = (part[start:end].transpose(0, 1) for part in (query, key, value))
        seen = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        if window_size[0] >= 0:
            seen &= torch.ones_like(seen).triu(-window_size[0])
        mixed = F.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
        done.append(mixed.transpose(0, 1))
    return torch.cat(done)


def flash(
    query,
    key,
    value,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    causal,
    softmax_scale,
    window_size=(-1, 0),
):
    """FlashAttention's kernel, as far as it is called here."""
    assert causal
    given = {"scale": softmax_scale, "window_size": (window_size[0], 0)}
    grouped = query.shape[1] != key.shape[1]
    return block_by_block(
        query, key, value, cu_seqlens_q, cu_seqlens_q, int(max_seqlen_q), int(max_seqlen_q), enable_gqa=grouped, **given
    )


def flash_of_one_text(query, key, value, *, causal, softmax_scale, **_):
    """FlashAttention where it is not told that there are several examples."""
    parts = (part.transpose(1, 2) for part in (query, key, value))
    grouped = query.shape[2] != key.shape[2]
    mixed = F.scaled_dot_product_attention(*parts, is_causal=causal, scale=softmax_scale, enable_gqa=grouped)
    return mixed.transpose(1, 2)


@pytest.fixture
def varlen(monkeypatch):
    """The adapter is chosen on a CPU too, with the stand-in below it."""
    monkeypatch.setattr(packing, "_kernel", lambda: block_by_block)
    monkeypatch.setattr(packing, "_wants_to_know", lambda: True)
    monkeypatch.setattr(attention, "implementation", lambda config, dtype, device: VARLEN)
    packing.register()


@pytest.fixture
def flash_attention(monkeypatch):
    """As if flash-attn were installed, with the stand-in for its kernels."""
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    functions = (flash_of_one_text, flash, None, None, None)
    supported = modeling_flash_attention_utils._lazy_define_process_function(flash)
    loaded = lambda *_, **__: (functions, (supported, None))  # noqa: E731
    for module in (modeling_flash_attention_utils, modeling_utils):
        monkeypatch.setattr(module, "lazy_import_flash_attention", loaded)
    for module in (modeling_gptj, modeling_gpt_neo):  # which import it only where there is a GPU
        called = modeling_flash_attention_utils._flash_attention_forward
        monkeypatch.setattr(module, "_flash_attention_forward", called, raising=False)


def model_of(config, chosen):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=chosen)
    return model.double() if chosen != "flash_attention_2" else model


def loss_of(model, batch):
    arrays = [batch.tokens_BL, batch.source_N, batch.labels_N, batch.positions_BL, batch.starts_M]
    given = [torch.from_numpy(array) for array in arrays if array is not None]
    total = Scored(model)(*given, *([batch.longest] if batch.starts_M is not None else []))
    total.backward()
    return total.item(), {name: one.grad for name, one in model.named_parameters()}


@pytest.mark.parametrize("recomputed", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize("family", VARLEN_FAMILIES)
def test_the_adapter_gives_what_block_diagonal_sdpa_gives(varlen, pairs, encoded, family, recomputed):
    """Losses and gradients, with grouped heads and windows, of unequal examples."""
    batch = pack(encoded(pairs(6, longest=20)))
    ours, theirs = model_of(FAMILIES[family], VARLEN).train(), model_of(FAMILIES[family], "sdpa").train()
    if recomputed:
        weights.recompute(ours, None)
    total, gradients = loss_of(ours, batch)
    wanted, wanted_gradients = loss_of(theirs, batch)
    assert total == pytest.approx(wanted, rel=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", VARLEN_FAMILIES)
def test_what_is_not_packed_is_left_to_sdpa(varlen, pairs, encoded, family):
    batch = collate(encoded(pairs(6, longest=20)))
    ours, theirs = (model_of(FAMILIES[family], chosen) for chosen in (VARLEN, "sdpa"))
    assert loss_of(ours, batch)[0] == loss_of(theirs, batch)[0]


def test_generating_beside_padding_is_left_to_sdpa_too(varlen):
    prompts = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    given = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}
    ours, theirs = (model_of(FAMILIES["mistral"], chosen).eval() for chosen in (VARLEN, "sdpa"))
    assert ours.generate(prompts, **given).tolist() == theirs.generate(prompts, **given).tolist()


def test_an_engine_packs_and_trains_as_sorted_batches_do(varlen, small, pairs, training, encoded, tmp_path):
    examples, settings = encoded(pairs(16, longest=60)), training()
    losses = {}
    for packed in (True, False):
        with Engine(small, training=settings, total_steps=total_steps(16, settings), runtime=Runtime()) as engine:
            assert engine.packed and engine.facts()["attention"] == VARLEN
            engine.packed = packed
            steps = islice(batches_from(0, examples, training=settings, seed=0), 4)
            losses[packed] = [engine.step(batch).loss_sum for batch in steps]
            engine.save(tmp_path / str(packed))
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert VARLEN not in (tmp_path / "True" / "config.json").read_text(), "others must be able to load it"


def tried(model):
    scored = Scored(model.eval())
    return packing.isolates(scored, CPU, connect(), rounding=1e-3)


@pytest.mark.parametrize("family", MIXING)
def test_a_model_that_mixes_packed_examples_is_found_out(flash_attention, caplog, family):
    """These take flash-attention, and do not tell it where examples start."""
    model = model_of(MIXING[family], "flash_attention_2")
    assert packing.skips_masked(model.config), "so it would be packed"
    assert not tried(model)
    assert f"{type(model).__name__} trains on sorted examples" in caplog.text


@pytest.mark.parametrize("config", [LlamaConfig, Olmo2Config], ids=["llama", "olmo2"])
def test_a_model_that_keeps_them_apart_is_packed(flash_attention, config):
    given = {**SIZES, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    assert tried(model_of(config(**given, num_key_value_heads=2), "flash_attention_2"))


def test_a_model_that_mixes_by_positions_alone_is_packed_only_where_it_is_told_more(flash_attention, monkeypatch):
    assert tried(model_of(BIGCODE, "flash_attention_2"))
    monkeypatch.setattr(loss, "packed_arguments", lambda config, positions_BL, *_: {"position_ids": positions_BL})
    assert not tried(model_of(BIGCODE, "flash_attention_2"))


def test_a_kernel_that_sees_across_examples_is_found_out(varlen, monkeypatch):
    """The adapter is not trusted either."""
    model = model_of(FAMILIES["llama"], VARLEN).float()
    assert tried(model)

    def across(query, key, value, starts, *_, **given):
        whole = starts[[0, -1]]
        return block_by_block(query, key, value, whole, whole, int(whole[1]), int(whole[1]), **given)

    monkeypatch.setattr(packing, "_kernel", lambda: across)
    assert not tried(model)


def test_a_kernel_that_refuses_means_sorted_batches_and_no_error(varlen, small, training, monkeypatch, caplog):
    def refusing(*_, **__):
        raise RuntimeError("head_size should be a multiple of 8")

    monkeypatch.setattr(packing, "_kernel", lambda: refusing)
    with Engine(small, training=training(), total_steps=1, runtime=Runtime()) as engine:
        assert not engine.packed
    assert "multiple of 8" in caplog.text


def test_dropout_is_not_left_out_in_silence(varlen):
    config = GPT2Config(**SIZES, n_embd=64, n_layer=1, n_head=4, attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0)
    model = model_of(config, VARLEN).train()
    given = attention.packed_arguments(
        model.config, torch.tensor([[0, 1, 0]]), torch.tensor([0, 2, 3], dtype=torch.int32), 2
    )
    with pytest.raises(NotImplementedError, match="dropout"):
        model(input_ids=torch.tensor([[1, 2, 3]]), **given)


def test_loading_lets_transformers_know_the_adapter(small):
    model = weights.load_weights(small, torch.float32, CPU, trust_remote_code=False)
    model.set_attn_implementation(VARLEN)
    assert model.config._attn_implementation == VARLEN
