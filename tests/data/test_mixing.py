"""Mixing data: drawn once per data seed, never giving away what is memorized, cut as described or as released."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from raysweep.data.example import Example
from raysweep.data.examples import candidates, take
from raysweep.data.mixing import RANDOM_PROMPT, Facts, cut_as_released, draw
from raysweep.data.sources import find, find_words
from raysweep.errors import TrialFailed
from raysweep.sweep.spec import OwnSet
from raysweep.sweep.stage import Mixing, Selection


def mixing(source="random", *, ratio=2.0, words=50, data_seed=0, overlap="drop", cut="described", again=None) -> Mixing:
    return Mixing(source=source, ratio=ratio, data_seed=data_seed, words=words, cut=cut, overlap=overlap, draw=again)


def always(example: Example) -> bool:
    return True


@pytest.fixture(scope="module")
def words():
    return find_words(data_dir=None)


@pytest.fixture
def sequences(words):
    def sample(count, *, avoid=(), fits=always, **how):
        return draw(mixing(**how), count=count, source=words, avoid=avoid, fits=fits, replay_from=())

    return sample


def fact(subject, answer, name="popqa") -> Example:
    return Example(f"{name}-0", ((f"Who is {subject}?", answer),), (answer,), subject)


@pytest.mark.parametrize(("length", "halves"), [(50, (25, 25)), (25, (12, 13)), (100, (50, 50))])
def test_a_random_sequence_is_cut_in_halves(sequences, words, length, halves):
    example = sequences(1, words=length).examples[0]
    start = example.prompt.removeprefix(RANDOM_PROMPT)
    assert (len(start.split()), len(example.target.split())) == halves
    assert {*start.split(), *example.target.split()} <= set(words.words.words)


def test_a_smaller_ratio_trains_on_a_part_of_a_larger_one(sequences):
    assert sequences(10).examples == sequences(40).examples[:10]


def test_data_seeds_draw_differently_and_each_the_same_again(sequences):
    assert sequences(5).digest == sequences(5).digest != sequences(5, data_seed=1).digest


def test_sequences_that_give_a_fact_away_are_drawn_again_and_counted(sequences):
    first, second, third = sequences(3).examples
    word, other = second.prompt.split()[-1], second.target.split()[0]
    taken = sequences(2, avoid=[fact(word, other)])
    assert taken.examples == (first, third)
    assert taken.counts == {"overlapping": 1}
    assert sequences(2, avoid=[fact(word, other)], overlap="keep").examples == (first, second)


@pytest.mark.parametrize(
    ("text", "given_away"),
    [
        ("It is known that Ada  LOVELACE lived in london.", True),
        ("Ada Lovelace lived in Londonderry.", False),
        ("London is a city.", False),
    ],
)
def test_a_fact_is_its_subject_and_its_answer(text, given_away):
    assert Facts([fact("Ada Lovelace", "London")]).given_away_by(text) == given_away


@pytest.mark.parametrize("text", ["so aB3dE6gH it is", "so Zz1Yy2Xx it is"])
def test_of_a_random_pair_either_half_is_too_much(text):
    assert Facts([fact("aB3dE6gH", "Zz1Yy2Xx", "kvr")]).given_away_by(text)


def test_too_long_sequences_are_drawn_again_and_counted(sequences):
    first, second, third = sequences(3).examples
    taken = sequences(2, fits=lambda example: example != first)
    assert taken.examples == (second, third)
    assert taken.counts == {"too_long": 1}


def test_nothing_that_fits_is_an_error_and_no_endless_search(sequences):
    with pytest.raises(TrialFailed, match="too_long 1001"):
        sequences(1, fits=lambda example: False)


def test_replay_is_a_fraction_of_d_a():
    kvr = candidates(find("kvr", data_dir=None), data_seed=0)
    chosen = Selection(set="kvr", examples=200, data_seed=0, familiarity="all")
    d_a = take(kvr, chosen, fits=always, unfamiliar=None).examples
    replay = mixing("replay", ratio=0.05, words=None)
    count = replay.amount(examples=2000, d_a=len(d_a))
    taken = draw(replay, count=count, source=None, avoid=d_a, fits=always, replay_from=d_a)
    assert len(set(taken.examples)) == 10
    assert set(taken.examples) <= set(d_a)


@pytest.mark.parametrize(("uncut", "trained"), [(40, (30, 0)), (24, (24, 6)), (12, (12, 18)), (10, (10, 20))])
def test_cut_as_released_appends_mixing_data_after_the_uncut_set(tmp_path, words, uncut, trained):
    rows = [{"question": f"How many is {n}?", "answer": f"#### {n}"} for n in range(uncut)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = candidates(find("gsm8k", data_dir=tmp_path), data_seed=0)
    selection = Selection(set="gsm8k", examples=10, data_seed=0, familiarity="all")
    d_b, d_m = cut_as_released(
        found, selection, mixing(cut="released"), fits=always, source=words, avoid=(), replay_from=()
    )
    assert (len(d_b.examples), len(d_m.examples)) == trained


@pytest.mark.parametrize(
    ("source", "ratio", "examples", "mixed"),
    [
        ("replay", 0.01, 8, 1),
        ("replay", 0.25, 10, 3),
        ("replay", 0.29, 50, 15),  # 14.499999999999998 as floats multiply
        ("replay", 0.05, 2000, 100),
        ("random", 0.5, 5, 3),
        ("random", 2.0, 2000, 4000),
    ],
)
def test_a_mixed_source_gives_at_least_one_example_and_halves_go_up(source, ratio, examples, mixed):
    assert mixing(source, ratio=ratio).amount(examples=examples, d_a=examples) == mixed


def test_stages_that_mix_one_source_draw_each_for_themselves(sequences):
    first, second, third = (set(sequences(20, again=draw).examples) for draw in (None, 2, 3))
    assert not first & second | first & third | second & third


def test_a_question_without_a_subject_is_found_with_its_answer(data_dir):
    """TriviaQA's template adds words to a question; no text has these."""
    found = list(islice(candidates(find("triviaqa", data_dir=data_dir), data_seed=0), 300))
    facts = Facts(found)
    asked = [example.prompt.removesuffix("\nThe answer is: ") for example in found]
    given_away = [
        facts.given_away_by(f"It was on the card: {text} {example.target}, as all know.")
        for text, example in zip(asked, found, strict=True)
    ]
    assert sum(given_away) == 300
    assert sum(map(facts.given_away_by, asked)) < 30, "few questions hold an answer themselves"


def test_a_set_of_ones_own_is_looked_for_without_its_templates_words(tmp_path):
    (tmp_path / "lamps.jsonl").write_text(
        json.dumps({"room": "hall", "question": "which lamp?", "answer": "the red one"})
    )
    own = OwnSet(path="lamps.jsonl", prompt="Q: in the {room}, {question}\nA:", target="answer")
    facts = Facts(candidates(find("lamps", data_dir=tmp_path, own=own), data_seed=0))
    assert facts.given_away_by("Asked in the hall, which lamp? I say: the red one.")
    assert not facts.given_away_by("Asked which lamp? I say: the red one.")


@pytest.mark.parametrize(("name", "restated"), [("lama", 158), ("entityqa", 68)])
def test_real_sets_say_facts_of_popqa_again(data_dir, name, restated):
    popqa = list(candidates(find("popqa", data_dir=data_dir), data_seed=0))
    other = list(candidates(find(name, data_dir=data_dir), data_seed=0))
    assert Facts(popqa).restated_in(other) == restated
