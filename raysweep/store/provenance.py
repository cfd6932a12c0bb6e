"""What a record says of how it came to be: the code's commit, the versions, the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["here", "timestamp"]

_PACKAGES = ("raysweep", "ray", "torch", "transformers", "deepspeed", "datasets", "nltk")


def here() -> dict[str, Any]:
    """Commit, versions and machine of this process; nothing of its user or its environment."""
    return {"commit": _commit(), "versions": dict(_versions()), "machine": _machine()}


def timestamp(seconds: float) -> str:
    """A moment in UTC, ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


@cache
def _commit() -> str | None:
    """The commit of the checkout that this code runs from, `+` when it was changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return os.environ.get("RAYSWEEP_COMMIT")
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "raysweep")
    return f"{commit}+" if commit and changed else commit


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = {name: _version(name) for name in _PACKAGES}
    return (("python", platform.python_version()), *((name, version) for name, version in found.items() if version))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
