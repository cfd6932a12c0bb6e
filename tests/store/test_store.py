"""Laws of the store: a stage is there whole or not at all, wherever the store is and whoever writes at once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from storing import commit, node

from raysweep.errors import BadInput, StoreError
from raysweep.store.store import Store

SPAWN = multiprocessing.get_context("spawn")
MEGABYTES = 4


@pytest.fixture(params=["disk", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty store: a folder, and a bucket of an S3-compatible server."""
    if request.param == "disk":
        return str(tmp_path / "store")
    return request.getfixturevalue("bucket")


def read(store: Store, stage, into: Path) -> bytes:
    return (store.weights(stage, into) / "model.safetensors").read_bytes()


def test_what_is_committed_is_found_with_its_bytes(url: str, tmp_path: Path) -> None:
    store = Store(url)
    assert store.stage(node()) is None
    commit(store, node(), b"bytes")
    found = Store(url).stage(node())
    assert read(store, found, tmp_path / "into") == b"bytes"
    assert store.stage_ids() == {node().id}
    assert store.stage_table(store.stage_folders()[node().id], "curve").to_pylist() == [{"step": 1, "loss": 0.5}]


def test_the_first_commit_stays_and_the_second_is_told_so(url: str, tmp_path: Path) -> None:
    store = Store(url)
    commit(store, node(), b"first")
    second = commit(store, node(), b"second")
    assert read(store, second, tmp_path / "into") == b"first"


def test_weights_that_were_dropped_come_back_beside_the_record(url: str, tmp_path: Path) -> None:
    store = Store(url)
    commit(store, node(), b"first", record={"attempt": 1})
    store.drop_weights(store.stage_folders()[node().id])
    dropped = store.stage(node())
    assert (dropped.has_weights, dropped.record["attempt"]) == (False, 1)
    assert commit(store, node(), None).record["attempt"] == 1, "a commit that adds nothing changes nothing"
    again = commit(store, node(), b"again", record={"attempt": 2})
    assert read(store, again, tmp_path / "into") == b"again"
    assert Store(url).stage(node()).record["attempt"] == 2


def test_a_commit_with_more_answers_replaces_the_first(url: str) -> None:
    store = Store(url)
    commit(store, node(), None, asked={"kvr": 100.0})
    commit(store, node(), None, asked={"kvr": 100.0, "popqa": 3.0})
    assert store.stage(node()).evaluated == {"popqa"}, "kvr is the chain's own"


@pytest.mark.parametrize("harm", ["altered", "missing"])
def test_harmed_weights_are_set_aside_and_said(
    url: str, harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(url)
    stage = commit(store, node(), b"bytes")
    path = f"{store.stage_folders() and 'stages/' + store.stage_folders()[node().id]}/{stage.weights}/model.safetensors"
    store.files.remove(path) if harm == "missing" else store.files.write_bytes(path, b"bytez")
    with caplog.at_level(logging.WARNING):
        assert Store(url).weights(stage, tmp_path / "into") is None
    assert "will be trained again" in caplog.text and "model.safetensors" in caplog.text
    assert store.stage(node()) is None and store.stage_ids() == set()
    assert read(store, commit(store, node(), b"new"), tmp_path / "into") == b"new"


def test_an_old_copy_of_a_bucket_s_weights_is_fetched_again(bucket: str, tmp_path: Path) -> None:
    store = Store(bucket)
    stage = commit(store, node(), b"bytes")
    (store.weights(stage, tmp_path) / "model.safetensors").write_bytes(b"torn")
    assert read(store, stage, tmp_path) == b"bytes"
    assert store.stage(node()) is not None


def test_weights_that_are_dropped_while_they_are_wanted_leave_the_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage = commit(store, node())
    store.drop_weights(store.stage_folders()[node().id])
    assert store.weights(stage, tmp_path / "into") is None
    assert store.stage(node()) is not None


def test_a_torn_record_is_no_stage_and_is_replaced(url: str, tmp_path: Path) -> None:
    store = Store(url)
    commit(store, node(), b"old")
    store.files.write_bytes(f"stages/{store.stage_folders()[node().id]}/record.json", b'{"id": ')
    assert store.stage(node()) is None
    assert read(store, commit(store, node(), b"new"), tmp_path / "into") == b"new"


def test_two_processes_that_commit_one_stage_leave_one_whole_stage(url: str, tmp_path: Path) -> None:
    for round in range(3):
        name = f"{round:016d}"
        barrier = SPAWN.Barrier(2)
        workers = [SPAWN.Process(target=_commit_once, args=(url, name, byte, barrier)) for byte in (1, 2)]
        [worker.start() for worker in workers]
        [worker.join(60) for worker in workers]
        assert [worker.exitcode for worker in workers] == [0, 0]
        store = Store(url)
        weights = store.weights(store.stage(node(name)), tmp_path / "into")
        contents = {path.read_bytes()[:1] for path in weights.iterdir()}
        assert len(contents) == 1


def test_a_killed_commit_leaves_nothing_that_counts(url: str, tmp_path: Path) -> None:
    store = Store(url)
    for round in range(4):
        name = f"{round:016d}"
        began = SPAWN.Event()
        worker = SPAWN.Process(target=_commit_for_ever, args=(url, name, began))
        worker.start()
        began.wait(60)
        time.sleep(0.01 + 0.02 * round)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(60)
        found = store.stage(node(name))
        assert found is None or store.weights(found, tmp_path / "into") is not None
        commit(store, node(name), b"after")
        assert store.weights(store.stage(node(name)), tmp_path / "into") is not None


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x\n", "a\0b"])
def test_no_name_leaves_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="no sweep"):
        Store(tmp_path / "store").sweep(name)


def test_no_path_leaves_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for path in ("../record.json", "/etc/passwd", "trials/../../record.json"):
        with pytest.raises(StoreError, match="would leave the store"):
            store.files.write_bytes(path, b"")


def test_checkpoints_stay_when_training_breaks_off_and_go_when_it_ends(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.in_flight(node()) as folder:
        (folder / "step-1").touch()
        raise RuntimeError
    assert (folder / "step-1").exists()
    with store.in_flight(node()) as folder:
        assert (folder / "step-1").exists()
    assert not folder.exists()


def test_done_are_those_whose_record_says_so(url: str) -> None:
    store = Store(url)
    store.write_trial("a", {"status": "done"})
    store.write_trial("b", {"status": "failed"})
    assert store.done(["a", "b", "c"]) == {"a"}


def _commit_once(url: str, name: str, byte: int, barrier) -> None:
    store = Store(url)
    barrier.wait(60)
    commit(store, node(name), bytes([byte]) * MEGABYTES * 1_000_000)


def _commit_for_ever(url: str, name: str, began) -> None:
    store = Store(url)
    began.set()
    while True:
        commit(store, node(name), os.urandom(MEGABYTES * 1_000_000))
        store.set_aside(store.stage(node(name)).folder, "the test wants it again")
