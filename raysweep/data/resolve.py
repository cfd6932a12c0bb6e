"""Where the names in a sweep point to, from here: pinned revisions and digests for the plan's ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysweep.data.hub import pin_of
from raysweep.data.models import identity
from raysweep.data.scoring import SCORERS
from raysweep.data.sources import NO_PINS, Pins, Source, find, find_mixer
from raysweep.errors import SourceMissing
from raysweep.plan.evaluator import Rule
from raysweep.plan.plan import Sources
from raysweep.sweep.spec import Model, Sweep

__all__ = ["resolve", "rule_of"]


def resolve(sweep: Sweep, *, data_dir: Path | None, pins: Pins = NO_PINS) -> Sources:
    """The sources of one sweep as this machine sees them; those that it cannot tell are in `missing`, with the reason.

    `pins` are the commits that the sweep was planned with before: what names none keeps that of its first time.
    """
    found = Sources(of_model=lambda model: None, of_set=lambda name: None, of_mixer=lambda name: None)

    def told(name: str, look: Callable[[], Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
        try:
            return look()
        except SourceMissing as error:
            found.missing[name] = str(error)
            return None

    def noted(name: str, source: Source) -> Mapping[str, Any]:
        if source.revision:
            found.revisions[name] = source.revision
        if source.pin and source.revision:
            found.pins[source.pin] = source.revision
        return source.identity

    def of_model(model: Model) -> Mapping[str, Any] | None:
        return told(f"model {model.name}", lambda: _model(model))

    def _model(model: Model) -> Mapping[str, Any]:
        pin = pin_of("models", model.name, model.revision)
        known = identity(model.name, pins.get(pin or "", model.revision))
        if "revision" in known:
            found.revisions[f"model {model.name}"] = known["revision"]
            if pin:
                found.pins[pin] = known["revision"]
        return known

    def of_set(name: str) -> Mapping[str, Any] | None:
        own = sweep.sets.get(name)
        return told(f"set {name}", lambda: noted(f"set {name}", find(name, data_dir=data_dir, own=own, pins=pins)))

    def of_mixer(name: str) -> Mapping[str, Any] | None:
        return told(f"mixer {name}", lambda: _mixer(name))

    def _mixer(name: str) -> Mapping[str, Any] | None:
        source = find_mixer(name, data_dir=data_dir, text=sweep.mixing.text, pins=pins)
        return noted(f"mixer {name}", source) if source else None

    return replace(found, of_model=of_model, of_set=of_set, of_mixer=of_mixer, of_scorer=rule_of)


def rule_of(scorer: str) -> Rule:
    """What an id covers of a scorer."""
    return Rule(SCORERS[scorer].version, SCORERS[scorer].max_new_tokens)
