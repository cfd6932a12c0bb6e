"""One real Ray for the tests that run sweeps, and a head of its own (ports, folder, token) for the job service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from heads import Head, started


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray of this machine's CPUs, started here and ended with the tests."""
    from raysweep.cluster.local import connected

    with connected(None):
        yield


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """A head of the tests' own, with two CPUs."""
    with started() as running:
        yield running
