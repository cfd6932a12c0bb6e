"""Whether files are still what was committed: digests are taken once and compared before every use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

__all__ = ["altered", "digests", "sync", "synced"]


def digests(folder: Path, below: str = "") -> dict[str, str]:
    """SHA-256 of every file under `folder/below`, by its name relative to `folder`."""
    files = sorted(path for path in (folder / below).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def altered(folder: Path, files: Mapping[str, str]) -> str | None:
    """What is wrong with files below a folder, compared with their digests; None where nothing is."""
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != digest:
            return f"{name} is not what was committed"
    return None


def sync(folder: Path) -> None:
    """Bring a local folder with all that is in it onto the disk, so that a record that names it outlives a power cut."""
    for path in [*folder.rglob("*"), folder]:
        synced(path)


def synced(path: Path) -> None:
    """Bring one file's content, or one folder's list of names, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    found = path.stat()
    return _digest_of(str(path), found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=4096)
def _digest_of(path: str, size: int, modified: int, inode: int) -> str:
    """A process that does many trials reads the weights that they share once, as long as nobody touches the file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
