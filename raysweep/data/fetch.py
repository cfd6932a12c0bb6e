"""Copying what a sweep needs into a folder that `--data` reads, for machines without a network.

Beside the files of a set stands where they come from (`.origin.json`). A folder that still holds exactly those bytes
has their origin's identity, so that a sweep planned with the hub and run from the folder has the same ids.
"""

from __future__ import annotations

import json
import logging
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raysweep.data.checks import named_in
from raysweep.data.folder import TABLES, DataFile
from raysweep.data.hub import offline
from raysweep.data.origin import write_origin
from raysweep.data.sources import NO_PINS, Pins, Source, find, find_mixer
from raysweep.errors import BadData, BadInput, RaysweepError, SourceMissing
from raysweep.sweep.catalog import DATASETS
from raysweep.sweep.spec import Sweep

__all__ = ["Fetched", "fetch"]

PATIENCE = 30.0  # seconds without a byte
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A line of `data fetch`: where a set's files are now, or the `error` that says why they are not."""

    name: str
    files: int = 0
    where: str = ""
    error: str = ""


def fetch(sweep: Sweep, *, to: Path, data_dir: Path | None, pins: Pins = NO_PINS) -> Iterator[Fetched]:
    """Copies every set and corpus that a sweep names, from wherever it is found, to a folder `to/<name>`.

    What names no commit is had at that of `pins`, which the sweep was planned with before.
    Generated sets need nothing. An error is a line too, and leaves nothing half done. Raises BadInput where `to` cannot
    be a folder.
    """
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"--to {to}: cannot be a folder ({error.strerror}); name one that is there or can be made"
        ) from None
    named = named_in(sweep)
    for name in named.sets:
        if name not in DATASETS or not DATASETS[name].generated:
            yield _told(name, lambda name=name: _fetch_set(name, sweep, to, data_dir, pins))
    for name in named.mixers:
        yield _told(name, lambda name=name: _fetch_mixer(name, sweep, to, data_dir, pins))


def _told(name: str, copy: Callable[[], int]) -> Fetched:
    try:
        files = copy()
    except RaysweepError as error:
        return Fetched(name=name, error=str(error))
    except OSError as error:
        return Fetched(name=name, error=f"{error.filename or name}: cannot be copied: {error.strerror or error}")
    return Fetched(name=name, files=files, where=name)


def _fetch_set(name: str, sweep: Sweep, to: Path, data_dir: Path | None, pins: Pins) -> int:
    own = sweep.sets.get(name)
    if own is not None and own.path is not None:
        return _copy_path(own.path, find(name, data_dir=data_dir, own=own, pins=pins), to)
    if own is None and (url := archive_url(name)) is not None and not _is_here(name, data_dir):
        return _aside(to / name, lambda folder: _unpack(name, url, folder))
    source = find(name, data_dir=data_dir, own=own, pins=pins)
    return _aside(to / name, lambda folder: _copy(source, folder))


def _fetch_mixer(name: str, sweep: Sweep, to: Path, data_dir: Path | None, pins: Pins) -> int:
    text = sweep.mixing.text
    source = find_mixer(name, text=text, data_dir=data_dir, pins=pins)
    if source.words is not None:
        return _aside(to / "nltk_words", lambda folder: _write_words(source, folder))
    if name == "text" and text is not None and text.path is not None:
        return _copy_path(text.path, source, to)
    return _aside(to / name, lambda folder: _copy(source, folder))


def archive_url(name: str) -> str | None:
    """Where a set of the catalog is had upstream, for one that the hub does not carry."""
    archive = DATASETS[name].archive
    return archive.url if archive else None


def _is_here(name: str, data_dir: Path | None) -> bool:
    try:
        find(name, data_dir=data_dir)
    except SourceMissing:
        return False
    return True


def _copy_path(path: str, source: Source, to: Path) -> int:
    """Copies a file or folder that a sweep names by its path to where `find` looks for that path under `--data`.

    A path that leads elsewhere (`/a/b`, `../b`, `~/b`) is looked for there by its name alone.
    """
    elsewhere = Path(path).is_absolute() or path.startswith("~") or ".." in Path(path).parts
    if elsewhere and Path(path).name in ("", ".."):
        raise BadInput(f"{path}: this path ends in no name to copy it under; write the folder's own name at its end")
    target = to / (Path(path).name if elsewhere else path)
    for entry in source.files:
        single = len(source.files) == 1 and entry.shown == Path(path).name
        place = target if single else target / entry.shown
        place.parent.mkdir(parents=True, exist_ok=True)
        if not (place.exists() and place.samefile(entry.path)):
            shutil.copyfile(entry.path, place)
    return len(source.files)


def _aside(folder: Path, fill: Callable[[Path], int]) -> int:
    """Fills a folder beside its place and then puts it there, whole."""
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        count = fill(beside)
        shutil.rmtree(folder, ignore_errors=True)
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return count


def _copy(source: Source, folder: Path) -> int:
    files = source.located()
    for entry in files:
        target = folder / _name_of(entry, source)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if Path(entry.path).is_dir() else shutil.copyfile)(entry.path, target)
    if source.side:
        rows = [json.dumps({"relation": key, "template": template}) for key, template in source.side.items()]
        (folder / "relations.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_origin(folder, name=source.name, identity=source.identity, where=source.where)
    return len(files)


def _name_of(entry: DataFile, source: Source) -> str:
    """A file's path in its repository, which says its split, or in the folder that it was found in."""
    if source.hub is None:
        return entry.shown.removeprefix(f"{source.name}/")
    return Path(entry.path).name if source.hub.rows else entry.shown.removeprefix(f"{source.hub.id}/")


def _write_words(source: Source, folder: Path) -> int:
    (folder / "words").mkdir()
    (folder / "words" / "en").write_text("".join(f"{word}\n" for word in source.words.words), encoding="utf-8")
    return 1


def _unpack(name: str, url: str, folder: Path) -> int:
    """Downloads an upstream archive and keeps the tables in it."""
    if offline():
        raise SourceMissing(f"{name}: {url} is not asked, HF_HUB_OFFLINE is set; run this where there is a network")
    archive = folder / Path(url).name
    log.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer, archive.open("wb") as out:
            shutil.copyfileobj(answer, out)
    except (urllib.error.URLError, OSError) as error:
        raise SourceMissing(
            f"{name}: {url} cannot be downloaded ({error}); have it by other means and put it into the --data folder"
        ) from error
    if archive.suffix != ".zip":
        return 1
    count = _extract(archive, folder)
    archive.unlink()
    return count


def _extract(archive: Path, folder: Path) -> int:
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [name for name in packed.namelist() if Path(name).suffix in TABLES]
            packed.extractall(folder, members)
    except zipfile.BadZipFile as error:
        raise BadData(f"{archive.name}: not a zip file ({error}); its address may have moved") from None
    return len(members)
