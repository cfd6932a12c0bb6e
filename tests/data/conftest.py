"""The folder of real data, beside the checkout or named by RAYSWEEP_TEST_DATA; tests that need it skip without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = Path(os.environ.get("RAYSWEEP_TEST_DATA", BESIDE))
    if not folder.is_dir():
        pytest.skip("no folder of real data (RAYSWEEP_TEST_DATA)")
    return folder
