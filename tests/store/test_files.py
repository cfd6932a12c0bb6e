"""Laws of files: a reader sees the old content or the new, never a part, and messages hold no secrets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from raysweep.cli import main
from raysweep.errors import BadInput, StoreError
from raysweep.store import files as files_module
from raysweep.store.files import Files


@pytest.fixture(params=["disk", "fsspec"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """A folder, and a place that only fsspec can open."""
    return Files(tmp_path / "tree") if request.param == "disk" else Files(f"memory://{tmp_path.name}")


def test_what_is_written_is_read(files: Files) -> None:
    files.write_json("a/b/record.json", {"x": 1})
    files.write_rows("a/rows.parquet", [{"n": 1}], pa.schema([("n", pa.int64())]))
    assert files.read_json("a/b/record.json") == {"x": 1}
    assert files.read_table("a/rows.parquet").to_pylist() == [{"n": 1}]
    assert files.names("a") == ["b", "rows.parquet"]
    assert files.among(["a/b/record.json", "a/b", "a/none"]) == ["a/b/record.json"]


def test_what_is_not_there_is_none(files: Files) -> None:
    assert files.read_bytes("none") is None
    assert files.read_json("none") is None
    assert files.read_table("none") is None
    assert files.names("none") == []
    files.remove("none")


def test_removing_takes_folders_and_files(files: Files) -> None:
    files.write_bytes("a/one", b"1")
    files.write_bytes("a/two", b"22")
    assert files.size("a") == 3
    files.remove("a/one")
    assert files.names("a") == ["two"]
    files.remove("a")
    assert not files.exists("a")


def test_a_folder_comes_back_as_a_whole(files: Files, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "one").write_bytes(b"1")
    (source / "last").write_bytes(b"2")
    files.place(source, "taken")
    files.bring("taken", tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "one").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".back")] == []


def test_a_record_that_is_none_says_what_to_do(files: Files) -> None:
    files.write_bytes("record.json", b"[1]")
    with pytest.raises(StoreError, match="remove the file and run again"):
        files.read_json("record.json")


def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        Files(tmp_path).write_bytes("file/below", b"")


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="this is a file"):
        Files(tmp_path / "file")


def test_an_unknown_kind_of_place_is_bad_input() -> None:
    with pytest.raises(BadInput, match="nowhere"):
        Files("nowhere://place")


def test_keys_in_a_url_are_not_shown() -> None:
    files = Files("s3://key:secret@bucket/store?region=us-east-1&scheme=http")
    assert files.name == "s3://bucket/store"


@pytest.mark.parametrize("url", ["s3://", "gs://", "s3:///", "file://", "://place", "s3://?region=us-east-1"])
def test_a_url_must_name_a_place(url: str) -> None:
    with pytest.raises(BadInput, match="names no place; give a folder"):
        Files(url)


def test_a_url_whose_library_is_not_there_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> None:
        raise OSError(f"Unable to load libjvm\nfor {url}")

    monkeypatch.setattr(files_module, "pafs", SimpleNamespace(FileSystem=SimpleNamespace(from_uri=refuse)))
    with pytest.raises(BadInput) as caught:
        Files("hdfs://user:secret@nope/x?key=hidden")
    said = str(caught.value)
    assert "store hdfs://nope/x: cannot be opened: Unable to load libjvm for hdfs://nope/x;" in said
    assert "secret" not in said and "hidden" not in said


@pytest.mark.parametrize("ask", [lambda files: files.names("a"), lambda files: files.exists("a"),
                                 lambda files: files.among(["a"]), lambda files: files.read_bytes("a")])  # fmt: skip
def test_a_place_that_does_not_answer_is_bad_input_at_first_and_itself_later(
    ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        def __getattr__(self, name: str) -> object:
            raise ConnectionError("no answer from far://user:secret@host/x?key=hidden")

    files = Files("memory://user:secret@host/x?key=hidden")
    there, files._fs = files._fs, Silent()
    with pytest.raises(BadInput, match="store memory://host/x: cannot be reached: no answer") as caught:
        ask(files)
    assert "secret" not in str(caught.value)
    files._fs = there
    ask(files)
    files._fs = Silent()
    with pytest.raises(ConnectionError):
        ask(files)


def test_a_server_that_is_not_there_is_bad_input_to_a_command(capsys: pytest.CaptureFixture) -> None:
    assert main(["list", "--store", "http://127.0.0.1:1/x"]) == 2
    assert "store http://127.0.0.1:1/x: cannot be reached" in capsys.readouterr().err
