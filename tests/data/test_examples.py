"""Selection: seeded, stable, prefix-consistent, and honest about what is missing."""

from __future__ import annotations

import json
import re

import pytest

from raysweep.data.example import Example
from raysweep.data.examples import candidates, take
from raysweep.data.sources import find
from raysweep.errors import TrialFailed
from raysweep.sweep.stage import Selection


def select(name="kvr", examples=5, *, skip=0, familiarity="all", data_seed=0) -> Selection:
    return Selection(set=name, examples=examples, data_seed=data_seed, familiarity=familiarity, skip=skip)


def always(example: Example) -> bool:
    return True


def kvr(data_seed=0):
    return candidates(find("kvr", data_dir=None), data_seed=data_seed)


@pytest.fixture
def webqa(tmp_path):
    """A way to write a small WebQuestions folder and read it."""

    def write(rows, name="webqa.json"):
        (tmp_path / name).write_text(json.dumps([{"qId": str(n), **row} for n, row in enumerate(rows)]))
        return candidates(find("webqa", data_dir=tmp_path), data_seed=0)

    return write


def test_pairs_are_eight_letters_and_digits_and_keys_differ():
    taken = take(kvr(), select(examples=2000), fits=always, unfamiliar=None)
    assert all(re.fullmatch(r"The value of key [A-Za-z0-9]{8} is\?", example.prompt) for example in taken.examples)
    assert all(re.fullmatch(r"[A-Za-z0-9]{8}", example.target) for example in taken.examples)
    assert len({example.subject for example in taken.examples}) == 2000
    assert len({example.id for example in taken.examples}) == 2000


def test_the_first_pairs_do_not_depend_on_how_many_are_taken():
    few, many = (take(kvr(), select(examples=n), fits=always, unfamiliar=None).examples for n in (10, 500))
    assert few == many[:10]


def test_id_takes_the_ones_after_those_of_d_a():
    both = take(kvr(), select(examples=20), fits=always, unfamiliar=None).examples
    second = take(kvr(), select(examples=10, skip=10), fits=always, unfamiliar=None).examples
    assert second == both[10:]


def test_another_data_seed_gives_other_pairs():
    one, other = (take(kvr(seed), select(data_seed=seed), fits=always, unfamiliar=None) for seed in (0, 1))
    assert one.digest != other.digest


def test_the_order_of_rows_and_the_names_of_files_do_not_matter(webqa, tmp_path):
    rows = [{"qText": f"who is {n}?", "answers": [str(n)]} for n in range(50)]
    forward = list(webqa(rows, "one.json"))
    (tmp_path / "one.json").unlink()
    backward = list(webqa(rows[::-1], "two.json"))
    assert forward == backward
    assert [example.prompt for example in forward] != [row["qText"] for row in rows]


def test_the_same_question_twice_is_one_example(webqa):
    found = webqa([{"qText": "Who?", "answers": ["a", "b"]}, {"qText": " who? ", "answers": ["a", "c"]}])
    (example,) = found
    assert found.counts == {"duplicates": 1, "conflicting": 0}
    assert example.target == "a"
    assert example.answers == ("a", "b", "c")


def test_of_conflicting_answers_the_one_that_most_rows_give_is_the_target(webqa):
    rows = [{"qText": "who?", "answers": [answer]} for answer in ("zoe", "adam", "zoe")]
    (example,) = found = webqa(rows)
    assert example.target == "zoe"
    assert set(example.answers) == {"zoe", "adam"}
    assert found.counts["conflicting"] == 1


def test_too_long_examples_are_dropped_before_the_count_and_told():
    first, second, third = take(kvr(), select(examples=3), fits=always, unfamiliar=None).examples
    taken = take(kvr(), select(examples=2), fits=lambda example: example != second, unfamiliar=None)
    assert taken.examples == (first, third)
    assert taken.counts["too_long"] == 1


def test_familiar_and_unfamiliar_share_the_candidates(webqa):
    rows = [{"qText": f"who is {n}?", "answers": [str(n)]} for n in range(40)]
    known = {str(n) for n in range(0, 40, 2)}

    def unfamiliar(batch):
        return [example.target not in known for example in batch]

    new = take(webqa(rows), select("webqa", 20, familiarity="unfamiliar"), fits=always, unfamiliar=unfamiliar)
    old = take(webqa(rows), select("webqa", 20, familiarity="familiar"), fits=always, unfamiliar=unfamiliar)
    assert {example.target for example in old.examples} == known
    assert not {example.target for example in new.examples} & known
    assert new.counts["asked"] == 40 and new.counts["familiar"] == 20


def test_the_model_is_asked_only_until_enough_are_found(webqa):
    rows = [{"qText": f"who is {n}?", "answers": [str(n)]} for n in range(1000)]
    asked = []

    def unfamiliar(batch):
        asked.extend(batch)
        return [True] * len(batch)

    take(webqa(rows), select("webqa", 100, familiarity="unfamiliar"), fits=always, unfamiliar=unfamiliar)
    assert len(asked) == 100


def test_too_few_says_how_many_there_are(webqa):
    rows = [{"qText": f"who is {n}?", "answers": [str(n)]} for n in range(7)]
    with pytest.raises(TrialFailed, match="webqa: 5 examples are asked for and there are 3 after the 4 that D_A has"):
        take(webqa(rows), select("webqa", 5, skip=4), fits=always, unfamiliar=None)
