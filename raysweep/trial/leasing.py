"""What a trial must hold while it trains: a lease on every stage that the store lacks.

A run on Ray holds them for its trials: their tokens come with the job. Whatever else a trial has to train, it takes leases on
itself, and waits while another is at work there; what that one commits is used.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from raysweep.learn.ranks import Ranks
from raysweep.store.leases import Leases, beating
from raysweep.store.store import Store

__all__ = ["HeldLeases", "leased"]

WAIT = 5.0  # seconds between two looks at what another trains

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldLeases:
    """The tokens under which a trial trains its stages; `own` are the leases that it took itself, on rank 0."""

    tokens: Mapping[str, int]
    own: Leases | None = None

    def committed(self, stage: str) -> None:
        """A stage is in the store. Where the run holds its lease, the run hears of it and ends it."""
        if self.own is not None:
            self.own.release([stage], committed=True)


@contextlib.contextmanager
def leased(
    store: Store, given: Mapping[str, int], ranks: Ranks, *, holder: str, lacking: Callable[[], Sequence[str]]
) -> Iterator[HeldLeases]:
    """Leases on all stages that a trial must train, for as long as the block runs; `given` are the tokens of the run's.

    Every rank enters and leaves; rank 0 holds. `lacking` looks into the store for them, in the order of training; it is
    called again when leases were taken, since another may have committed what was missing before.
    """
    tokens = dict(given)
    with contextlib.ExitStack() as stack:
        leases: Leases | None = None
        while missing := [stage for stage in lacking() if stage not in tokens]:
            if ranks.rank == 0 and leases is None:
                leases = stack.enter_context(beating(Leases(store.files, holder=holder)))
            tokens |= ranks.first(lambda leases=leases, missing=missing: _taken(leases, missing))
        yield HeldLeases(tokens, leases)


def _taken(leases: Leases, stages: Sequence[str]) -> Mapping[str, int]:
    """The tokens of these stages; none after a wait for another who is at work on one of them."""
    answer = leases.acquire(stages)
    if answer.blocked is None:
        return answer.tokens
    _log.info("stage %s is trained by %s: waiting for it", answer.blocked.stage, answer.blocked.holder)
    time.sleep(WAIT)
    return {}
