"""What a sweep file says, as it was run: a store's copy has its `--set` overrides at the end, as comments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysweep.errors import BadInput
from raysweep.sweep.yaml import parse, parse_value

__all__ = ["read_sweep_text", "with_overrides"]

OVERRIDE = "# --set "


def with_overrides(text: str, overrides: tuple[str, ...]) -> str:
    """A sweep file with the overrides that it was run with."""
    lines = [text.rstrip("\n"), *(f"{OVERRIDE}{override}" for override in overrides)]
    return "".join(f"{line}\n" for line in lines)


def read_sweep_text(text: str, name: str) -> dict[str, Any]:
    """The keys of a sweep's file as they were run, overrides applied; the last of one key counts. Raises BadInput."""
    lines, overrides = text.splitlines(), []
    while lines and lines[-1].startswith(OVERRIDE):
        overrides.insert(0, lines.pop().removeprefix(OVERRIDE))
    document = parse("\n".join(lines), f"sweeps/{name}/sweep.yaml").value
    if not isinstance(document, dict):
        raise BadInput(f"sweeps/{name}/sweep.yaml: not a sweep file")
    for override in overrides:
        key, _, value = override.partition("=")
        document = _put(document, key.strip().split("."), parse_value(value, f"--set {key.strip()} of sweep {name}"))
    return document


def _put(raw: Any, path: list[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    known = raw if isinstance(raw, Mapping) else {}
    return {**known, first: _put(known.get(first), rest, value) if rest else value}
