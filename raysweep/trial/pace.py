"""How fast a stage goes, told by its events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Pace"]


class Pace:
    """Tokens a second between two events of one stage."""

    def __init__(self) -> None:
        self._last: tuple[Any, int, float] | None = None

    def measure(self, event: Mapping[str, Any]) -> dict[str, float]:
        """The pace since the event before; nothing at a stage's first."""
        if event["event"] != "train":
            return {}
        before, self._last = self._last, (event["stage"], event["tokens"], event["seconds"])
        if before is None or before[0] != event["stage"] or event["seconds"] <= before[2]:
            return {}
        return {"tokens_per_second": (event["tokens"] - before[1]) / (event["seconds"] - before[2])}
