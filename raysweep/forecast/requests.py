"""What a sweep asks of a store that is a bucket: how many requests, and how fast they come.

Counted on a real S3 interface (`tests/trial/test_requests.py` counts again): writes are PUT, POST and DELETE, reads are GET, HEAD
and listings, since a bucket bounds these two. Content counts by itself: a file is sent in parts, and what is large goes to
prefixes of its own, one a stage; only what all trials of a sweep have in common is held against the bounds of one prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BOUNDS",
    "PER_EVALUATION",
    "PER_STAGE",
    "PER_TRIAL",
    "PER_WEIGHTS",
    "Requests",
    "idle",
    "of_checkpoint",
    "of_plan",
]

BEAT, LOOK, STATUS = 10.0, 5.0, 5.0  # seconds between two signs of life, looks at others' stages, writes of a status


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests, or requests a second."""

    writes: float = 0.0
    reads: float = 0.0

    def __add__(self, other: Requests) -> Requests:
        return Requests(self.writes + other.writes, self.reads + other.reads)

    def times(self, number: float) -> Requests:
        """So many of these."""
        return Requests(self.writes * number, self.reads * number)


BOUNDS = Requests(3500.0, 5500.0)  # a second, for each prefix of a bucket of S3
PER_TRIAL = Requests(4, 6)  # its record when it begins and ends, its two tables; what was there before
PER_STAGE = Requests(
    6, 12
)  # its lease taken and ended, curve, record, the end of its checkpoints; looks at all of these
PER_EVALUATION = Requests(2, 0)
PER_WEIGHTS = Requests(6, 0)  # the small files beside the weights


def idle(runs: int = 1, *, awaited: int = 0) -> Requests:
    """A second in which runs only live: signs of life, status, looks at stages that others hold and at what others want."""
    each = Requests(
        1 / BEAT + 1 / STATUS, (1 + 2 * (runs - 1)) / BEAT + awaited * (1 / LOOK) + (2 / LOOK if awaited else 0.0)
    )
    return each.times(runs)


def of_checkpoint(*, workers: int) -> Requests:
    """One checkpoint that a trial puts into the bucket, and the one before removed."""
    files = 3 * workers + 1
    return Requests(2 * files + 8, files + 12)


def of_plan(*, trials: int, stages: int, with_weights: int, evaluations: int) -> Requests:
    """All that a plan's trials ask for, but for content and checkpoints."""
    return (
        PER_TRIAL.times(trials)
        + PER_STAGE.times(stages)
        + PER_WEIGHTS.times(with_weights)
        + PER_EVALUATION.times(evaluations)
    )
