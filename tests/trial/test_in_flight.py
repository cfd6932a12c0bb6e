"""Laws of the mirror: what one machine kept, another goes on from; never from a part of it, and nothing stays behind."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from storing import node

from raysweep.learn.ranks import Ranks
from raysweep.store.files import Files
from raysweep.store.store import Store
from raysweep.trial.in_flight import Mirror, in_flight

ALONE = Ranks(0, 1, 0)
RECORD = "progress.json"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("raysweep.trial.in_flight.LOOK", 0.02)


@pytest.fixture
def store(bucket) -> Store:
    return Store(bucket)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Be on another machine: one with an empty disk."""

    def move(name: str) -> None:
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / name))

    return move


def keep(folder: Path, step: int, content: bytes = b"shard") -> None:
    """A whole checkpoint, as training leaves one."""
    aside = folder / f".step-{step}"
    (aside / "deep").mkdir(parents=True)
    (aside / "deep" / "shard.pt").write_bytes(content)
    files = {"deep/shard.pt": sha256(content).hexdigest()}
    (aside / "files-0.json").write_text(json.dumps({"files": files, "digest": digest_of(files)}))
    record = {"step": step, "world_size": 1, "zero": 3}
    (aside / RECORD).write_text(json.dumps(record | {"digest": digest_of(record)}))
    aside.rename(folder / f"step-{step}")


def digest_of(value: dict) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def until(happens) -> None:
    end = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


def there(store: Store, token: int = 1) -> set[str]:
    """The names of the parts that are in the store."""
    return {name.split(".")[0] for name in store.files.names(f".in-flight/{node().id}/{token}/parts")}


def test_another_machine_goes_on_from_the_newest_checkpoint_and_nothing_is_left_at_the_end(store, machine):
    machine("one")
    with pytest.raises(ConnectionError), in_flight(store, node(), ALONE, token=1) as folder:
        for step in (3, 8):
            keep(folder, step, b"%d" % step)
            until(lambda step=step: str(step) in there(store))
        raise ConnectionError("the node is gone")
    machine("two")
    with in_flight(store, node(), ALONE, token=2) as folder:
        assert [path.name for path in folder.glob("step-*")] == ["step-8"]
        assert (folder / "step-8" / "deep" / "shard.pt").read_bytes() == b"8"
    assert not store.files.names(".in-flight") and not folder.exists()


def test_a_checkpoint_that_only_some_machines_have_put_is_none(store, tmp_path):
    def on(name: str, attempt: str, machines: int = 2) -> tuple[Mirror, Path]:
        folder = tmp_path / name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        path = f".in-flight/{node().id}"
        return Mirror(store.files, path, folder, last=RECORD, attempt=attempt, machine=name, machines=machines), folder

    (first, a), (second, b) = on("a", "1"), on("b", "1")
    keep(a, 2), keep(b, 2)
    first._put(2), second._put(2)
    keep(a, 4)
    first._put(4)
    again, c = on("c", "2", machines=1)
    again.bring()
    assert [path.name for path in c.glob("*")] == ["step-2"], "of step 4 the half is missing"
    keep(b, 4)
    second._put(4)
    assert there(store) == {"2", "4"}, "the newest one and the one before"
    keep(a, 6), keep(b, 6)
    first._put(6), second._put(6)
    assert there(store) == {"4", "6"}, "what is older is of no use"


@pytest.mark.parametrize("file", [RECORD, "files-0.json", "deep/shard.pt"])
def test_of_a_damaged_checkpoint_in_a_bucket_the_one_before_is_brought(store, machine, caplog, file):
    machine("one")
    with pytest.raises(ConnectionError), in_flight(store, node(), ALONE, token=1) as folder:
        for step in (3, 8):
            keep(folder, step, b"%d" % step)
            until(lambda step=step: str(step) in there(store))
        raise ConnectionError("the node is gone")
    store.files.write_bytes(f".in-flight/{node().id}/1/step-8/{file}", b"{}")
    machine("two")
    with in_flight(store, node(), ALONE, token=2) as folder:
        assert [path.name for path in folder.glob("step-*")] == ["step-3"]
        assert "step-8 is not used" in caplog.text


def test_a_checkpoint_that_is_removed_while_it_is_put_is_put_whole(store, machine, monkeypatch):
    machine("one")
    putting, go_on = threading.Event(), threading.Event()
    real = Files.put_file

    def slow(self, source, path):
        putting.set()
        assert go_on.wait(20)
        real(self, source, path)

    monkeypatch.setattr(Files, "put_file", slow)
    with pytest.raises(ConnectionError), in_flight(store, node(), ALONE, token=1) as folder:
        keep(folder, 3)
        assert putting.wait(20)
        (folder / "step-3" / "deep" / "shard.pt").unlink()  # training has moved on
        go_on.set()
        until(lambda: there(store) == {"3"})
        raise ConnectionError
    machine("two")
    with in_flight(store, node(), ALONE, token=2) as folder:
        assert (folder / "step-3" / "deep" / "shard.pt").read_bytes() == b"shard"


def test_a_place_that_cannot_be_written_stops_no_training(store, machine, monkeypatch, caplog):
    machine("one")
    monkeypatch.setattr(Files, "put_file", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with in_flight(store, node(), ALONE, token=1) as folder:
        keep(folder, 3)
        until(lambda: "no room" in caplog.text)


def test_a_folder_that_all_nodes_see_needs_no_copy(tmp_path):
    store = Store(tmp_path)
    with in_flight(store, node(), ALONE, token=1) as folder:
        assert folder == tmp_path / ".in-flight" / node().id / "1"
        assert "raysweep-mirror" not in {thread.name for thread in threading.enumerate()}


def test_a_higher_token_goes_on_from_what_lower_ones_left_and_a_sleeper_cannot_harm_it(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ConnectionError), in_flight(store, node(), ALONE, token=1) as first:
        keep(first, 5, b"5")
        raise ConnectionError("its process sleeps")
    with in_flight(store, node(), ALONE, token=3) as third:
        assert (third / "step-5" / "deep" / "shard.pt").read_bytes() == b"5"
        keep(third, 9, b"9")
        keep(first, 7, b"7")  # it wakes up, and knows no better
        with pytest.raises(ConnectionError), in_flight(store, node(), ALONE, token=1):
            raise ConnectionError
        with in_flight(store, node(), ALONE, token=1):
            pass  # it even comes to its end
        assert {path.name for path in third.glob("step-*")} == {"step-5", "step-9"}
        assert (third / "step-9" / "deep" / "shard.pt").read_bytes() == b"9"
    assert store.files.names(".in-flight") == []


def test_ranks_of_one_disk_leave_at_the_same_time(tmp_path):
    """Each removes what is left; whoever comes second finds it gone."""
    store, ranks = Store(tmp_path), 8
    for _ in range(20):
        together = threading.Barrier(ranks)

        def leave(rank, together=together):
            with store.in_flight(node(), 1) as folder:
                (folder / f"rank-{rank}").touch()
                together.wait()

        with ThreadPoolExecutor(ranks) as pool:
            for left in [pool.submit(leave, rank) for rank in range(ranks)]:
                left.result()
        assert store.files.names(".in-flight") == []


def test_a_checkpoint_of_earlier_code_is_gone_on_from(tmp_path):
    store = Store(tmp_path)
    keep(tmp_path / ".in-flight" / node().id, 5, b"5")
    with in_flight(store, node(), ALONE, token=1) as folder:
        assert (folder / "step-5" / "deep" / "shard.pt").read_bytes() == b"5"
    assert store.files.names(".in-flight") == []


def test_what_lower_tokens_left_in_a_bucket_goes_once_there_is_a_newer_one(store, machine):
    machine("one")
    with pytest.raises(ConnectionError), in_flight(store, node(), ALONE, token=1) as folder:
        keep(folder, 3)
        until(lambda: there(store) == {"3"})
        raise ConnectionError
    machine("two")
    with in_flight(store, node(), ALONE, token=2) as folder:
        assert there(store) == {"3"}
        keep(folder, 6)
        until(lambda: "6" in there(store, 2) and not there(store))
        store.files.write_bytes(f".in-flight/{node().id}/3/parts/9.1.x.y", b"")  # somebody took over
    assert there(store, 3) == {"9"}, "nobody removes what a higher token has"
