"""Laws of creation: of all who create a file exactly one does, and what it wrote stays as it is."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow.fs as pafs
import pytest
from botocore.exceptions import ConnectionClosedError
from gcsfs.core import GCSFileSystem

from raysweep.errors import BadInput, StoreError
from raysweep.store import exclusive
from raysweep.store.files import Files

ROUNDS, RACERS = 25, 8


@pytest.fixture(params=["disk", "memory", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "disk":
            return str(tmp_path / "tree")
        case "memory":
            return f"memory://{tmp_path.name}"
    return request.getfixturevalue("bucket")


def _race(url: str, racer: int) -> list[bool]:
    """What one of many processes wins, file by file."""
    files = Files(url)
    return [files.create(f"a/{number}", f"{racer}".encode() * 10_000) for number in range(ROUNDS)]


def _check(files: Files, won: list[list[bool]]) -> None:
    for number in range(ROUNDS):
        winners = [racer for racer, wins in enumerate(won) if wins[number]]
        assert len(winners) == 1
        assert files.read_bytes(f"a/{number}") == f"{winners[0]}".encode() * 10_000


def test_what_is_there_is_not_changed(place: str) -> None:
    files = Files(place)
    assert files.create("a/b/one", b"first")
    assert not files.create("a/b/one", b"second")
    assert files.read_bytes("a/b/one") == b"first"
    assert files.names("a/b") == ["one"]


def test_what_was_removed_can_be_created_again(place: str) -> None:
    files = Files(place)
    assert files.create("one", b"first")
    files.remove("one")
    assert files.create("one", b"second")
    assert files.read_bytes("one") == b"second"


def test_of_many_processes_on_one_disk_exactly_one_creates_each_file(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        won = list(pool.map(_race, [str(tmp_path)] * 4, range(4)))
    _check(Files(tmp_path), won)
    assert [path.name for path in tmp_path.rglob("*.aside")] == []


def test_of_many_processes_on_one_bucket_exactly_one_creates_each_object(bucket: str) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        won = list(pool.map(_race, [bucket] * 4, range(4)))
    _check(Files(bucket), won)


def test_of_many_threads_exactly_one_creates_each_file(place: str) -> None:
    with ThreadPoolExecutor(RACERS) as pool:
        won = list(pool.map(_race, [place] * RACERS, range(RACERS)))
    _check(Files(place), won)


def test_a_put_whose_answer_was_lost_is_the_callers_own(bucket: str) -> None:
    files = Files(bucket)
    client = exclusive.s3_client(files._fs, bucket, shown=files.name)
    lost: list[str] = []

    def lose(request: Any, **_: Any) -> None:
        """The first request arrives, and its answer does not."""
        if not lost:
            lost.append(request.url)
            assert files.create("mine", b"by me")
            raise ConnectionClosedError(endpoint_url=request.url)

    client.meta.events.register("before-send.s3.PutObject", lose)
    create = exclusive.on_s3(client)
    assert create(files._at("mine"), b"by me")
    assert lost
    assert not create(files._at("mine"), b"by another")


def test_a_link_whose_answer_was_lost_is_the_callers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def lose(source: str, target: str) -> None:
        link(source, target)
        raise FileExistsError(target)  # an NFS client asked twice

    monkeypatch.setattr(os, "link", lose)
    assert Files(tmp_path).create("one", b"mine")


def test_a_disk_without_links_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError, match="one: cannot be created: .*not permitted"):
        Files(tmp_path).create("one", b"mine")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_can_only_overwrite_is_bad_input() -> None:
    with pytest.raises(
        BadInput, match="store http://127.0.0.1:1/x: .* two runs could not share it; to run sweeps, give"
    ):
        Files("http://127.0.0.1:1/x").create("one", b"mine")


# ---- Google Cloud Storage: a fake transport, no real bucket


class _Google(BaseHTTPRequestHandler):
    """The two calls of Google's JSON API that creation needs; one answer gets lost where `server.loses` says so."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head, content = body.split(b"\n\n", 2)[1:]
        name = json.loads(head.partition(b"\n--")[0])["name"]
        content = content.rpartition(b"\n--==0==--")[0]
        query = parse_qs(urlsplit(self.path).query)
        with self.server.lock:
            refused = query.get("ifGenerationMatch") == ["0"] and name in self.server.objects
            if not refused:
                self.server.objects[name] = content
        self.server.asked.append(query)
        if self.server.loses:
            self.server.loses -= 1
            return self._answer(503, b"{}")
        self._answer(412 if refused else 200, json.dumps({"name": name, "size": len(content)}).encode())

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path.rpartition("/o/")[2])
        content = self.server.objects.get(name)
        self._answer(404 if content is None else 200, content or b"{}")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def google() -> Iterator[Any]:
    from threading import Lock

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Google)
    server.objects, server.asked, server.loses, server.lock = {}, [], 0, Lock()
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    GCSFileSystem.clear_instance_cache()


def _of_google(google: Any) -> Files:
    return Files(f"gs://anonymous@bucket/store?scheme=http&endpoint_override=127.0.0.1:{google.server_port}")


def test_google_is_asked_for_an_object_without_a_generation(google: Any) -> None:
    files = _of_google(google)
    assert files.create("one", b"first")
    assert not files.create("one", b"second")
    assert google.objects == {"store/one": b"first"}
    assert all(query["ifGenerationMatch"] == ["0"] for query in google.asked)


def test_an_object_of_google_whose_answer_was_lost_is_the_callers_own(google: Any) -> None:
    google.loses = 1
    assert _of_google(google).create("one", b"mine")
    assert len(google.asked) == 2


def test_places_that_fsspec_opens_are_asked_by_it() -> None:
    library = GCSFileSystem(token="anon")
    opened = pafs.PyFileSystem(pafs.FSSpecHandler(library))
    assert exclusive.creating(opened, "gcs://bucket", shown="gcs://bucket").__qualname__.startswith("by_fsspec")
