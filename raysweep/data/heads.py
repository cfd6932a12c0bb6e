"""The first rows of files on the hub that are too large to download: streamed once, kept in the Hugging Face cache."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["cached_head", "head", "heads_of"]

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".txt": "text"}
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


def heads_of(cache: Path, id: str) -> Path:
    """The folder of a repository's heads, one folder a commit."""
    return cache.parent / "assets" / "raysweep" / id.replace("/", "--")


def _path(cache: Path, id: str, revision: str, rows: int) -> Path:
    return heads_of(cache, id) / revision / f"first-{rows}.jsonl"


def _origin(path: Path) -> Path:
    return path.with_suffix(".origin.json")


def _streamed(id: str, revision: str, paths: Sequence[str], endpoint: str) -> Iterator[dict[str, Any]]:
    """Row by row, as far as they are wanted: `datasets` fetches no more of a file than it must."""
    from datasets import DownloadConfig, load_dataset

    access = DownloadConfig(storage_options={"hf": {"endpoint": endpoint, "skip_instance_cache": True}})
    for path in paths:
        builder = _BUILDERS[PurePosixPath(path).suffix]
        address = f"hf://datasets/{id}@{revision}/{path}"
        yield from load_dataset(builder, data_files=address, split="train", streaming=True, download_config=access)
