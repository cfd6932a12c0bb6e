"""Laws of files: a reader sees the old content or the new, never a part, and messages hold no secrets."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from raysweep.errors import BadInput, StoreError
from raysweep.files import Files


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
    assert files.take_in(source, "taken", last="last")
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
