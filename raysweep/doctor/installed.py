"""Versions against the ranges that raysweep declares, Ray's extras, and what compiles code on first use."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from raysweep.doctor.finding import Finding

__all__ = ["look"]


def look() -> Iterator[Finding]:
    """Findings about this Python and its packages."""
    yield from _versions()
    yield from _state_api()
    yield _compiler()
    yield _compiled_ops()


def _versions() -> Iterator[Finding]:
    asked = _required("raysweep")
    if not asked:
        yield Finding("warn", "versions", "raysweep is used without being installed", "pip install -e . in its folder")
        return
    wrong = [finding for one in asked if (finding := _version(one))]
    yield from wrong
    if not wrong:
        names = ("ray", "torch", "transformers", "deepspeed", "datasets")
        found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
        yield Finding("ok", "versions", f"python {platform.python_version()}, {found}")


def _required(package: str, *, extra: str = "") -> list[Requirement]:
    """What a package asks for, here and with this extra."""
    try:
        listed = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    asked = [Requirement(line) for line in listed]
    return [one for one in asked if (one.marker is None and not extra) or (one.marker and _holds(one, extra))]


def _holds(requirement: Requirement, extra: str) -> bool:
    """Whether a marker is true with this extra; for a named extra only what it adds counts."""
    with_extra = requirement.marker.evaluate({"extra": extra})
    return with_extra and not (extra and requirement.marker.evaluate({"extra": ""}))


def _version(asked: Requirement) -> Finding | None:
    try:
        found = importlib.metadata.version(asked.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("stop", asked.name, "not installed", f"pip install '{_shown(asked)}'")
    if asked.specifier.contains(found, prereleases=True):
        return None
    return Finding("stop", asked.name, f"{found}, outside {asked.specifier}", f"pip install '{_shown(asked)}'")


def _shown(asked: Requirement) -> str:
    extras = f"[{','.join(sorted(asked.extras))}]" if asked.extras else ""
    return f"{asked.name}{extras}{asked.specifier}"


def _state_api() -> Iterator[Finding]:
    """Without it a crashed driver's placement group stays, and the retried trial waits for ever."""
    missing = [one.name for one in _required("ray", extra="default") if _version(one)]
    if missing:
        found = f"ray without its extra `default` ({', '.join(missing[:4])} missing)"
        yield Finding("stop", "Ray State API", found, "pip install 'ray[default]'")
    else:
        yield Finding("ok", "Ray State API", "there (ray[default])")


def _compiler() -> Finding:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    ninja = shutil.which("ninja") or (importlib.util.find_spec("ninja") and "the package ninja")
    missing = [name for name, found in (("a C++ compiler", compiler), ("ninja", ninja)) if not found]
    if missing:
        advice = "install g++ and ninja; DeepSpeed and Triton compile what they need on first use, and fail without"
        return Finding("warn", "compiler", f"{' and '.join(missing)} not found", advice)
    return Finding("ok", "compiler", f"{compiler}, {ninja}")


def _compiled_ops() -> Finding:
    """Where torch keeps what it compiled. A lock that a killed build left there is waited for without an end."""
    around = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    place = Path(os.environ.get("TORCH_EXTENSIONS_DIR", around / "torch_extensions"))
    locks = [path for path in place.rglob("lock") if path.parent.is_dir()]
    if locks:
        advice = "where nothing is being built now, remove it: others wait for ever for a build that was killed"
        return Finding("warn", "compiled ops", f"a lock at {locks[0]}", advice)
    built = sorted(path.stem for path in place.rglob("*.so"))
    kept = ", ".join(built) if built else "none yet, and raysweep asks for none; one takes about a minute, once"
    return Finding("ok", "compiled ops", f"{kept} ({place})")
