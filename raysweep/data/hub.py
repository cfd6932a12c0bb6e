"""Files of the hub: what the cache holds of a set, what the hub has, and reading the head of files too large to have.

Files are chosen by their paths alone (configuration, split, format), the same way in the cache and on the hub, and read
by the same readers as local ones. Nothing is downloaded before a set's rows are wanted.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from raysweep.data.folder import DESCRIPTIONS, TABLES, split_of
from raysweep.data.heads import cached_head, head, heads_of
from raysweep.errors import BadData, BadInput, SourceMissing
from raysweep.sweep.catalog import Hub

__all__ = [
    "COMMIT",
    "HubFiles",
    "Unreachable",
    "cache",
    "choose",
    "download",
    "endpoint",
    "in_cache",
    "offline",
    "on_hub",
    "pin_of",
    "present",
]

PATIENCE = 2.0  # seconds that a plan waits for the hub
COMMIT = re.compile(r"[0-9a-f]{40}")


class Unreachable(Exception):
    """The hub was not asked, did not answer, or does not have it; the text says which."""


@dataclass(frozen=True, slots=True)
class HubFiles:
    """Files of a repository at one commit; of large ones only the first `rows` records are read, without the rest."""

    id: str
    revision: str
    paths: tuple[str, ...]
    rows: int | None = None

    def identity(self, splits: Sequence[str]) -> dict[str, Any]:
        """What of it belongs to a stage's id."""
        return {"hub": self.id, "revision": self.revision, "files": list(self.paths), "split": list(splits)}


def pin_of(kind: str, id: str, revision: str | None) -> str | None:
    """What the commit of a repository is written down under; None where the revision is a commit already."""
    if revision is not None and COMMIT.fullmatch(revision):
        return None
    return f"{kind}/{id}@{revision}" if revision else f"{kind}/{id}"


def offline() -> bool:
    """Whether the user asked for no network at all."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in names)


def in_cache(hub: Hub, splits: Sequence[str]) -> HubFiles | None:
    """What the Hugging Face cache holds of a set, if it holds all of it: at the pinned commit, or at the one that is known
    to be meant (`_cached_revisions`)."""
    for revision in _cached_revisions(hub):
        snapshot = _repository(hub.id) / "snapshots" / revision
        if hub.rows is not None:
            paths = cached_head(cache(), hub.id, revision, hub.rows)
        else:
            there = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
            paths = _if_complete(choose(there, hub, splits), hub)
        if paths:
            return HubFiles(hub.id, revision, paths, hub.rows)
    return None


def on_hub(hub: Hub, splits: Sequence[str]) -> HubFiles:
    """What the hub has, at the pinned commit or at the one that is current. Raises Unreachable, within seconds."""
    if offline():
        raise Unreachable("not asked, HF_HUB_OFFLINE is set")
    info = _ask(lambda api: api.dataset_info(hub.id, revision=hub.revision, timeout=PATIENCE))
    paths = choose([entry.rfilename for entry in info.siblings or ()], hub, splits)
    if not paths:
        raise Unreachable(f"{hub.id} at {info.sha} has no data file for split {' or '.join(splits)}")
    return HubFiles(hub.id, info.sha, paths, hub.rows)


def download(files: HubFiles) -> list[tuple[str, Path]]:
    """The files on this machine, downloaded where the cache lacks them, with how they are shown.

    Raises SourceMissing where the network fails between plan and use.
    """
    if files.rows is not None:
        fetch = functools.partial(head, cache(), files.id, files.revision, files.paths, files.rows, endpoint())
        return [(f"{files.id}, the first {files.rows} rows", _fetched(files, files.paths[0], fetch))]
    return [(f"{files.id}/{path}", _one_file(files, path)) for path in files.paths]


def present(files: HubFiles) -> bool:
    """Whether `download` would need no network."""
    if files.rows is not None:
        return bool(cached_head(cache(), files.id, files.revision, files.rows))
    snapshot = _repository(files.id) / "snapshots" / files.revision
    return all((snapshot / path).is_file() for path in files.paths)


def choose(paths: Sequence[str], hub: Hub, splits: Sequence[str]) -> tuple[str, ...]:
    """The data files of a set among a repository's: those named, or those of its configurations and splits.

    Raises BadInput where no configuration is named and several folders have the split: they may be several sets.
    """
    if hub.files:
        return tuple(path for path in hub.files if path in paths)
    named = [(PurePosixPath(path), path) for path in paths]
    tables = sorted(path for pure, path in named if pure.suffix in TABLES and pure.name not in DESCRIPTIONS)
    of_config = [path for path in tables if any(_in_config(path, config) for config in hub.configs)]
    right = of_config if hub.configs else tables
    chosen = tuple(path for path in right if split_of(path) is None or split_of(path) in splits)
    folders = sorted({path.rpartition("/")[0] for path in chosen})
    if not hub.configs and hub.rows is None and len(folders) > 1:
        raise BadInput(f"{hub.id} on the hub has several configurations ({', '.join(folders)}); name one with config")
    return chosen


def _in_config(path: str, config: str) -> bool:
    return path.startswith((f"{config}/", f"data/{config}/", f"{config}-", f"{config}_", f"data/{config}-"))


def _if_complete(paths: tuple[str, ...], hub: Hub) -> tuple[str, ...]:
    """The paths, or none where a configuration, a named file or a shard (`00001-of-00003`) is missing among them."""
    shards = [match for path in paths if (match := re.search(r"(.*)-(\d+)-of-(\d+)", path))]
    heads = {match[1]: int(match[3]) for match in shards}
    whole = all(sum(match[1] == head for match in shards) == count for head, count in heads.items())
    configs = all(any(_in_config(path, config) for path in paths) for config in hub.configs)
    return paths if whole and configs and set(hub.files) <= set(paths) else ()


def cache() -> Path:
    """The Hugging Face cache, as its own variables place it."""
    around = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    home = Path(os.environ.get("HF_HOME", around / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))


def _repository(id: str) -> Path:
    return cache() / f"datasets--{id.replace('/', '--')}"


def _cached_revisions(hub: Hub) -> list[str]:
    """The commits that may stand for a set here: the pinned one, what the cache noted of a branch, or the only one that it
    has. Of several without a note none is taken: which was meant would be a guess."""
    if hub.revision and COMMIT.fullmatch(hub.revision):
        return [hub.revision]
    reference = _repository(hub.id) / "refs" / (hub.revision or "main")
    named = [reference.read_text().strip()] if reference.is_file() else []
    if hub.revision:
        return named
    folders = [*(_repository(hub.id) / "snapshots").glob("*"), *heads_of(cache(), hub.id).glob("*")]
    there = {folder.name for folder in folders}
    return named or sorted(there if len(there) == 1 else ())


def endpoint() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


_failed: dict[str, str] = {}  # endpoints that did not answer in this process: asking again would wait again


def _ask(question: Callable[[Any], Any]) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    address = endpoint()
    if address in _failed:
        raise Unreachable(_failed[address])
    try:
        return question(HfApi(endpoint=address))
    except HfHubHTTPError as error:  # it answered: the repository or the revision is wrong, or access is refused
        raise Unreachable(f"{address} says: {str(error).strip().splitlines()[0]}") from error
    except Exception as error:  # no network has many faces: sockets, proxies, timeouts, TLS
        _failed[address] = f"{address} cannot be reached ({type(error).__name__})"
        raise Unreachable(_failed[address]) from error


def _one_file(files: HubFiles, path: str) -> Path:
    snapshot = _repository(files.id) / "snapshots" / files.revision / path
    if snapshot.is_file():
        return snapshot
    from huggingface_hub import hf_hub_download

    how = {"repo_type": "dataset", "revision": files.revision, "cache_dir": cache(), "endpoint": endpoint()}
    return Path(_fetched(files, path, lambda: hf_hub_download(files.id, path, **how)))


def _fetched(files: HubFiles, path: str, fetch: Callable[[], Any]) -> Any:
    try:
        return fetch()
    except BadData:
        raise
    except Exception as error:  # as above: no network has many faces
        raise SourceMissing(
            f"{files.id}/{path} at {files.revision} was found and could not be downloaded from {endpoint()} "
            f"({type(error).__name__}: {error}); run again with network, or `raysweep data fetch` it elsewhere"
        ) from error
