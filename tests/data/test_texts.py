"""Passages: the first words of a document ask for the next ones; short documents are skipped and counted."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from raysweep.data.mixing import PASSAGE_PROMPT, draw
from raysweep.data.sources import find_text
from raysweep.data.texts import passages
from raysweep.errors import TrialFailed
from raysweep.sweep.spec import Text
from raysweep.sweep.stage import Mixing


@pytest.fixture
def corpus(tmp_path):
    def write(texts):
        (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        return find_text("text", text=Text(path="c.jsonl"), data_dir=tmp_path)

    return write


def words(first: int, count: int) -> str:
    return " \n".join(f"w{n}" for n in range(first, first + count))


def mixing(words=50) -> Mixing:
    return Mixing(source="text", ratio=1.0, data_seed=0, words=words, cut="described", overlap="drop")


def test_the_first_fifty_words_ask_for_the_next_fifty(corpus):
    source = corpus([words(0, 120), words(0, 99)])
    taken = draw(mixing(), count=1, source=source, avoid=(), fits=lambda example: True, replay_from=())
    (example,) = taken.examples
    assert example.prompt == PASSAGE_PROMPT + " ".join(f"w{n}" for n in range(50))
    assert example.target == " ".join(f"w{n}" for n in range(50, 100))
    assert taken.counts == {"short": 1, "duplicates": 0}


def test_words_per_part_are_settable(corpus):
    (pair,) = passages(corpus([words(0, 8)]), words=3, seed="0", counts=Counter())
    assert pair == ("w0 w1 w2", "w3 w4 w5")


def test_equal_passages_are_one_and_the_order_is_seeded(corpus):
    source = corpus([words(n, 100) for n in [*range(20), 3]])
    one, other = (list(passages(source, words=50, seed=seed, counts=Counter())) for seed in "01")
    assert len(one) == 20
    assert one != other
    assert set(one) == set(other)


def test_too_few_passages_says_how_many_there_are(corpus):
    source = corpus([words(0, 100), "short"])
    with pytest.raises(TrialFailed, match=r"text: 5 mixing examples are asked for and there are 1 \(.*short 1\)"):
        draw(mixing(), count=5, source=source, avoid=(), fits=lambda example: True, replay_from=())


def test_real_documents_give_the_passages_that_were_counted(data_dir):
    folder = data_dir / "generic_text"
    source = find_text("text", text=Text(path=str(folder)), data_dir=None)
    counts: Counter[str] = Counter()
    assert len(list(passages(source, words=50, seed="0", counts=counts))) + counts["duplicates"] == 338
