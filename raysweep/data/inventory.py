"""What there is, and what of it is here: plain rows for `data list`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raysweep.data.examples import candidates
from raysweep.data.sources import Source, find, find_mixer
from raysweep.errors import RaysweepError
from raysweep.sweep.catalog import DATASETS, MIXERS, Dataset, Mixer
from raysweep.sweep.spec import OwnSet

__all__ = ["Entry", "listed", "origin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of `data list`. `examples` is None where they cannot be counted here.

    `where` says what was found, or what was tried; `here` whether it can be used without a network. `revision` is the hub
    commit that was found, None for what is not from the hub or was not found.
    """

    name: str
    role: str
    source: str
    examples: int | None
    licence: str
    here: bool
    where: str
    revision: str | None


def listed(*, data_dir: Path | None, sets: Mapping[str, OwnSet]) -> Iterator[Entry]:
    """All sets and mixers, those of the catalog and one's own. Nothing is downloaded; what is broken is not here."""
    for name, dataset in DATASETS.items():
        yield _entry(name, dataset.role, origin(dataset), dataset.licence, partial(find, name, data_dir=data_dir))
    for name, own in sets.items():
        role = "A and B" if own.factoid else "B"
        yield _entry(name, role, own.path or own.hub or "", "its own", partial(find, name, data_dir=data_dir, own=own))
    for name, mixer in MIXERS.items():
        if mixer.words and name != "text":
            look = partial(find_mixer, name, text=None, data_dir=data_dir)
            yield _entry(name, "mixer", origin(mixer), mixer.licence, look)


def origin(declared: Dataset | Mixer) -> str:
    """Where a set or a corpus is had upstream."""
    if declared.hub is not None:
        config = f" ({declared.hub.configs[0]})" if len(declared.hub.configs) == 1 else ""
        return f"{declared.hub.id}{config}"
    if isinstance(declared, Mixer):
        return "NLTK words, list en"
    return "generated" if declared.archive is None else declared.archive.url


def _entry(name: str, role: str, source: str, licence: str, look: Callable[[], Source | None]) -> Entry:
    try:
        found = look()
        here = found.here
        count, where, revision = _count(found, role) if here else None, found.where, found.revision
    except RaysweepError as error:
        count, here, where, revision = None, False, str(error).splitlines()[0], None
    return Entry(
        name=name,
        role=role,
        source=source,
        examples=count,
        licence=licence,
        here=here,
        where=where,
        revision=revision,
    )


def _count(source: Source, role: str) -> int | None:
    if role == "mixer":
        return None
    if "generated" in source.identity:
        return DATASETS[source.name].size
    return sum(1 for _ in candidates(source, data_seed=0))
