"""Ranks whose examples differ in length and number make the same collective calls, and what one rank makes.

With a real vocabulary: logits are cut into chunks by the number of targets, which is every rank's own.
"""

from __future__ import annotations

import numpy as np
import pytest
import ranks
import torch
import unequal_ranks
from transformers import LlamaConfig, LlamaForCausalLM

from raysweep.data.encoding import Encoded, Question
from raysweep.learn.batches import Batch

VOCABULARY = 128_256
PATIENCE = 120


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(ranks, "PATIENCE", PATIENCE)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Llamas with the vocabulary of Llama 3 and hardly anything else, by whether their embeddings are tied."""
    folder = tmp_path_factory.mktemp("wide")
    for tied in (False, True):
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=tied, max_position_embeddings=2048, bos_token_id=None, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(1)
            LlamaForCausalLM(config).save_pretrained(folder / str(tied))
    return folder


def example(length, seed):
    tokens = np.random.default_rng(seed).integers(1, VOCABULARY, length, dtype=np.int32)
    return Encoded(f"{length}-{seed}", tokens, np.arange(length) > 0)


def question(seed):
    """Of an answer that a model in its first steps does not give, and of unlike lengths."""
    tokens = tuple(np.random.default_rng(seed).integers(1, VOCABULARY, 4 + 3 * seed).tolist())
    return Question(id=str(seed), prompt=tokens[:-2], target=tokens[-2:], golds=("1 2 3",), stop=None)


def test_ranks_with_1500_and_700_target_tokens_train(wide, training, tmp_path):
    """The paper's configuration: 1,046 targets fill a chunk of a 128k vocabulary."""
    batch = Batch(0, 0, (example(1501, 1), example(701, 2)))
    job = {"folder": wide / "False", "training": training(), "batches": [batch], "runtime": {"zero": 3}}
    assert ranks.run(unequal_ranks.step_once, job, size=2, folder=tmp_path) == [0, 0]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_two_and_three_ranks_make_what_one_makes(wide, training, tmp_path, tied):
    """ZeRO 0 to 3; a batch of one example leaves ranks without any, as one question does."""
    job = {
        "folder": wide / str(tied),
        "training": training(warmup=0.0, clip=0.5),
        "rows": 20,
        "zero": [3, 2, 1, 0] if not tied else [3],
        "batches": [
            Batch(0, 0, (example(91, 1), example(31, 2), example(15, 3), example(70, 4))),
            Batch(1, 0, (example(60, 5),)),
            Batch(2, 0, (example(45, 6), example(2, 7))),
        ],
        "questions": [question(seed) for seed in range(5)],
    }
    told = {}
    for size in (1, 2, 3):
        out = tmp_path / str(size)
        out.mkdir()
        assert ranks.run(unequal_ranks.live, job | {"out": out}, size=size, folder=out) == [0] * size
        told[size] = [torch.load(out / f"told-{rank}.pt", weights_only=False) for rank in range(size)]
    (alone,) = told[1]
    for size in (2, 3):
        for zero in job["zero"]:
            for ours in (one[zero] for one in told[size]):
                assert np.array(ours["losses"]) == pytest.approx(np.array(alone[zero]["losses"]), rel=1e-5)
                assert (ours["shares"], ours["answers"]) == (alone[zero]["shares"], alone[zero]["answers"])
                assert ours["resumed the same"]
            ours = told[size][0][zero]["weights"]
            assert ours.keys() == alone[zero]["weights"].keys()
            assert max((ours[name] - one).abs().max() for name, one in alone[zero]["weights"].items()) < 1e-4


@pytest.mark.parametrize("waits", [False, True])
def test_a_call_that_one_rank_makes_more_is_named(tmp_path, waits):
    """Whether it goes on at once, or hangs in it."""
    ranks.run(unequal_ranks.differ, {"waits": waits, "out": tmp_path}, size=2, folder=tmp_path)
    told = (tmp_path / "error-0").read_text()
    assert "rank 0: 1 by step 2" in told
    assert ("rank 1: not there" if waits else "rank 1: 2 by step 2") in told
    assert (tmp_path / "error-1").exists() != waits


@pytest.mark.parametrize("at_once", [True, False], ids=["whole", "layer by layer"])
def test_where_one_rank_fails_all_do_and_go_on_together(small, training, tmp_path, at_once, encoded, pairs):
    (tmp_path / "file").touch()
    job = {
        "folder": small,
        "training": training(),
        "batches": [Batch(0, 0, tuple(encoded(pairs(3))))],
        "runtime": {"zero": 3},
        "at_once": at_once,
        "file": tmp_path / "file",
        "out": tmp_path,
    }
    assert ranks.run(unequal_ranks.fail, job, size=2, folder=tmp_path) == [0, 0]
    first, second = (torch.load(tmp_path / f"told-{rank}.pt", weights_only=False) for rank in range(2))
    assert first == second
    assert "TrialFailed: out of memory" in first[0] and "NotADirectoryError" in first[1]


@pytest.mark.parametrize("at_once", [True, False], ids=["whole", "layer by layer"])
def test_a_rank_that_has_room_for_few_questions_answers_all(small, training, tmp_path, at_once, encoded, asked, pairs):
    """As it would with room for all, while the others wait for it."""
    job = {
        "folder": small,
        "training": training(),
        "batches": [Batch(0, 0, tuple(encoded(pairs(2))))],
        "questions": asked(pairs(12)),
        "runtime": {"zero": 3},
        "at_once": at_once,
    }
    told = {}
    for room in (1000, 1):
        out = tmp_path / str(room)
        out.mkdir()
        given = job | {"room": room, "out": out}
        assert ranks.run(unequal_ranks.answer_in_little_room, given, size=2, folder=out) == [0, 0]
        told[room] = [torch.load(out / f"told-{rank}.pt", weights_only=False) for rank in range(2)]
    assert [one["failed"] > 0 for one in told[1]] == [False, True]
    for one in told[1]:
        assert (one["share"], one["answers"]) == (told[1000][0]["share"], told[1000][0]["answers"])


def test_a_rank_without_room_ends_the_attempt_and_the_next_takes_half_the_tokens(
    small, training, tmp_path, encoded, pairs
):
    """Every rank the same, with the numbers of ranks that never lacked room."""
    job = {
        "folder": small,
        "training": training(epochs=2),
        "examples": encoded(pairs(20, longest=14)),
        "runtime": {"zero": 3, "workers": 2},
        "room": 10**6,
        "checkpoints": tmp_path / "free",
        "out": tmp_path,
    }
    (tmp_path / "free").mkdir()
    assert ranks.run(unequal_ranks.lack_room, job, size=2, folder=tmp_path) == [0, 0]
    free = torch.load(tmp_path / "told-1.pt", weights_only=False)
    job |= {"room": free["largest"] - 1, "checkpoints": tmp_path / "tight"}
    (tmp_path / "tight").mkdir()
    assert all(ranks.run(unequal_ranks.lack_room, job, size=2, folder=tmp_path)), "nobody waits for the one that failed"
    assert int((tmp_path / "tight" / "tokens-at-once").read_text()) == free["largest"] // 2
    assert ranks.run(unequal_ranks.lack_room, job, size=2, folder=tmp_path) == [0, 0]
    for rank in range(2):
        tight = torch.load(tmp_path / f"told-{rank}.pt", weights_only=False)
        assert tight["largest"] <= free["largest"] // 2
        assert tight["losses"] == pytest.approx(free["losses"], rel=1e-5)
