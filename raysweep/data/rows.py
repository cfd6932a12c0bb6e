"""Rows of a data file, whatever its format: JSON lines, a JSON array, tab- or comma-separated values, parquet.

A `Row` knows where it stands, so that whatever is wrong with it is said with file, row and reason (`BadData`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

from raysweep.errors import BadData

__all__ = ["Openable", "Row", "first_rows", "read_lines", "read_rows"]

CONTAINERS = ("Data", "data", "examples", "rows")  # keys under which upstream files keep their records
HEAD = 1 << 20  # bytes of a JSON array that are enough to see its first records
SEPARATORS = {".tsv": "\t", ".csv": ","}


@dataclass(frozen=True, slots=True)
class Row:
    """One record: its values by column, and where it stands (rows count from 1)."""

    values: Mapping[str, Any]
    file: str
    number: int

    def text(self, key: str) -> str:
        """The text under `key`; raises BadData where it is missing, no text, or blank."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.refuse(_not_a(key, value, "text"))
        if not str(value).strip():
            self.refuse(f"column {key!r} is empty")
        if not self.encodes(key):
            self.refuse(f"column {key!r} holds half a surrogate pair, which is no text")
        return str(value)

    def texts(self, key: str) -> list[str]:
        """The list of texts under `key`, blank ones left out; JSON text of a list counts as the list."""
        value = self.parsed(key) if isinstance(self.values.get(key), str) else self.values.get(key)
        if not isinstance(value, list | tuple):
            self.refuse(_not_a(key, value, "list"))
        if wrong := [item for item in value if not isinstance(item, str | int | float) or isinstance(item, bool)]:
            self.refuse(f"column {key!r} holds a {type(wrong[0]).__name__} among its texts")
        try:
            return [str(item) for item in value if str(item).strip() and str(item).encode()]
        except UnicodeEncodeError:
            self.refuse(f"column {key!r} holds half a surrogate pair, which is no text")

    def encodes(self, key: str) -> bool:
        """Whether the text under `key` is one that a file can hold; JSON can also spell halves of surrogate pairs."""
        try:
            str(self.values.get(key)).encode()
        except UnicodeEncodeError:
            return False
        return True

    def parsed(self, key: str) -> Any:
        """The value of the JSON text under `key`, as PopQA and APPS keep lists inside strings."""
        try:
            return json.loads(self.text(key), parse_int=_whole_number)
        except (ValueError, RecursionError) as error:
            self.refuse(f"column {key!r} is not the JSON text that it should be ({_why(error)})")

    def inner(self, key: str) -> Row:
        """The record under `key` as a row of its own, at the same place."""
        value = self.values.get(key)
        if not isinstance(value, Mapping):
            self.refuse(_not_a(key, value, "record"))
        return Row(value, self.file, self.number)

    def refuse(self, reason: str) -> NoReturn:
        """Raise BadData for this row."""
        raise BadData(f"{self.file}, row {self.number}: {reason}")


class Openable(Protocol):
    """What is read of a file: a `Path` is one, a file on the hub another."""

    @property
    def suffix(self) -> str: ...

    def open(self, mode: str) -> IO[bytes]: ...


def read_rows(path: Openable, *, shown: str | None = None) -> Iterator[Row]:
    """The records of a file, in its order; its ending says tables and parquet, its content which kind of JSON.

    `shown` is how errors call the file. Raises BadData for what is not text, not JSON, or not a record.
    """
    name = shown or str(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path, name)
    if path.suffix in SEPARATORS:
        return _separated_rows(path, name, SEPARATORS[path.suffix])
    return _json_rows(path, name)


def first_rows(path: Path, count: int, *, shown: str) -> list[Row]:
    """The first records of a file, without parsing the whole of a long JSON array. Raises BadData as `read_rows`."""
    if path.suffix == ".json" and path.stat().st_size > HEAD:
        with path.open("rb") as file:
            head = file.read(HEAD).decode("utf-8-sig", errors="ignore").lstrip()
        if rows := _first_of_array(head, count, shown):
            return rows
    return list(islice(read_rows(path, shown=shown), count))


def read_lines(path: Openable, name: str, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, numbered from 1, without the `blank` ones; raises BadData for another encoding."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise BadData(f"{name}, row {number}: not UTF-8 text ({error.reason} at byte {error.start})") from None
            if blank or text.strip():
                yield number, text


def _json_rows(path: Openable, name: str) -> Iterator[Row]:
    lines = read_lines(path, name)
    if (first := next(lines, None)) is None:
        raise BadData(f"{name}: empty file; fetch it again")
    number, text = first
    if text.lstrip().startswith("<"):
        raise BadData(f"{name}, row {number}: HTML or XML instead of JSON ({text.strip()[:40]!r}); fetch it again")
    if text.lstrip().startswith("{") and _is_json(text):
        return _line_rows(chain([first], lines), name)
    return _whole_rows("\n".join([text, *(line for _, line in lines)]), name)


def _line_rows(lines: Iterable[tuple[int, str]], name: str) -> Iterator[Row]:
    for number, text in lines:
        value = _load(text, f"{name}, row {number}")
        if isinstance(value, dict) and isinstance(value.get("Data"), list):  # a whole TriviaQA file on one line
            yield from _records(value, name)
        else:
            yield _row(value, name, number)


def _first_of_array(head: str, count: int, name: str) -> list[Row]:
    """The first records of an array of which `head` is the beginning; none where it cannot tell."""
    rows: list[Row] = []
    at = 1
    while head.startswith("[") and len(rows) < count:
        at += len(head[at:]) - len(head[at:].lstrip(" \t\r\n,"))
        try:
            value, at = json.JSONDecoder().raw_decode(head, at)
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, Mapping):
            return []
        rows.append(Row(value, name, len(rows) + 1))
    return rows


def _whole_rows(text: str, name: str) -> Iterator[Row]:
    yield from _records(_load(text, name), name)


def _records(value: Any, name: str) -> Iterator[Row]:
    if isinstance(value, Mapping):
        value = next((value[key] for key in CONTAINERS if isinstance(value.get(key), list)), [value])
    if not isinstance(value, list):
        raise BadData(f"{name}: a JSON {type(value).__name__}, not an array of records")
    for number, item in enumerate(value, start=1):
        yield _row(item, name, number)


def _row(value: Any, name: str, number: int) -> Row:
    if not isinstance(value, Mapping):
        raise BadData(f"{name}, row {number}: a JSON {type(value).__name__}, not a record with named columns")
    return Row(value, name, number)


def _separated_rows(path: Openable, name: str, separator: str) -> Iterator[Row]:
    text = "".join(f"{line}\n" for _, line in read_lines(path, name, blank=True))
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for number, values in enumerate(reader, start=1):
            if None in values or None in values.values():
                raise BadData(f"{name}, row {number}: {len(reader.fieldnames)} columns in its head, not as many here")
            yield Row(values, name, number)
    except csv.Error as error:
        raise BadData(f"{name}, line {reader.line_num}: {error}") from None


def _parquet_rows(path: Openable, name: str) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with path.open("rb") as opened, parquet.ParquetFile(opened) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, name, number)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadData(f"{name}, after row {number}: not parquet as it should be ({error}); fetch it again") from None


def _load(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{place}: not JSON ({_why(error)})") from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        return error.msg == "Extra data"
    return True


def _not_a(key: str, value: Any, kind: str) -> str:
    found = "missing" if value is None else f"a {type(value).__name__}, not a {kind}"
    return f"column {key!r} is {found}"


def _whole_number(digits: str) -> int:
    """APPS tests hold numbers of thousands of digits, which Python refuses to parse and nobody here needs."""
    return int(digits[:1000])


def _why(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
