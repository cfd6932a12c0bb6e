"""Model families: the same loss as Transformers computes, memorizing, forgetting, and an export that others read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plain_generate import by_generate
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    Olmo2Config,
    OlmoConfig,
    OpenAIGPTConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    RwkvConfig,
    SmolLM3Config,
)
from transformers.models.llama import modeling_llama

from raysweep.data.encoding import few_shot_question
from raysweep.data.scoring import SCORERS
from raysweep.errors import BadInput
from raysweep.learn import architecture, loss
from raysweep.learn.architecture import SUPPORTED
from raysweep.learn.batches import Batch, collate, pack
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.learn.model import copy_tokenizer
from raysweep.learn.train import train
from raysweep.sweep.spec import Every, Runtime
from raysweep.sweep.stage import StopAt, total_steps

SIZE = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = SIZE | {"num_key_value_heads": 2, "head_dim": 16}
FAMILIES = {
    "llama": LlamaConfig(**SIZE, tie_word_embeddings=False),
    "llama_tied": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "mistral": MistralConfig(**GROUPED, sliding_window=16),
    "qwen2": Qwen2Config(**GROUPED, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**GROUPED, tie_word_embeddings=True),
    "gemma": GemmaConfig(**GROUPED),
    "gemma2": Gemma2Config(**GROUPED, sliding_window=16, query_pre_attn_scalar=16, final_logit_softcapping=5.0),
    "gemma3": Gemma3TextConfig(**GROUPED, sliding_window=16, query_pre_attn_scalar=16),
    "gpt_neox": GPTNeoXConfig(**SIZE, rotary_pct=0.25, tie_word_embeddings=False),
    "olmo": OlmoConfig(**SIZE),
    "olmo2": Olmo2Config(**SIZE),
    "smollm3": SmolLM3Config(**SIZE, num_key_value_heads=2, no_rope_layers=[1, 0]),
    "gpt2": GPT2Config(
        vocab_size=1024, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=None, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
    "granite": GraniteConfig(**SIZE, logits_scaling=3.0),
    "cohere": CohereConfig(**SIZE, logit_scale=0.3),
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def folder(request, tiny, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        AutoModelForCausalLM.from_config(FAMILIES[request.param]).save_pretrained(tmp_path / "base")
    copy_tokenizer(tiny, tmp_path / "base")
    return tmp_path / "base"


def test_the_families_that_are_promised_are_those_that_are_tested():
    assert {config.model_type for config in FAMILIES.values()} == SUPPORTED


@pytest.mark.parametrize(
    ("put", "at_once"), [(collate, None), (collate, 5), (pack, None)], ids=["padded", "in chunks", "packed"]
)
def test_loss_and_gradients_are_transformers_own(folder, pairs, encoded, monkeypatch, put, at_once):
    examples = encoded(pairs(6, longest=20))
    ours = AutoModelForCausalLM.from_pretrained(folder).double()
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double()
    batch = put(examples)
    if at_once:
        monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once * 1024)
    arrays = (batch.tokens_BL, batch.source_N, batch.labels_N, batch.positions_BL)
    total = loss.Scored(ours)(*(torch.from_numpy(array) for array in arrays if array is not None))
    (total / len(batch.labels_N)).backward()

    ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(one.tokens).long() for one in examples], batch_first=True)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(examples):
        labels[row, : len(one)] = torch.where(torch.from_numpy(one.targets), ids[row, : len(one)], -100)
        mask[row, : len(one)] = 1
    out = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    out.loss.backward()

    assert total.item() / len(batch.labels_N) == pytest.approx(out.loss.item(), rel=1e-5)
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-3, atol=1e-6)


def test_memorizes_forgets_exports(folder, tokenizer, pairs, training, encoded, asked, tmp_path):
    first, second = pairs(20), pairs(20, seed=1)
    settings = training(lr=5e-3, batch_size=10, epochs=150, stop=StopAt(rule="memorized"))
    scores = []
    at = folder
    for number, examples in enumerate((first, second)):
        total = total_steps(len(examples), settings)
        with Engine(at, training=settings, total_steps=total, runtime=Runtime()) as engine:
            outcome = train(
                engine,
                encoded(examples),
                training=settings,
                seed=0,
                tokenizer=tokenizer,
                own=asked(examples),
                probes={},
                every=Every(epochs=1),
                checkpoints=None,
                checkpoint_every=600.0,
            )
            assert outcome.stopped_by == "memorized"
            answers = answer(engine, tokenizer, asked(first), scorer=SCORERS["rouge_l"], max_new_tokens=12)
            scores.append(sum(one.score for one in answers))
            at = tmp_path / f"stage-{number}"
            engine.save(at)
    assert scores[0] == 20
    assert scores[1] < 15

    plain = AutoModelForCausalLM.from_pretrained(at).eval()
    for one, said in zip(asked(first), answers, strict=True):
        ids = torch.tensor([one.prompt])
        out = plain.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=0, pad_token_id=0
        )
        assert tokenizer.decode(out[0, len(one.prompt) :], skip_special_tokens=True) == said.text


UNLIKE_OTHERS = {
    "qwen3_5": Qwen3_5TextConfig(
        **GROUPED, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=16, linear_value_head_dim=16,
    ),
    "mamba2": Mamba2Config(
        vocab_size=1024, hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=16, state_size=16, chunk_size=16, n_groups=1,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    ),
    "rwkv": RwkvConfig(vocab_size=1024, hidden_size=64, num_hidden_layers=2, context_length=256, bos_token_id=None, eos_token_id=0),
    "openai-gpt": OpenAIGPTConfig(vocab_size=1024, n_embd=64, n_layer=2, n_head=4, n_positions=256, eos_token_id=0),
}  # fmt: skip
ALONE = {"rwkv": 1}  # what pads their rows changes their answers, by `generate` too


@pytest.mark.parametrize("family", UNLIKE_OTHERS)
def test_recurrent_layers_and_models_without_a_key_cache_answer_as_generate_does(
    family, tiny, tokenizer, pairs, training, encoded, asked, tmp_path
):
    """Prompts that begin alike, of unequal length; part of it known; rows that end one by one."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        AutoModelForCausalLM.from_config(UNLIKE_OTHERS[family]).save_pretrained(tmp_path / "base")
    copy_tokenizer(tiny, tmp_path / "base")
    known = pairs(10)
    few_shot = [few_shot_question(one, known[:3], tokenizer) for one in known[3:]]
    settings = training(lr=5e-3, batch_size=5, epochs=30)
    total = total_steps(len(known), settings)
    with Engine(tmp_path / "base", training=settings, total_steps=total, runtime=Runtime()) as engine:
        train(
            engine,
            encoded(known),
            training=settings,
            seed=0,
            tokenizer=tokenizer,
            probes={},
            every=Every(epochs=1),
            checkpoints=None,
            checkpoint_every=600.0,
        )
        engine.save(tmp_path / "out")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        masks = []
        engine.model.register_forward_pre_hook(
            lambda _, __, given: masks.append(given["attention_mask"]), with_kwargs=True
        )
        for questions in (asked([*known, *pairs(5, seed=1)]), few_shot):
            ours = answer(engine, tokenizer, questions, scorer=SCORERS["rouge_l"], max_new_tokens=12)
            texts, _ = by_generate(
                model, tokenizer, questions, SCORERS["rouge_l"], most=12, batch_size=ALONE.get(family, 7)
            )
            assert [one.text for one in ours] == texts
            assert questions is few_shot or 0 < sum(one.proven for one in ours) < len(questions)
            mixed = [
                replace(one, target=one.target[-1:], golds=(text if index % 2 else f"{text[: index % 5]}#",))
                for index, (one, text) in enumerate(zip(questions, texts, strict=True))
            ]
            leaving = answer(engine, tokenizer, mixed, scorer=SCORERS["exact"], max_new_tokens=12)
            assert [one.score for one in leaving] == [float(index % 2) for index in range(len(mixed))]
        assert engine.architecture.sees_padding == (family in ALONE)
        assert family not in ALONE or all(mask.all() for mask in masks)


@pytest.mark.parametrize(
    ("family", "said"),
    [("openai-gpt", "openai-gpt models are not among"), ("mamba2", "recurrent layers, which were promised once")],
)
def test_a_family_that_nobody_tests_is_said_once(family, said, tiny, training, tmp_path, caplog):
    architecture._say_untested.cache_clear()
    AutoModelForCausalLM.from_config(UNLIKE_OTHERS[family]).save_pretrained(tmp_path)
    copy_tokenizer(tiny, tmp_path)
    for _ in range(2):
        with Engine(tmp_path, training=training(), total_steps=1, runtime=Runtime(), for_training=False):
            pass
    with Engine(tiny, training=training(), total_steps=1, runtime=Runtime(), for_training=False):
        pass
    (warning,) = [one for one in caplog.messages if "not among the families" in one]
    assert said in warning


def test_logits_that_are_made_in_another_way_are_the_models_own(tiny, pairs, training, encoded, tmp_path, caplog):
    """This family multiplies by a setting of which others know that they divide by it."""
    model = AutoModelForCausalLM.from_config(HyperCLOVAXConfig(**SIZE, logits_scaling=3.0))
    model.save_pretrained(tmp_path)
    copy_tokenizer(tiny, tmp_path)
    batch = Batch(0, 0, tuple(encoded(pairs(3))))
    with caplog.at_level("INFO"), Engine(tmp_path, training=training(), total_steps=1, runtime=Runtime()) as engine:
        stats = engine.step(batch)
    total = 0.0
    for one in batch.examples:
        tokens = torch.from_numpy(one.tokens).long()
        labels = torch.where(torch.from_numpy(one.targets), tokens, -100)
        total += model(input_ids=tokens[None], labels=labels[None]).loss.item() * one.targets.sum()
    assert stats.loss_sum == pytest.approx(total, rel=1e-5)
    assert "HyperCLOVAXForCausalLM makes its logits in a way of its own" in caplog.text


@pytest.mark.parametrize("zero", [0, 3])
def test_what_a_model_keeps_of_its_first_pass_does_not_bar_training(small, pairs, training, encoded, monkeypatch, zero):
    """As some files of `trust_remote_code` keep their tables of angles; opening an engine makes that pass."""

    class KeepingRotaryEmbedding(modeling_llama.LlamaRotaryEmbedding):  # Transformers fills its buffers by that name
        kept = None

        def forward(self, x, position_ids):
            if self.kept is None:
                self.kept = super().forward(x, torch.arange(512)[None])
            count = position_ids.shape[1]
            return tuple(table[:, :count].to(x.dtype) for table in self.kept)

    monkeypatch.setattr(modeling_llama, "LlamaRotaryEmbedding", KeepingRotaryEmbedding)
    with Engine(small, training=training(), total_steps=2, runtime=Runtime(zero=zero)) as engine:
        assert engine.step(Batch(1, 0, tuple(encoded(pairs(3))))).grad_norm > 0


@pytest.mark.parametrize("for_training", [True, False])
def test_a_model_that_sees_what_comes_after_a_token_is_refused(tiny, training, tmp_path, for_training):
    sizes = {name: SIZE[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    BertLMHeadModel(BertConfig(**sizes, num_attention_heads=4)).save_pretrained(tmp_path)
    copy_tokenizer(tiny, tmp_path)
    with pytest.raises(BadInput, match="BertLMHeadModel is no decoder"):
        Engine(tmp_path, training=training(), total_steps=1, runtime=Runtime(), for_training=for_training)
