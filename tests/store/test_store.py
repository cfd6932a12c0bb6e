"""Laws of the store: a stage is there whole or not at all, wherever the store is and whoever writes at once."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from storing import commit, node

from raysweep.errors import BadInput, NewerSchema, StoreError
from raysweep.store.evaluations import Evaluated
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
    assert Store(url).stage(node()).record["attempt"] == 1, "a record is created once, and never written again"
    assert read(store, Store(url).stage(node()), tmp_path / "new") == b"again"
    store.drop_weights(store.stage_folders()[node().id])
    assert not Store(url).stage(node()).has_weights and store.weights(again, tmp_path / "gone") is None
    assert read(store, commit(store, node(), b"third", token=7), tmp_path / "into") == b"third"


def test_a_commit_adds_the_evaluations_that_the_first_lacks(url: str) -> None:
    store = Store(url)
    one, two = (Evaluated(letter * 16, {"accuracy": 1.0}, [{"example": "1", "score": 1.0}]) for letter in "ab")
    commit(store, node(), None, evaluations=[one])
    commit(store, node(), None, evaluations=[replace(one, row={"accuracy": 0.0}), two])
    made = Store(url).evaluations.made(f"stages/{store.stage_folders()[node().id]}", [one.id, two.id])
    assert {name: each.row["accuracy"] for name, each in made.items()} == {one.id: 1.0, two.id: 1.0}
    assert made[two.id].predictions[0]["score"] == 1.0


def test_no_two_commits_share_a_file(url: str) -> None:
    """Whoever loses takes away what it made, and nothing of another's; a commit is below the number of its lease."""
    store = Store(url)
    commit(store, node(), b"first", token=3)
    path = f"stages/{store.stage_folders()[node().id]}"
    before = store.files.below(path)
    commit(store, node(), b"second", token=4)
    assert store.files.below(path) == before
    (folder,) = {name.split("/")[2] for name in before} - {"record.json"}
    assert folder.startswith("3-") and store.stage(node()).record["commit"] == folder


def test_a_record_lists_the_digest_of_every_file_that_it_stands_for(url: str) -> None:
    store = Store(url)
    commit(store, node(), evaluations=[Evaluated("e" * 16, {"accuracy": 1.0}, [{"example": "1"}])])
    record = store.stage(node()).record
    path = f"stages/{store.stage_folders()[node().id]}/{record['commit']}"
    there = {name.removeprefix(f"{path}/") for name in store.files.below(path)}
    assert there == {*record["files"], *record["digests"]} and {"curve.parquet", "evals/predictions.parquet"} < there


def test_a_curve_that_was_altered_is_not_shown(url: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(url)
    commit(store, node())
    folder = store.stage_folders()[node().id]
    store.files.write_bytes(f"stages/{folder}/{store.stage(node()).record['commit']}/curve.parquet", b"torn")
    assert Store(url).stage_table(folder, "curve") is None
    assert "curve.parquet is missing or not what was committed" in caplog.text


def test_a_stage_of_a_later_raysweep_is_refused_and_left_alone(url: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(url)
    commit(store, node())
    path = f"stages/{store.stage_folders()[node().id]}/record.json"
    newer = json.dumps({**store.files.read_json(path), "schema": 9}).encode()
    store.files.write_bytes(path, newer)
    for refused in (store.stage, lambda of: commit(store, of)):
        with pytest.raises(NewerSchema, match="it has schema 9, this raysweep reads 1 and 2: use the raysweep that"):
            refused(node())
    assert store.stage_records() == {} and store.with_weights([node().id]) == set()
    assert "schema 9" in caplog.text and store.files.read_bytes(path) == newer


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
    assert not store.stage(node()).has_weights, "its record, its curve and its answers stay"
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
    store.commit_trial("a", {"status": "done"}, evals=[], predictions=[])
    store.write_trial("b", {"status": "failed"})
    assert store.done(["a", "b", "c"]) == {"a"}


@pytest.mark.parametrize("harm", ["missing", "torn", "altered"])
@pytest.mark.parametrize("name", ["evals", "predictions"])
def test_done_never_hides_a_table_that_is_lost(
    url: str, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(url)
    store.commit_trial("a", {"status": "done"}, evals=[{"stage": 1}], predictions=[{"stage": 1}])
    path = f"trials/a/{store.trial('a')['tables']['folder']}/{name}.parquet"
    content = store.files.read_bytes(path)
    time.sleep(1.1 if store.files.local is None else 0.01)  # moto's times are whole seconds
    match harm:
        case "missing":
            store.files.remove(path)
        case "torn":
            store.files.write_bytes(path, content[:-9])
        case "altered":
            store.files.write_bytes(path, content[:-20] + b"?" + content[-19:])
    assert store.done(["a"]) == set() and store.trial_table("a", name) is None
    assert caplog.text.count("trial a is not done") == 1


def test_a_trial_of_a_later_raysweep_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.files.write_json("trials/a/record.json", {"id": "a", "schema": 2, "status": "failed"})
    assert store.finished(["a"]) == {} and store.trial_table("a", "evals") is None
    with pytest.raises(NewerSchema, match="it has schema 2, this raysweep reads 1"):
        store.refuse_newer(["a", "b"])


def test_two_writers_of_a_trial_never_mix_their_tables(url: str) -> None:
    """The record that was written last stands, with the tables of its own commit; a slow reader finds the first ones too."""
    store = Store(url)
    store.commit_trial("a", {"status": "done", "by": 1}, evals=[{"stage": 1}], predictions=[{"stage": 1}])
    first = store.trial("a")
    store.commit_trial("a", {"status": "done", "by": 2}, evals=[{"stage": 2}], predictions=[{"stage": 2}])
    store.write_trial("a", {**first, "by": 3})
    for name in ("evals", "predictions"):
        assert store.trial_table("a", name).to_pylist()[0]["stage"] == 1


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
