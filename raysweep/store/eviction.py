"""The disk of a sweep under way: which weights may go, and whether there is room to train more that must stay.

Weights that a trial of this run still needs never go. `keep: none` frees others at once, `max_store` when the store
would grow past it, those that nobody has needed for longest first.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal

from raysweep.errors import StoreError
from raysweep.store.store import Store

__all__ = ["Eviction"]

_log = logging.getLogger(__name__)


class Eviction:
    """Keeps a store within its bounds while the trials of `chains` run.

    `elsewhere` are stages whose weights other sweeps ask for: they go only where `most` (bytes) demands it, after all
    others.
    """

    def __init__(
        self,
        store: Store,
        chains: Mapping[str, tuple[str, ...]],
        *,
        keep: Literal["shared", "all", "none"] = "shared",
        most: int | None = None,
        elsewhere: Collection[str] = (),
    ) -> None:
        self._store = store
        self._chains = dict(chains)
        self._keep = keep
        self._most = most
        self._elsewhere = frozenset(elsewhere)
        self._wanted = Counter(stage for chain in chains.values() for stage in chain)
        self._folders = store.stage_folders()
        self._sizes = self._measure() if most is not None else {}
        self._told_full = False

    def committed(self, stage: str) -> None:
        """A stage was written: it may have to make room."""
        if self._most is None:
            return
        self._folders = self._store.stage_folders()
        if stage in self._folders:
            self._sizes[stage] = self._store.weights_size(self._folders[stage])
        self._shrink()

    def ended(self, trial: str) -> None:
        """A trial is over: what only it needed may go."""
        for stage in self._chains.pop(trial, ()):
            self._wanted[stage] -= 1
            if self._keep == "none" and not self._wanted[stage] and stage not in self._elsewhere:
                self._drop(stage)
        self._shrink()

    def room(self) -> bool:
        """Whether one more stage as large as the largest may be kept."""
        if self._most is None:
            return True
        fits = sum(self._sizes.values()) + max(self._sizes.values(), default=0) <= self._most
        if not fits and not self._told_full:
            _log.warning(
                "runtime.max_store is reached: stages that others start from wait until trials that need those there end"
            )
        self._told_full = not fits
        return fits

    def _shrink(self) -> None:
        for stage in self._spare():
            if self._most is None or sum(self._sizes.values()) + max(self._sizes.values()) <= self._most:
                return
            self._drop(stage)

    def _spare(self) -> list[str]:
        """Stages whose weights may go, in the order in which they do."""
        unwanted = [stage for stage, size in self._sizes.items() if size and not self._wanted[stage]]
        return sorted(unwanted, key=lambda stage: stage in self._elsewhere)

    def _drop(self, stage: str) -> None:
        """A store that cannot be written must not end a sweep that can go on."""
        folder = self._folders.get(stage) or self._store.stage_folders().get(stage)
        self._sizes.pop(stage, None)
        if folder is None:
            return
        try:
            self._store.drop_weights(folder)
        except (StoreError, OSError) as error:
            _log.warning("the weights of stage %s cannot be removed: %s", stage, error)

    def _measure(self) -> dict[str, int]:
        sizes = {stage: self._store.weights_size(folder) for stage, folder in self._folders.items()}
        return {stage: size for stage, size in sizes.items() if size}
