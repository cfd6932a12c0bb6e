"""Files of a store, wherever it is: a local folder or any URL that pyarrow or fsspec can open."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raysweep.errors import BadInput, StoreError
from raysweep.store.checksums import sync, synced
from raysweep.store.exclusive import Create, creating, s3_client

__all__ = ["Files", "read_record"]

_ADVICE = "give a folder, or a bucket's URL such as s3://BUCKET/raysweep that this machine may read and write"
_PART = 1 << 22  # bytes
READERS = 32  # threads, where files are far away
Read = TypeVar("Read")


class Files:
    """A tree of files below one root; every path is relative to it and cannot leave it."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self.name = _without_secrets(self.url)
        self._fs, self._root = _open(self.url)
        self.local = Path(self._root) if isinstance(self._fs, pafs.LocalFileSystem) else None
        self._reached = False

    @property
    def beside(self) -> Path:
        """Where files are put that only this machine needs: in the tree itself where it is local."""
        return self.local if self.local is not None else Path(tempfile.gettempdir()) / "raysweep"

    def read_bytes(self, path: str) -> bytes | None:
        """The file's content, or None where there is no such file."""
        try:
            with self._first_contact(), self._fs.open_input_stream(self._at(path)) as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            if self.local is None:
                raise
            raise StoreError(f"{self.name}/{path}: cannot be read: {_shown(error, self.url)}") from None

    def read_each(self, paths: Sequence[str], read: Callable[[str], Read]) -> list[Read]:
        """What `read` gives for each path: one after the other on a disk, many at once where each takes its time."""
        if self.local is not None:
            return [read(path) for path in paths]
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(read, paths))

    def read_json(self, path: str) -> dict[str, Any] | None:
        """A JSON mapping, or None where there is no such file; StoreError where it is torn."""
        content = self.read_bytes(path)
        if content is None:
            return None
        value = read_record(content)
        if value is None:
            raise StoreError(f"{self.name}/{path}: not a record; remove the file and run again")
        return value

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a file as a whole: a reader sees the old one or the new one, never a part."""
        target = self._at(path)
        if self.local is None:
            self._upload(path, content)
            return
        aside = f"{target}.{uuid.uuid4().hex[:8]}.aside"
        try:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            with open(aside, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                Path(aside).unlink(missing_ok=True)
            raise StoreError(f"{self.name}/{path}: cannot be written: {error.strerror}") from None

    def create(self, path: str, content: bytes) -> bool:
        """Create a file, whole or not at all, where there is none; whether this call did. What is there is never changed.

        Where the content is not the caller's alone, an equal one counts as the caller's. BadInput where this place can
        only overwrite.
        """
        create, target = self._create, self._at(path)
        try:
            return create(target, content)
        except (OSError, NotImplementedError) as error:
            raise StoreError(f"{self.name}/{path}: cannot be created: {_shown(error, self.url)}") from None

    def require_create(self) -> None:
        """BadInput where `create` cannot work here."""
        _ = self._create

    @cached_property
    def _create(self) -> Create:
        return creating(self._fs, self.url, shown=self.name)

    def _upload(self, path: str, content: bytes) -> None:
        try:
            with self._fs.open_output_stream(self._at(path)) as stream:
                stream.write(content)
        except (OSError, NotImplementedError) as error:
            raise StoreError(f"{self.name}/{path}: cannot be written: {_shown(error, self.url)}") from None

    def write_json(self, path: str, value: Mapping[str, Any]) -> None:
        """Write a mapping as readable JSON."""
        self.write_bytes(path, (json.dumps(value, indent=1, allow_nan=False, default=str) + "\n").encode())

    def write_rows(self, path: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
        """Write rows as one parquet file."""
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), sink)
        self.write_bytes(path, sink.getvalue().to_pybytes())

    def read_table(self, path: str) -> pa.Table | None:
        """A parquet file, or None where there is no such file."""
        content = self.read_bytes(path)
        return None if content is None else pq.read_table(pa.BufferReader(content))

    def names(self, path: str, *, hidden: bool = False) -> list[str]:
        """The names below a folder, sorted: those that begin with a dot, or all others; of a missing folder none."""
        return sorted(name for name in self._listed(path) if name.startswith(".") == hidden)

    def _listed(self, path: str) -> list[str]:
        if self.local is None:
            return [info.base_name for info in self._look(pafs.FileSelector(self._at(path), allow_not_found=True))]
        try:
            with self._first_contact():
                return os.listdir(self._at(path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def touched(self, path: str) -> float:
        """When anything in a folder was last written, in seconds since 1970."""
        inside = self._fs.get_file_info(pafs.FileSelector(self._at(path), allow_not_found=True, recursive=True))
        return max(info.mtime_ns or 0 for info in [self._fs.get_file_info(self._at(path)), *inside]) / 1e9

    def address(self, path: str) -> str:
        """What another program must call a path here: a local path, or a URL with the root's own query."""
        if self.local is not None:
            return self._at(path)
        root, mark, query = self.url.partition("?")
        return f"{root.rstrip('/')}/{path}{mark}{query}"

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        return self._look(self._at(path)).type != pafs.FileType.NotFound

    def among(self, paths: Sequence[str]) -> list[str]:
        """Those of these paths that are files here, asked all at once."""
        found = self._look([self._at(path) for path in paths])
        return [path for path, info in zip(paths, found, strict=True) if info.is_file]

    def stamps(self, paths: Sequence[str]) -> list[tuple[int, int] | None]:
        """When each file was last written (ns) and its bytes; None where there is none, or where this place cannot tell."""
        if self.local is not None:
            return [_stamp(f"{self._root}/{path}") for path in paths]
        found = self._fs.get_file_info([self._at(path) for path in paths])
        return [(info.mtime_ns, info.size) if info.is_file and info.mtime_ns else None for info in found]

    def below(self, path: str) -> dict[str, tuple[int, int]]:
        """When each file below a folder was last written (ns, 0 where this place cannot tell) and its bytes, in one listing."""
        try:
            found = self._look(pafs.FileSelector(self._at(path), allow_not_found=True, recursive=True))
        except NotADirectoryError:
            return {}
        root = len(self._root) + 1
        return {info.path[root:]: (info.mtime_ns or 0, info.size or 0) for info in found if info.is_file}

    def looked_at(self, paths: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The same of those of these paths that are files here, each looked at for itself."""
        found = self._look([self._at(path) for path in paths])
        shown = zip(paths, found, strict=True)
        return {path: (info.mtime_ns or 0, info.size or 0) for path, info in shown if info.is_file}

    def size(self, path: str) -> int:
        """Bytes of all files below a folder."""
        selector = pafs.FileSelector(self._at(path), allow_not_found=True, recursive=True)
        return sum(info.size or 0 for info in self._fs.get_file_info(selector) if info.type == pafs.FileType.File)

    def remove(self, path: str) -> None:
        """Remove a folder with all that is in it, or a file; one that is not there is fine."""
        match self._fs.get_file_info(self._at(path)).type:
            case pafs.FileType.Directory:
                with contextlib.suppress(FileNotFoundError):  # another removed it meanwhile
                    self._fs.delete_dir(self._at(path))
            case pafs.FileType.File:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.delete_file(self._at(path))

    def digest(self, path: str) -> str | None:
        """SHA-256 of a file's content, which need not fit into memory; None where there is no such file."""
        taken = hashlib.sha256()
        try:
            with self._first_contact(), self._fs.open_input_stream(self._at(path)) as stream:
                while part := stream.read(_PART):
                    taken.update(part)
        except OSError:
            return None
        return taken.hexdigest()

    def remove_empty(self, path: str) -> None:
        """Remove a folder if nothing is in it; what another puts there at the same time stays."""
        if self.local is not None:
            with contextlib.suppress(OSError):
                os.rmdir(self._at(path))
        elif isinstance(self._fs, pafs.S3FileSystem):  # it leaves an empty object where a folder was emptied
            bucket, _, key = self._at(path).partition("/")
            s3_client(self._fs, self.url, shown=self.name).delete_object(Bucket=bucket, Key=f"{key}/")

    def set_aside(self, path: str) -> None:
        """Give a damaged file another name, beside it."""
        torn = f"{path}.torn-{uuid.uuid4().hex[:6]}"
        if self.local is not None:
            self.move(path, torn)
            return
        self.write_bytes(torn, self.read_bytes(path) or b"")
        self.remove(path)

    def move(self, path: str, to: str) -> None:
        """Give a file or a folder on a disk another name; one that is not there any more is fine."""
        if not self.exists(path):
            return
        Path(self._at(to)).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._at(path), self._at(to))

    def place(self, folder: Path, path: str) -> None:
        """Make a local folder the content of a new `path`; on return it is safe there, and a record may name it."""
        if self.local is None:
            for name in sorted(_files(folder)):
                self.put_file(folder / name, f"{path}/{name}")
            return
        sync(folder)
        target = Path(self._at(path))
        _make(target.parent)
        os.rename(folder, target)
        synced(target.parent)

    def put_file(self, source: Path, path: str) -> None:
        """Copy a local file to a place elsewhere."""
        pafs.copy_files(str(source), self._at(path), pafs.LocalFileSystem(), self._fs)

    def bring(self, path: str, folder: Path) -> None:
        """Make a new local folder the copy of one of the store, as a whole: it is there once all of it is."""
        partly = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
        partly.mkdir(parents=True)
        try:
            pafs.copy_files(self._at(path), str(partly), self._fs, pafs.LocalFileSystem())
            _rename(partly, folder)
        finally:
            shutil.rmtree(partly, ignore_errors=True)

    @contextlib.contextmanager
    def aside(self, kind: str) -> Iterator[Path]:
        """A new local folder to write in, on the store's own disk where it is local; gone afterwards."""
        folder = self.beside / ".aside" / f"{kind}-{uuid.uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _look(self, at: Any) -> Any:
        with self._first_contact():
            return self._fs.get_file_info(at)

    @contextlib.contextmanager
    def _first_contact(self) -> Iterator[None]:
        """BadInput where a place does not answer at first; one that did once and does no more is its own error."""
        try:
            yield
        except FileNotFoundError:
            self._reached = True
            raise
        except Exception as error:  # whatever the library of such a place raises
            if self._reached or self.local is not None and (not isinstance(error, OSError) or self.local.is_dir()):
                raise
            raise BadInput(f"store {self.name}: cannot be reached: {_shown(error, self.url)}; {_ADVICE}") from None
        self._reached = True

    def _at(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts:
            raise StoreError(f"{path!r} would leave the store {self.name}")
        return f"{self._root}/{path}"


def _without_secrets(url: str) -> str:
    """A URL as it may be shown: without a key and what follows the path."""
    return re.sub(r"(?<=://)[^/@]*@|\?.*$", "", url) if "://" in url else url


def _shown(error: Exception, url: str) -> str:
    """A library's own words, which may repeat the URL, on one line."""
    words = str(error).replace(url, _without_secrets(url)) or type(error).__name__
    return " ".join(re.sub(r"(?<=://)[^/@\s]*@", "", words).split())


def _open(url: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in url:
        root = Path(url).expanduser().absolute()
        if root.exists() and not root.is_dir():
            raise BadInput(f"store {url}: this is a file; give a folder or a bucket's URL")
        return pafs.LocalFileSystem(), str(root)
    scheme, _, rest = url.partition("://")
    if not scheme or not rest.partition("?")[0].strip("/"):
        raise BadInput(f"store {_without_secrets(url)}: names no place; {_ADVICE}")
    try:
        fs, root = pafs.FileSystem.from_uri(_in_one_put(url))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        fs, root = _open_fsspec(url)
    except OSError as error:  # the system's own library for such places is not there
        raise BadInput(f"store {_without_secrets(url)}: cannot be opened: {_shown(error, url)}; {_ADVICE}") from None
    return fs, root.rstrip("/")


def _in_one_put(url: str) -> str:
    """An S3 URL by which a small file is one request, and not the three of an upload in parts."""
    if not url.startswith("s3://") or "allow_delayed_open" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}allow_delayed_open=true"


def _open_fsspec(url: str) -> tuple[pafs.FileSystem, str]:
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise BadInput(f"store {_without_secrets(url)}: {_shown(error, url)}; {_ADVICE}") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), root


def read_record(content: bytes) -> dict[str, Any] | None:
    """A JSON mapping; None where it is torn, or something else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _make(folder: Path) -> None:
    """Make a folder and those above it, each named on the disk by the one above."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in reversed(missing):
        synced(one.parent)


def _rename(folder: Path, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(folder, target)
    except OSError:
        if target.exists():
            return False
        raise
    return True


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
