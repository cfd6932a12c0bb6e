"""Where the names in a sweep point to, from here: pinned revisions and digests for the plan's ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raysweep.data.models import identity
from raysweep.data.scoring import SCORERS
from raysweep.data.sources import find, find_mixer
from raysweep.errors import SourceMissing
from raysweep.plan.evaluator import Rule
from raysweep.plan.plan import Sources
from raysweep.sweep.spec import Model, Sweep

__all__ = ["resolve", "rule_of"]


def resolve(sweep: Sweep, *, data_dir: Path | None) -> Sources:
    """The sources of one sweep as this machine sees them; those that it cannot tell are in `missing`, with the reason."""
    missing: dict[str, str] = {}

    def told(name: str, look: Callable[[], Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
        try:
            return look()
        except SourceMissing as error:
            missing[name] = str(error)
            return None

    def of_model(model: Model) -> Mapping[str, Any] | None:
        return told(f"model {model.name}", lambda: identity(model.name, model.revision))

    def of_set(name: str) -> Mapping[str, Any] | None:
        return told(f"set {name}", lambda: find(name, data_dir=data_dir, own=sweep.sets.get(name)).identity)

    def of_mixer(name: str) -> Mapping[str, Any] | None:
        source = told(f"mixer {name}", lambda: _mixer(name))
        return source

    def _mixer(name: str) -> Mapping[str, Any] | None:
        found = find_mixer(name, data_dir=data_dir, text=sweep.mixing.text)
        return found.identity if found else None

    return Sources(of_model, of_set, of_mixer, missing, rule_of)


def rule_of(scorer: str) -> Rule:
    """What an id covers of a scorer."""
    return Rule(SCORERS[scorer].version, SCORERS[scorer].max_new_tokens)
