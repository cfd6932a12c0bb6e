"""What all tests share: real data where there is some, and a quiet, offline hub."""

from __future__ import annotations

import gc
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side
os.environ.pop("RAY_ADDRESS", None)  # and on nobody else's cluster
settings.register_profile("raysweep", deadline=None)
settings.load_profile("raysweep")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _collected_modules() -> None:
    """Let the garbage collector pass over what the tests import, as a worker does after its first trial.

    An engine is only freed by whole collections; over a million objects of torch's and DeepSpeed's modules, they took a
    third of the time of the tests that train.
    """
    _freeze()


@pytest.fixture(autouse=True)
def _imported_modules() -> Iterator[None]:
    """The same for what a test imports first."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 100:
        _freeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """A folder with real data in upstream formats: RAYSWEEP_TEST_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("RAYSWEEP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data here; name a folder in RAYSWEEP_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3-compatible server of the tests' own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host.replace('0.0.0.0', '127.0.0.1')}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str) -> str:
    """The URL of a store in a new bucket."""
    import pyarrow.fs as pafs

    name = f"sweeps-{uuid.uuid4().hex[:8]}"
    query = f"scheme=http&endpoint_override={s3_endpoint}&region=us-east-1"
    creating, path = pafs.FileSystem.from_uri(f"s3://key:secret@{name}?{query}&allow_bucket_creation=true")
    creating.create_dir(path)
    return f"s3://key:secret@{name}/store?{query}"


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks when its turn comes
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a Ray go one after the other, in one process, but for those that are alone in a group: the longest."""
    for item in items:
        if item.get_closest_marker("ray") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("ray"))
