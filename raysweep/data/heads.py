"""The first rows of files on the hub that are too large to download: streamed once, kept in the Hugging Face cache."""

from __future__ import annotations

import io
import json
import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

from raysweep.data.rows import read_rows

__all__ = ["cached_head", "head", "heads_of"]

BUFFER = 1 << 20
log = logging.getLogger(__name__)


def cached_head(cache: Path, id: str, revision: str, rows: int) -> tuple[str, ...]:
    """The files that a head in the cache was streamed from; empty where there is none."""
    path = _path(cache, id, revision, rows)
    return tuple(json.loads(_origin(path).read_text(encoding="utf-8"))) if path.is_file() else ()


def head(cache: Path, id: str, revision: str, paths: Sequence[str], rows: int, endpoint: str) -> Path:
    """The first `rows` rows as a file of JSON lines; whatever the network does to it is raised as it comes."""
    path = _path(cache, id, revision, rows)
    if not path.is_file():
        log.info("streaming the first %d rows of %s", rows, id)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
        with aside.open("w", encoding="utf-8") as out:
            for values in islice(_streamed(id, revision, paths, endpoint), rows):
                out.write(json.dumps(values, default=str) + "\n")
        _origin(path).write_text(json.dumps(list(paths)), encoding="utf-8")
        aside.replace(path)
    return path


@dataclass(frozen=True, slots=True)
class _Remote:
    """A file on the hub that is read as far as it is wanted."""

    address: str
    endpoint: str

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.address).suffix

    def open(self, mode: str) -> IO[bytes]:
        from huggingface_hub import HfFileSystem

        file = HfFileSystem(endpoint=self.endpoint, skip_instance_cache=True).open(self.address, mode)
        # Parquet is read where its footer points; lines in their order, and without a buffer many bytes twice.
        return file if self.suffix == ".parquet" else io.BufferedReader(file, BUFFER)


def heads_of(cache: Path, id: str) -> Path:
    """The folder of a repository's heads, one folder a commit."""
    return cache.parent / "assets" / "raysweep" / id.replace("/", "--")


def _path(cache: Path, id: str, revision: str, rows: int) -> Path:
    return heads_of(cache, id) / revision / f"first-{rows}.jsonl"


def _origin(path: Path) -> Path:
    return path.with_suffix(".origin.json")


def _streamed(id: str, revision: str, paths: Sequence[str], endpoint: str) -> Iterator[dict[str, Any]]:
    for path in paths:
        remote = _Remote(f"datasets/{id}@{revision}/{path}", endpoint)
        for row in read_rows(remote, shown=f"{id}/{path}"):
            yield dict(row.values)
