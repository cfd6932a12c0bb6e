"""The oracle can fail: each of the changes in `oracle_mutants` is seen."""

from __future__ import annotations

import pytest
from oracle_mutants import MUTANTS, dies


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_dies(mutant):
    assert dies(mutant)
