"""Scoring rules, and the law that stopping early changes no score."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.data.scoring import SCORERS


@pytest.mark.parametrize(
    ("rule", "prediction", "golds", "score"),
    [
        ("exact", " Paris\n", ("paris",), 1),
        ("exact", "Paris.", ("Paris",), 0),
        ("exact", "NYC", ("New York", "nyc"), 1),
        ("exact", "new  york", ("New York",), 0),
        ("exact", "", ("",), 1),
        ("contains", "york", ("New York City",), 1),
        ("contains", " ", ("New York",), 0),
        ("contains", "", ("New York",), 0),
        ("contains_or_empty", " ", ("New York",), 1),
        ("contains_or_empty", "york", ("New York City",), 1),
        ("contains_or_empty", "The Bahamas", ("Bahamas",), 0),
        ("contains", "New York City, NY", ("New York City",), 0),
        ("numeric", "so 3 + 4 = 7.0", ("#### 7",), 1),
        ("numeric", "1,234 apples", ("... #### 1234",), 1),
        ("numeric", "7 or 8", ("#### 7",), 0),
        ("numeric", "it is -5", ("5",), 0),
        ("numeric", "seven", ("7",), 0),
        ("numeric", "it is .5", ("#### 0.5",), 1),
        ("numeric", "it is .5", ("5",), 0),
        ("numeric", "-.5", ("-0.5",), 1),
        ("numeric", "10-12", ("12",), 1),
        ("numeric", "10-12", ("-12",), 0),
        ("numeric", "5%-10", ("10",), 1),
        ("numeric", "x=-3", ("-3",), 1),
        ("numeric", "It is so.5", ("5",), 1),
        ("numeric", "no number", ("nor here",), 0),
        ("rouge_l", "The cat sat", ("the cat sat!",), 1),
        ("rouge_l", "a b c d", ("a c d e",), 0.75),
        ("rouge_l", "", ("a",), 0),
        ("rouge_l", "", ("",), 0),
    ],
)
def test_rules(rule, prediction, golds, score):
    assert SCORERS[rule].score(prediction, golds) == score


RULES = {"exact": 1, "contains": 1, "contains_or_empty": 1, "numeric": 2, "rouge_l": 1}


def test_rules_say_which_they_are():
    assert {name: (rule.name, rule.version) for name, rule in SCORERS.items()} == {
        name: (name, version) for name, version in RULES.items()
    }
    assert SCORERS["numeric"].max_new_tokens == 512


letters = st.text(alphabet="aAbΣσςİıß \n\u00a01.,-", max_size=6)


@given(rule=st.sampled_from(["exact", "contains", "contains_or_empty"]), gold=letters, prefix=letters, rest=letters)
def test_what_may_not_match_scores_nothing_however_it_goes_on(rule, gold, prefix, rest):
    scorer = SCORERS[rule]
    if not scorer.may_match(prefix, (gold,)):
        assert scorer.score(prefix + rest, (gold,)) == 0


@given(rule=st.sampled_from(["exact", "contains", "contains_or_empty"]), gold=letters, cut=st.integers(0, 6))
def test_a_gold_may_match_at_every_point_on_its_way(rule, gold, cut):
    assert SCORERS[rule].may_match(gold[:cut], (gold,))


@pytest.mark.parametrize(("rule", "prefix"), [("exact", "Lo"), ("exact", "Paris x"), ("contains", "zzz")])
def test_hopeless_beginnings_are_seen(rule, prefix):
    assert not SCORERS[rule].may_match(prefix, ("Paris",))
