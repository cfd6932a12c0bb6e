"""Identity: what a thing is called is computed from what it is.

A payload is JSON: mappings, lists, strings, whole numbers, finite floats and booleans. `None` means "not there" and is
left out, so that adding an optional field never changes an id. Everything else is refused: a value without one stable
spelling would give one thing two names.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["ID_LENGTH", "canonical", "digest", "fingerprint"]

ID_LENGTH = 16  # hexadecimal digits: 64 bits, no collision to be expected below a billion stages


def canonical(value: Any) -> str:
    """The one spelling of `value` as JSON: sorted keys, no spaces, no `None`, ASCII only.

    Raises TypeError for values without a stable form and ValueError for NaN and infinities.
    """
    return json.dumps(_plain(value, "payload"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(kind: str, payload: Mapping[str, Any]) -> str:
    """The id of a payload: `ID_LENGTH` hexadecimal digits of SHA-256 over its kind and its canonical JSON."""
    return digest(f"{kind}\n{canonical(payload)}".encode())[:ID_LENGTH]


def digest(content: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _plain(value: Any, where: str) -> Any:
    match value:
        case bool() | str() | int():
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{where}: {value} has no identity; use a finite number")
            return value
        case Mapping():
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise TypeError(f"{where}: key {wrong[0]!r} is not a string")
            return {key: _plain(item, f"{where}.{key}") for key, item in value.items() if item is not None}
        case list() | tuple():
            return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        case _:
            raise TypeError(
                f"{where}: a {type(value).__name__} has no stable form; give its name, its number or its digest instead"
            )
