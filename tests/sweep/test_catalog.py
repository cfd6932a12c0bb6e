"""The catalog says what the paper uses, and says it in one place."""

from __future__ import annotations

import string
import subprocess
import sys

import pytest

from raysweep.sweep.catalog import DATASETS, ID, MIXERS, NONE

PAPER_SETS = {
    "kvr",
    "popqa",
    "triviaqa",
    "lama",
    "entityqa",
    "webqa",
    "gsm8k",
    "math",
    "evolcode",
    "apps",
    "ultrachat",
}


def test_every_set_of_the_paper_is_declared():
    assert not PAPER_SETS - set(DATASETS)
    assert set(DATASETS) - PAPER_SETS == {"mquake"}


def test_words_of_the_grid_are_not_sets():
    assert not {ID, NONE} & set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_every_set_can_be_had(name):
    dataset = DATASETS[name]
    assert dataset.generated or dataset.hub or dataset.archive
    assert dataset.licence


@pytest.mark.parametrize("name", DATASETS)
def test_every_factoid_set_has_a_scorer(name):
    assert DATASETS[name].scorer or not DATASETS[name].factoid


@pytest.mark.parametrize("name", DATASETS)
def test_templates_name_a_field(name):
    for template in (DATASETS[name].prompt, DATASETS[name].target):
        assert [field for _, field, _, _ in string.Formatter().parse(template) if field]


def test_only_random_pairs_are_never_filtered():
    assert {name for name, d in DATASETS.items() if d.factoid and not d.familiarity} == {"kvr"}


def test_text_mixers_name_their_field():
    assert {m.name: m.field for m in MIXERS.values() if m.hub} == {
        "knowledge_pile": "content",
        "arxiv_pile": "text",
        "fineweb": "text",
    }


def test_catalog_imports_nothing_heavy():
    code = (
        "import sys, raysweep.sweep.catalog;"
        "print([m for m in ('torch','ray','datasets','pandas','nltk','transformers') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
