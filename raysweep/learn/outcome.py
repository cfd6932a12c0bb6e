"""What a stage tells while it trains, and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["StageOutcome", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a stage stands: `step` of `total_steps` are done; loss and rate are the last step's; `seconds` since it
    began, all attempts together; `accuracy` in percent by probe, as last asked."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    lr: float
    tokens: int
    seconds: float
    accuracy: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutcome:
    """How a stage ended. `epochs` may be a fraction; `loss` is the last step's; `peak_memory` in bytes.

    `curve` has one row a step: step (1 for the first), epoch, loss, lr, grad_norm, tokens (so far), seconds, and
    accuracy_<probe> in percent in the rows where a probe was asked.
    """

    steps: int
    epochs: float
    loss: float
    stopped_by: str
    curve: list[dict[str, Any]]
    tokens: int
    seconds: float
    peak_memory: int
