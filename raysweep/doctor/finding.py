"""A finding: the answer to one question about this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Verdict"]

Verdict = Literal["ok", "warn", "stop"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice` says what to do, and is empty where all is well; `stop` means that no sweep can run like this."""

    verdict: Verdict
    about: str
    found: str
    advice: str = ""
