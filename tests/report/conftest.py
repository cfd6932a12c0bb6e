"""Tests of results run offline: nothing here may ask a hub."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RAYSWEEP_DATA", raising=False)
    monkeypatch.delenv("RAYSWEEP_STORE", raising=False)
