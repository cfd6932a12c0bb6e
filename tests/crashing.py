"""A layer under `Files` that counts what changes a store, and kills the process or lets one operation fail at the k-th.

On a disk every operation of the system below the store's folder counts: a file opened to be written, a rename, a link, a
folder made, a file removed, a file or a folder brought down to the disk (who is killed there leaves half of the file). In a
bucket every request that changes an object does.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from raysweep.store.files import Files
from raysweep.store.store import Store

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename": 2, "os.link": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1}
BELOW_A_HANDLE = ("os.remove", "os.rmdir")  # as `rmtree` removes: a name, and the handle of the folder that it is in


class Killed(BaseException):
    """The process is gone: nothing that it would do afterwards happens."""


class Counter:
    """Operations so far; at the `k`-th one (None: never) something happens: `how` is kill, fail, or late (done, then failed)."""

    def __init__(self, how: str, k: int | None) -> None:
        self.how, self.k, self.count, self.dead = how, k, 0, False

    def step(self, act: Callable[[], Any] = lambda: None) -> Any:
        """Do an operation, unless its turn has come."""
        if self.dead:
            raise Killed
        self.count += 1
        if self.count != self.k:
            return act()
        if self.how == "kill":
            self.dead = True
            raise Killed
        if self.how == "late":
            act()
        raise OSError(5, "an operation was made to fail")


_watched: list[tuple[str, Counter]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    root, counter = _watched[-1]
    if event == "open":
        path, _, flags = arguments
        changes = isinstance(flags, int) and bool(flags & WRITING)
        paths = (path,)
    else:
        changes, paths = event in CHANGES, arguments[: CHANGES.get(event, 0)]
        if event in BELOW_A_HANDLE and arguments[1] >= 0:
            paths = (f"{_named(arguments[1])}/{os.fspath(paths[0])}",)
    if changes and any(isinstance(one, str | os.PathLike) and os.fspath(one).startswith(root) for one in paths):
        counter.step()


sys.addaudithook(_hear)
_fsync = os.fsync


def _named(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")


def _sync(handle: int) -> None:
    if not _watched or not _named(handle).startswith(_watched[-1][0]):
        return
    counter, was_alive = _watched[-1][1], not _watched[-1][1].dead
    try:
        counter.step()
    except Killed:
        found = os.fstat(handle)
        if was_alive and stat.S_ISREG(found.st_mode):
            watch = _watched.pop()
            os.truncate(_named(handle), found.st_size // 2)
            _watched.append(watch)
        raise


@contextmanager
def watching(folder: Path, counter: Counter) -> Iterator[None]:
    """Operations of the system below a folder count."""
    os.fsync = _sync
    _watched.append((str(folder), counter))
    try:
        yield
    finally:
        _watched.pop()
        os.fsync = _fsync


class Counted:
    """A filesystem whose changes are counted; what it only tells is not."""

    _CHANGES = frozenset(("open_output_stream", "delete_file", "create_dir", "delete_dir"))

    def __init__(self, fs: pafs.FileSystem, counter: Counter) -> None:
        self._fs, self._counter = fs, counter

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)
        if name not in self._CHANGES:
            return found
        return lambda *given, **named: self._counter.step(lambda: found(*given, **named))

    def delete_dir(self, path: str) -> None:
        """One object after the other, as it is in a bucket, and as it may be seen on a disk."""
        inside = self._fs.get_file_info(pafs.FileSelector(path, recursive=True))
        for info in sorted(inside, key=lambda info: info.path, reverse=True):
            if info.is_file:
                self._counter.step(lambda info=info: self._fs.delete_file(info.path))
        self._counter.step(lambda: self._fs.delete_dir(path))


@contextmanager
def crashing(url: str, how: str, k: int | None) -> Iterator[tuple[Store, Counter]]:
    """A store in which something happens at the k-th operation."""
    store, counter = Store(url), Counter(how, k)
    files = store.files
    if files.local is not None:
        files._create  # noqa: B018 — it is chosen by the kind of place, before that is wrapped
        files._fs = Counted(files._fs, counter)
        with watching(files.local, counter):
            yield store, counter
        return
    _count_requests(files, counter)
    yield store, counter


def _count_requests(files: Files, counter: Counter) -> None:
    plain = Files(files.url)
    files.create = lambda path, content: counter.step(lambda: plain.create(path, content))
    files.put_file = lambda source, path: counter.step(lambda: plain.put_file(source, path))
    files.bring = plain.bring
    files._fs = Counted(files._fs, counter)


@dataclass
class Place:
    """Where stores are made: each a copy of one that was begun."""

    root: str
    base: Path | None

    def begun(self, begin: Callable[[Store], None]) -> str:
        """The URL of a store in which `begin` was done."""
        url = self.root.replace("/store?", f"/{uuid.uuid4().hex[:8]}?")
        if self.base is None:
            begin(Store(url))
            return url
        first, copy = self.base / begin.__name__, self.base / "copy"
        if not first.exists():
            begin(Store(first))
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(first, copy)
        return str(copy)

    @property
    def name(self) -> str:
        """For people."""
        return "disk" if self.base else "s3"

    @property
    def ways(self) -> tuple[str, ...]:
        """How an operation may go wrong here: see `Counter`."""
        return ("kill", "fail") if self.base else ("kill", "fail", "late")
