"""What a process keeps between trials: the base model's folder, its tokenizer, and the examples made so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from raysweep.learn.model import load_tokenizer, prepare
from raysweep.store.store import Store
from raysweep.sweep.spec import Model, OwnSet, Runtime, Text
from raysweep.trial.familiarity import Familiarity
from raysweep.trial.inputs import Material

__all__ = ["Workbench", "workbench"]


@dataclass(frozen=True, slots=True)
class Workbench:
    """The base model's folder, and the material of one model, data folder and set of own sets."""

    base: Path
    material: Material


def workbench(
    model: Model, store: Store, *, data_dir: str | None, sets: Mapping[str, OwnSet], text: Text | None, runtime: Runtime
) -> Workbench:
    """The workbench of these choices in this process: made once, kept between trials."""
    return _workbench(model, store.url, data_dir, tuple(sorted(sets.items())), text, runtime)


@lru_cache(maxsize=2)
def _workbench(
    model: Model,
    url: str,
    data_dir: str | None,
    sets: tuple[tuple[str, OwnSet], ...],
    text: Text | None,
    runtime: Runtime,
) -> Workbench:
    store = Store(url)
    base = prepare(model.name, model.revision, cache=store.models(), trust_remote_code=model.trust_remote_code)
    tokenizer = load_tokenizer(base)
    material = Material(
        tokenizer,
        data_dir=Path(data_dir) if data_dir else None,
        sets=dict(sets),
        text=text,
        familiarity=Familiarity(model, base, tokenizer, store),
        runtime=runtime,
    )
    return Workbench(base, material)
