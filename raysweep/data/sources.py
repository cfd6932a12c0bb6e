"""Where things come from: a folder first, then the Hugging Face cache, then the hub.

Finding is fast, with or without network: files are looked at, nothing is downloaded before its rows are wanted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raysweep.data import kvr
from raysweep.data import own as own_sets
from raysweep.data.folder import (
    TABLES,
    DataFile,
    Problem,
    files_digest,
    known_files,
    problems,
    recognized,
    split_of,
    tables_in,
)
from raysweep.data.hub import COMMIT, HubFiles, Unreachable, download, in_cache, on_hub, pin_of, present
from raysweep.data.origin import origin_of
from raysweep.data.rows import Row, read_rows
from raysweep.data.words import WordList, find_word_list
from raysweep.errors import BadData, BadInput, SourceMissing
from raysweep.sweep.catalog import DATASETS, MIXERS, TEXT_ROWS, Dataset, Hub
from raysweep.sweep.spec import OwnSet, Text

__all__ = ["NO_PINS", "Pins", "Source", "find", "find_mixer", "find_text", "find_words"]

ROWS = "rows"  # the set of files that are read without knowing their columns: corpora and one's own sets
TEXT_ENDINGS = TABLES | {".txt"}
Pins = Mapping[str, str]  # the commits that repositories were found at before, by what they are written down under
NO_PINS: Pins = {}
NO_FOLDER = "no data folder given (--data DIR or RAYSWEEP_DATA)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Plain data, so that it can travel to workers.

    `identity` is JSON for stage ids: a recipe for generated sets, a digest of the files' content, or a hub commit.
    `where` says the same for people. Rows are in `files`, or in `hub` and then downloaded when they are wanted. `pin` is
    what its commit is written down under, for a hub repository that is named without one.
    """

    name: str
    identity: dict[str, Any]
    where: str
    files: tuple[DataFile, ...] = ()
    hub: HubFiles | None = None
    side: dict[str, str] = field(default_factory=dict)
    own: OwnSet | None = None
    words: WordList | None = None
    text_field: str | None = None
    pin: str | None = None

    @property
    def revision(self) -> str | None:
        """The hub commit that its rows are of; None for what is not from the hub."""
        return self.identity.get("revision")

    @property
    def here(self) -> bool:
        """Whether its rows can be read without a network."""
        return self.hub is None or present(self.hub)

    def located(self) -> tuple[DataFile, ...]:
        """Its files on this machine, downloaded if need be. Raises SourceMissing and BadData."""
        if self.hub is None:
            return self.files
        fetched = [(path, shown) for shown, path in download(self.hub)]
        if self.own is not None or self.text_field is not None:
            return tuple(DataFile(str(path), shown, ROWS, ROWS, None) for path, shown in fetched)
        return tuple(_expected(recognized(path, shown, set=self.name)) for path, shown in fetched)

    def rows(self) -> Iterator[Row]:
        """The rows of all files."""
        for file in self.located():
            yield from read_rows(Path(file.path), shown=file.shown)


def find(name: str, *, data_dir: Path | None, own: OwnSet | None = None, pins: Pins = NO_PINS) -> Source:
    """The source of a set of the catalog, or of one's `own`; a hub repository without a commit is that of `pins`.

    Raises SourceMissing, which says what was tried and how to fetch it; BadInput for a name that is no set; BadData
    where the folder has the set's files and they cannot be read.
    """
    if own is not None:
        return _find_own(name, own, data_dir, pins)
    if name not in DATASETS:
        raise BadInput(f"{name!r} is not a set; sets are {', '.join(DATASETS)}, and those under `sets:`")
    dataset = DATASETS[name]
    if dataset.generated:
        return Source(name=name, identity={"generated": f"{name}/{kvr.RECIPE}"}, where="generated from data_seed")
    tried: list[str] = []
    found = _in_folder(dataset, _folder(data_dir, tried), tried)
    if found is None and dataset.hub is not None and (files := _files_of(dataset.hub, dataset.splits, tried, pins)):
        found = Source(name=name, identity=files.identity(dataset.splits), where=_hub_words(files), hub=files)
    if found is None:
        raise SourceMissing(_missing(f"the set {name} ({dataset.about})", tried))
    return _pinnable(found, dataset.hub)


def find_words(*, data_dir: Path | None) -> Source:
    """The word list of the mixer `random`; raises SourceMissing."""
    listed = find_word_list(data_dir=data_dir)
    return Source(name="random", identity={"words": listed.digest}, where=listed.where, words=listed)


def find_text(mixer: str, *, text: Text | None, data_dir: Path | None, pins: Pins = NO_PINS) -> Source:
    """The corpus of a text mixer: those of the catalog, or for `text` the one that the sweep file describes.

    A corpus has no columns of its own, so in a folder it is known by its name: a file or folder called as the mixer.
    Raises SourceMissing and BadInput as `find`.
    """
    if mixer == "text":
        return _find_own_text(text, data_dir, pins)
    declared = MIXERS[mixer]
    tried: list[str] = []
    folder = _folder(data_dir, tried)
    if folder and (files := _called(mixer, folder)):
        source = _text_source(mixer, files, declared.field, f"{len(files)} files under {folder}")
        return _pinnable(source, declared.hub)
    if folder:
        tried.append(f"{folder}: no file or folder called {mixer}")
    if files := _files_of(declared.hub, ("train",), tried, pins):
        identity = {**files.identity(("train",)), "field": declared.field}
        source = Source(name=mixer, identity=identity, where=_hub_words(files), hub=files, text_field=declared.field)
        return _pinnable(source, declared.hub)
    raise SourceMissing(_missing(f"the corpus of the mixer {mixer} ({declared.about})", tried))


def find_mixer(mixer: str, *, text: Text | None, data_dir: Path | None, pins: Pins = NO_PINS) -> Source | None:
    """The source of a mixer, None for one that has none of its own (`none`, `replay`)."""
    match MIXERS[mixer].kind:
        case "words":
            return find_words(data_dir=data_dir)
        case "text":
            return find_text(mixer, text=text, data_dir=data_dir, pins=pins)
        case _:
            return None


def _folder(data_dir: Path | None, tried: list[str]) -> Path | None:
    if data_dir is None:
        tried.append(NO_FOLDER)
        return None
    if not Path(data_dir).is_dir():
        raise BadInput(f"data folder {data_dir} is not there; give an existing one with --data")
    return Path(data_dir)


def _in_folder(dataset: Dataset, folder: Path | None, tried: list[str]) -> Source | None:
    if folder is None:
        return None
    known = known_files(folder)
    files = [entry for entry in known if entry.set == dataset.name]
    used = _by_name(dataset, [entry for entry in files if entry.split is None or entry.split in dataset.splits])
    if not used:
        tried.append(_nothing_in(folder, dataset, files))
        return None
    side = _templates(known) if dataset.name == "lama" else {}
    identity = dict(origin_of(dataset.name, used) or {"files": files_digest(used, side)})
    where = f"{_files(len(used))} under {folder}"
    return Source(name=dataset.name, identity=identity, where=where, files=used, side=side)


def _by_name(dataset: Dataset, files: Sequence[DataFile]) -> tuple[DataFile, ...]:
    """Where some of a set's files are called as the set, only those: another's rows may have the same columns."""
    return tuple(entry for entry in files if _is_called(dataset, entry.shown)) or tuple(files)


def _templates(known: Sequence[DataFile]) -> dict[str, str]:
    rows = (row for entry in known if entry.set == "lama.templates" for row in entry.rows())
    return {row.text("relation"): row.text("template") for row in rows}


def _nothing_in(folder: Path, dataset: Dataset, files: Sequence[DataFile]) -> str:
    """Why a folder does not have a set; raises BadData where its files are there and broken."""
    if files:
        splits = ", ".join(sorted({entry.split for entry in files if entry.split}))
        return f"{folder}: only its {splits} split, and {' and '.join(dataset.splits)} is used"
    found = problems(folder)
    if theirs := next((problem for problem in found if _is_called(dataset, problem.shown)), None):
        raise BadData(theirs.reason)
    broken = next((problem.reason for problem in found if problem.broken), None)
    return f"{folder}: no file with its columns" + (f", and what cannot be read ({broken})" if broken else "")


def _is_called(dataset: Dataset, shown: str) -> bool:
    path = shown.lower().replace("-", "_")
    names = "|".join((dataset.name, *dataset.called))
    return re.search(rf"(?<![a-z0-9])({names})(?![a-z])", path) is not None


def _pinnable(source: Source, hub: Hub | None) -> Source:
    """A source with what its commit is written down under, where it is of this repository."""
    ours = hub is not None and source.identity.get("hub") == hub.id
    return replace(source, pin=pin_of("datasets", hub.id, hub.revision)) if ours else source


def _files_of(hub: Hub, splits: Sequence[str], tried: list[str], pins: Pins) -> HubFiles | None:
    pinned = pins.get(pin_of("datasets", hub.id, hub.revision) or "", hub.revision)
    hub = replace(hub, revision=pinned)
    if found := in_cache(hub, splits):
        return found
    at = f" at {hub.revision[:12]}" if hub.revision else ""
    tried.append(f"the Hugging Face cache: {hub.id} is not in it{at}")
    try:
        return on_hub(hub, splits)
    except Unreachable as error:
        tried.append(f"the hub: {error}")
        return None


def _find_own(name: str, own: OwnSet, data_dir: Path | None, pins: Pins) -> Source:
    own_sets.fields_of(name, own)
    recipe = {"own": dict(own_sets.recipe_of(own))}
    if own.path is not None:
        place = _place(f"sets.{name}.path", own.path, data_dir)
        files = tuple(entry for entry in _rows_of(place, TABLES) if place.is_file() or _of_split(entry, own.split))
        if not files:
            raise SourceMissing(f"sets.{name}.path: {place} holds no {', '.join(sorted(TABLES))} file of {own.split}")
        identity = {"files": files_digest(files, {}), **recipe}
        return Source(name=name, identity=identity, where=f"{_files(len(files))} at {place}", files=files, own=own)
    hub = Hub(id=own.hub, revision=own.revision, configs=(own.config,) if own.config else ())
    return _find_on_hub(name, hub, own.split, recipe, data_dir, f"sets.{name}", pins, own=own)


def _find_own_text(text: Text | None, data_dir: Path | None, pins: Pins) -> Source:
    if text is None:
        raise BadInput("the mixer text needs mixing.text: a path or a hub id, and the field that holds the text")
    recipe = {"field": text.field}
    if text.path is not None:
        place = _place("mixing.text.path", text.path, data_dir)
        files = _rows_of(place, TEXT_ENDINGS)
        if not files:
            raise SourceMissing(f"mixing.text.path: {place} holds no {', '.join(sorted(TEXT_ENDINGS))} file")
        return _text_source("text", files, text.field, f"{_files(len(files))} at {place}")
    hub = Hub(id=text.hub, revision=text.revision, configs=(text.config,) if text.config else (), rows=TEXT_ROWS)
    return _find_on_hub("text", hub, text.split, recipe, data_dir, "mixing.text", pins, text_field=text.field)


def _find_on_hub(
    name: str, hub: Hub, split: str, recipe: Mapping[str, Any], data_dir: Path | None, key: str, pins: Pins, **how: Any
) -> Source:
    """A set or corpus that a sweep names by its hub id: fetched into the data folder, in the cache, or on the hub."""
    tried: list[str] = []
    folder = _folder(data_dir, tried)
    if folder and (files := _rows_of(folder / name, TABLES)) and (fetched := origin_of(name, files)):
        if other := _another(fetched, hub, split):
            tried.append(f"{folder / name}: it was fetched as {other}")
        else:
            where = f"{_files(len(files))} at {folder / name}"
            source = Source(name=name, identity={**fetched, **recipe}, where=where, files=files, **how)
            return _pinnable(source, hub)
    if files := _files_of(hub, (split,), tried, pins):
        identity = {**files.identity((split,)), **recipe}
        source = Source(name=name, identity=identity, where=_hub_words(files), hub=files, **how)
        return _pinnable(source, hub)
    raise SourceMissing(_missing(f"{key} ({hub.id} on the hub)", tried))


def _another(fetched: Mapping[str, Any], hub: Hub, split: str) -> str | None:
    """How a folder was fetched, where that is not what a sweep asks for; None where it is."""
    id, revision, splits = fetched.get("hub"), fetched.get("revision", ""), fetched.get("split", [])
    at_commit = hub.revision is None or not COMMIT.fullmatch(hub.revision) or hub.revision == revision
    if id == hub.id and at_commit and splits == [split]:
        return None
    return f"{id} at {revision[:12]}, {' and '.join(splits)}"


def _place(key: str, path: str, data_dir: Path | None) -> Path:
    """A path as it is written, or under the data folder."""
    under = [Path(data_dir) / path, Path(data_dir) / Path(path).name] if data_dir else []
    places = list(dict.fromkeys([Path(path).expanduser(), *under]))
    if found := next((place for place in places if place.exists()), None):
        return found
    raise SourceMissing(f"{key}: there is no {' nor '.join(map(str, places))}")


def _called(mixer: str, folder: Path) -> tuple[DataFile, ...]:
    named = [path for path in sorted(folder.rglob("*")) if path.stem.lower().replace("-", "_") == mixer]
    return tuple(entry for path in named for entry in _rows_of(path, TEXT_ENDINGS))


def _rows_of(place: Path, endings: Collection[str]) -> tuple[DataFile, ...]:
    return tuple(DataFile(str(path), shown, ROWS, ROWS, None) for shown, path in tables_in(place, endings=endings))


def _of_split(entry: DataFile, split: str) -> bool:
    return split_of(entry.shown) in (None, split)


def _text_source(name: str, files: tuple[DataFile, ...], field: str, where: str) -> Source:
    identity = {**(origin_of(name, files) or {"files": files_digest(files, {})}), "field": field}
    return Source(name=name, identity=identity, where=where, files=files, text_field=field)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _hub_words(files: HubFiles) -> str:
    return f"{files.id} at {files.revision[:12]} on the hub"


def _missing(what: str, tried: Sequence[str]) -> str:
    listed = "".join(f"\n  tried: {line}" for line in tried)
    return (
        f"{what} is not here{listed}\n"
        f"  to get it, on a machine with network: raysweep data fetch SWEEP.yaml --to DIR, then give --data DIR here"
    )


def _expected(entry: DataFile | Problem) -> DataFile:
    if isinstance(entry, Problem):
        raise BadData(entry.reason)
    return entry
