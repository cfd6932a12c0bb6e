"""Files that are created only where there is none yet: the one operation on which single flight rests.

On a disk the content is written aside and then linked to its name, which is right on NFS too. S3 is asked by botocore to put
an object if no other matches (pyarrow, which opens these places, has no word for that), Google's storage by gcsfs to put
one that has no generation yet. A place that can do none of these cannot hold leases, and says so.

A refusal may be the echo of one's own write whose answer was lost. What lies there is read back then: who must know whether
it was the one to create a file puts something of its own into the content.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow.fs as pafs

from raysweep.errors import BadInput
from raysweep.store.checksums import synced

__all__ = ["Create", "creating", "s3_client"]

Create = Callable[
    [str, bytes], bool
]  # path, content → whether this call made the file; OSError where it cannot be told

_LOCK = threading.Lock()
ATTEMPTS = 8  # where a place answers that two came at once


def creating(fs: pafs.FileSystem, url: str, *, shown: str) -> Create:
    """How files are created at a place; BadInput where they can only be overwritten. `shown` is its URL without secrets."""
    if isinstance(fs, pafs.LocalFileSystem):
        return on_disk
    by_library = fs.handler.fs if isinstance(fs, pafs.PyFileSystem) else None
    match fs.type_name:
        case "s3":
            return on_s3(s3_client(fs, url, shown=shown))
        case "gcs":
            return by_fsspec(_gcsfs(url, shown=shown))
        case _ if {"s3", "gs"} & _protocols(by_library):
            return by_fsspec(by_library)
        case _ if "memory" in _protocols(by_library):
            return one_at_a_time(by_fsspec(by_library))
    raise BadInput(
        f"store {shown}: this place cannot create a file only where there is none, so two runs could not share it; "
        "to run sweeps, give a folder, or a bucket of S3 or Google Cloud Storage"
    )


def on_disk(target: str, content: bytes) -> bool:
    """Write aside, then link: a link to a name that exists is refused, whoever asks, on a disk of one's own and on NFS."""
    folder, name = os.path.split(target)
    Path(folder).mkdir(parents=True, exist_ok=True)
    aside = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.aside"
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        created = _link(aside, target)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(aside)
    if created:
        synced(Path(folder))
    return created


def _link(aside: str, target: str) -> bool:
    try:
        os.link(aside, target)
    except OSError as error:
        if os.stat(aside).st_nlink > 1:  # NFS: it was linked, and the answer was lost
            return True
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


def on_s3(client: Any) -> Create:
    """Put an object if no other matches; two that come at once are both asked to try again."""
    from botocore.exceptions import BotoCoreError, ClientError

    def create(target: str, content: bytes) -> bool:
        bucket, _, key = target.partition("/")
        for _ in range(ATTEMPTS):
            try:
                client.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
                return True
            except ClientError as error:
                code = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if code == 412:
                    return read(bucket, key) == content
                if code != 409:
                    raise OSError(str(error)) from error
            except BotoCoreError as error:
                raise OSError(str(error)) from error
        raise OSError(f"{target}: others write it at the same time, again and again")

    def read(bucket: str, key: str) -> bytes | None:
        try:
            return client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None  # removed meanwhile
            raise OSError(str(error)) from error
        except BotoCoreError as error:
            raise OSError(str(error)) from error

    return create


def by_fsspec(fs: Any) -> Create:
    """The same in fsspec's words, where its library keeps them: s3fs, gcsfs, and one process's memory."""

    def create(target: str, content: bytes) -> bool:
        try:
            fs.pipe_file(target, content, mode="create")
            return True
        except FileExistsError:
            return read(target) == content
        except OSError as error:
            if "PreconditionFailed" in str(error) or "Invalid argument" in str(error):  # s3fs's words for the same
                return read(target) == content
            raise

    def read(target: str) -> bytes | None:
        try:
            return fs.cat_file(target)
        except FileNotFoundError:
            return None  # removed meanwhile

    return create


def one_at_a_time(create: Create) -> Create:
    """For a place that looks first and writes then: one process's memory."""

    def locked(target: str, content: bytes) -> bool:
        with _LOCK:
            return create(target, content)

    return locked


def s3_client(fs: pafs.S3FileSystem, url: str, *, shown: str) -> Any:
    """A client for the place that pyarrow has opened: the same address and keys, or those of the environment."""
    try:
        import botocore.session
        from botocore.config import Config
    except ImportError:
        raise BadInput(f"store {shown}: leases on S3 need botocore: pip install 'raysweep[s3]'") from None

    options, asked = urlsplit(url), _asked(url)
    key, secret = options.username, options.password
    address = asked.get("endpoint_override")
    virtual = asked.get("force_virtual_addressing") == "true" or not address
    keys = {"aws_access_key_id": unquote(key), "aws_secret_access_key": unquote(secret)} if key and secret else {}
    return botocore.session.Session().create_client(
        "s3",
        region_name=fs.region,
        endpoint_url=f"{asked.get('scheme', 'https')}://{address}" if address else None,
        config=Config(
            s3={"addressing_style": "auto" if virtual else "path"},
            retries={"mode": "standard", "total_max_attempts": 5},
        ),
        **keys,
    )


def _gcsfs(url: str, *, shown: str) -> Any:
    try:
        from gcsfs.core import GCSFileSystem  # gcsfs's other one asks over gRPC first what kind of bucket it is
    except ImportError:
        raise BadInput(
            f"store {shown}: leases on Google Cloud Storage need gcsfs: pip install 'raysweep[gcs]'"
        ) from None

    asked = _asked(url)
    address = asked.get("endpoint_override")
    return GCSFileSystem(
        token="anon" if urlsplit(url).username == "anonymous" else None,
        endpoint_url=f"{asked.get('scheme', 'https')}://{address}" if address else None,
    )


def _asked(url: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}


def _protocols(library: Any) -> set[str]:
    protocol = getattr(library, "protocol", ())
    return {protocol} if isinstance(protocol, str) else set(protocol)
