"""The oracle can fail: each of the changes in `oracle_mutants` is seen."""

from __future__ import annotations

import pytest
from oracle_mutants import KEYS, MUTANTS, Mutant, dies


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_dies(mutant):
    assert dies(mutant)


@pytest.mark.slow
def test_code_without_a_change_lives():
    assert not dies(Mutant("none", "raysweep/plan/plan.py", "def familiarity_id(", "def familiarity_id(", KEYS))
