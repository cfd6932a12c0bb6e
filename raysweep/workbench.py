"""What a process keeps between trials: the base model's folder, its tokenizer, and the examples made so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from raysweep.data.example import Example
from raysweep.data.sources import Source
from raysweep.errors import TrialFailed
from raysweep.learn.model import load_tokenizer, prepare
from raysweep.material import Material
from raysweep.spec import Model, OwnSet, Text
from raysweep.store import Store

__all__ = ["Workbench", "workbench"]


@dataclass(frozen=True, slots=True)
class Workbench:
    """The base model's folder, and the material of one model, data folder and set of own sets."""

    base: Path
    material: Material


def workbench(
    model: Model, store: Store, *, data_dir: str | None, sets: Mapping[str, OwnSet], text: Text | None
) -> Workbench:
    """The workbench of these choices in this process: made once, kept between trials."""
    return _workbench(model, store.url, data_dir, tuple(sorted(sets.items())), text)


@lru_cache(maxsize=2)
def _workbench(
    model: Model, store: str, data_dir: str | None, sets: tuple[tuple[str, OwnSet], ...], text: Text | None
) -> Workbench:
    base = prepare(model.name, model.revision, cache=Store(store).models(), trust_remote_code=model.trust_remote_code)
    data = Path(data_dir) if data_dir else None

    def unfamiliar(source: Source, examples: list[Example]) -> list[bool]:
        raise TrialFailed(f"{source.name}: selecting by familiarity is not wired yet")

    return Workbench(
        base, Material(load_tokenizer(base), data_dir=data, sets=dict(sets), text=text, unfamiliar=unfamiliar)
    )
