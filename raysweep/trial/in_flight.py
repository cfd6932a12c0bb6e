"""Where checkpoints of a stage in flight lie: where every node that may go on with it can reach them.

A store that is a folder holds them itself: one disk, or one that all nodes see. From any other place they are brought
to a folder of each machine, and put there as they come:

    <store>/.in-flight/<stage>/<token>/step-<n>/     the files of all machines
    <store>/.in-flight/<stage>/<token>/parts/        an empty file for each machine that has put all of its own

The token is that of the lease under which the stage is trained. Who takes a stage over has a higher one: it goes on from
copies of what lower ones left, and removes that once it has checkpoints of its own. Nobody touches a higher token's.

A machine writes checkpoints on its own disk; `Mirror` copies each that is whole, beside the training, and keeps the newest and
the one before it. A name in `parts/` is `<step>.<machines>.<attempt>.<machine>`: a step counts once all machines of one attempt
have put theirs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from raysweep.learn.checkpoints import LIMIT, RECORD, damage
from raysweep.learn.ranks import Ranks
from raysweep.plan.plan import Node
from raysweep.store.files import Files
from raysweep.store.store import Store

__all__ = ["Mirror", "in_flight"]

NAME = ".machine"
LOOK = 1.0  # seconds between two looks at the disk

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def in_flight(store: Store, node: Node, ranks: Ranks, *, token: int) -> Iterator[Path]:
    """This machine's folder for the checkpoints of a stage; every rank enters and leaves.

    All are gone once the block ends; they stay when it raises, for the next attempt, on whatever nodes that runs.
    """
    with store.in_flight(node, token) as folder:
        with ranks.together():
            if ranks.local_rank == 0:
                take_up(folder)
        if ranks.local_rank == 0:
            drop_lower(folder)
        if store.files.local is not None:
            yield folder
            ranks.meet()  # nobody writes any more
            return
        with _mirrored(store, node, folder, ranks):
            yield folder
        ranks.meet()  # nobody puts anything any more
        if ranks.rank == 0:
            _remove(store.files, f".in-flight/{node.id}", below=token + 1)
            store.files.remove_empty(f".in-flight/{node.id}")


def take_up(folder: Path) -> None:
    """Give a token's folder the checkpoints of lower tokens on this machine, under names of its own of the same bytes.

    Whoever was at work there may still write: only below its own name. Several may take up at once.
    """
    token = int(folder.name)
    lower = [one for one in folder.parent.iterdir() if one.name.isdigit() and int(one.name) < token]
    for old in [*sorted(lower, key=lambda one: -int(one.name)), folder.parent]:  # earlier code had no tokens
        for step in old.glob("step-*"):
            if (step / RECORD).is_file() and not (folder / step.name).exists():
                _link_all(step, folder / step.name)
        if (old / LIMIT).is_file() and not (folder / LIMIT).exists():
            with contextlib.suppress(FileExistsError):
                os.link(old / LIMIT, folder / LIMIT)


def _link_all(source: Path, target: Path) -> None:
    aside = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        for name in _names(source):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(source / name, aside / name)
        aside.rename(target)
    except OSError as error:  # removed by its holder meanwhile, or another of these workers was first
        _log.debug("%s was not taken up: %s", source, error)
        shutil.rmtree(aside, ignore_errors=True)


def drop_lower(folder: Path) -> None:
    """Remove what lower tokens left on this machine, where all that could be gone on from was taken up."""
    token = int(folder.name)
    for old in folder.parent.iterdir():
        if old.name.isdigit() and int(old.name) < token:
            steps = [step.name for step in old.glob("step-*") if (step / RECORD).is_file()]
            if all((folder / name).exists() for name in steps):
                shutil.rmtree(old, ignore_errors=True)


def _tokens(files: Files, home: str, *, below: int) -> list[str]:
    """The folders of tokens in a stage's place, the highest first."""
    tokens = sorted((int(name) for name in files.names(home) if name.isdigit() and int(name) < below), reverse=True)
    return [f"{home}/{token}" for token in tokens]


def _remove(files: Files, home: str, *, below: int) -> None:
    """Remove what tokens below one left, and what earlier code did."""
    formerly = [f"{home}/{name}" for name in files.names(home) if not name.isdigit()]
    for path in [*_tokens(files, home, below=below), *formerly]:
        files.remove(path)


@contextlib.contextmanager
def _mirrored(store: Store, node: Node, folder: Path, ranks: Ranks) -> Iterator[None]:
    """The first rank of every machine mirrors; all begin when what there was is here."""
    attempt = ranks.broadcast(uuid.uuid4().hex[:12])
    machines = ranks.gather(_machine(folder))
    machine = machines[ranks.rank]
    if machines.index(machine) != ranks.rank:
        ranks.meet()
        yield
        return
    mirror = Mirror(
        store.files,
        f".in-flight/{node.id}",
        folder,
        last=RECORD,
        attempt=attempt,
        machine=machine,
        machines=len(set(machines)),
    )
    mirror.bring()
    ranks.meet()
    with mirror:
        yield


def _machine(folder: Path) -> str:
    """A name that all have in common who see this folder, and nobody else."""
    own = folder / f"{NAME}-{uuid.uuid4().hex[:12]}"
    own.write_text(own.name.removeprefix(f"{NAME}-"))
    with contextlib.suppress(FileExistsError):
        os.link(own, folder / NAME)
    own.unlink()
    return (folder / NAME).read_text()


class Mirror:
    """One machine's side of a stage: brings what is there at first; while it is entered, puts what is new.

    `home` is the stage's place in the store, `folder` this machine's, named by the token, and `last` the name of the file
    that a whole `step-<n>` in it has. `machines` train the stage together in this `attempt`; `machine` names this one. What
    goes wrong far away is said, and stops no training.
    """

    def __init__(
        self, files: Files, home: str, folder: Path, *, last: str, attempt: str, machine: str, machines: int
    ) -> None:
        self._files = files
        self._home = home
        self._path = f"{home}/{folder.name}"
        self._token = int(folder.name)
        self._folder = folder
        self._last = last
        self._attempt = attempt
        self._machine = machine
        self._machines = machines
        self._lower_gone = False
        self._there = -1  # the step that was put last
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="raysweep-mirror", daemon=True)

    def bring(self) -> None:
        """Bring the newest whole checkpoint, unless this machine has it, or works alone and has a newer one.

        It may be one of a lower token. A machine's own one has the same bytes: it put them there.
        """
        try:
            sources = [self._home, *reversed(_tokens(self._files, self._home, below=self._token + 1))]
            found = {step: path for path in sources for step in self._whole(path)}
            newest = max(found, default=-1)
            self._there = newest if found.get(newest) == self._path else -1
            next(filter(None, (self._has_or_brings(step, found[step]) for step in sorted(found, reverse=True))), None)
        except Exception as error:  # whatever the library of such a place raises
            _log.warning("no checkpoint could be brought from %s/%s: %s", self._files.name, self._home, error)

    def _has_or_brings(self, step: int, path: str) -> bool:
        """Whether this machine has a checkpoint, or works alone and has a newer one, or now has it, as it was written."""
        if self._has(step) or (self._machines == 1 and self._newest() > step):
            return True
        checkpoint = self._folder / f"step-{step}"
        self._files.bring(f"{path}/{checkpoint.name}", checkpoint)
        if problem := damage(checkpoint):
            _log.warning("%s/%s is not used: %s; the one before it is brought", path, checkpoint.name, problem)
            shutil.rmtree(checkpoint, ignore_errors=True)
            return False
        _log.info("the checkpoint after step %d was brought from %s", step, self._files.name)
        return True

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK):
            step = self._newest()
            if step in (-1, self._there):
                continue
            try:
                self._put(step)
            except Exception as error:  # as above; the next look tries again
                _log.warning("the checkpoint after step %d could not be put into %s: %s", step, self._files.name, error)

    def _put(self, step: int) -> None:
        pinned = self._pin(step)
        try:
            for name in sorted(_names(pinned), key=lambda name: (name == self._last, name)):
                if self._ended.is_set():
                    return
                self._files.put_file(pinned / name, f"{self._path}/step-{step}/{name}")
        finally:
            shutil.rmtree(pinned, ignore_errors=True)
        self._files.write_bytes(f"{self._path}/parts/{step}.{self._machines}.{self._attempt}.{self._machine}", b"")
        self._there = step
        self._drop_older()

    def _pin(self, step: int) -> Path:
        """The files of a checkpoint under other names of the same bytes: it may be removed while it is read."""
        whole, pinned = self._folder / f"step-{step}", self._folder / f".put-{step}"
        shutil.rmtree(pinned, ignore_errors=True)
        for name in _names(whole):
            (pinned / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(whole / name, pinned / name)
        return pinned

    def _drop_older(self) -> None:
        """What is older than the newest whole checkpoint and the one before it is of no use, and what lower tokens left
        neither."""
        stay = sorted(set(self._whole(self._path)))[-2:]
        if not stay:
            return
        for name in self._files.names(self._path):
            if name.startswith("step-") and int(name.removeprefix("step-")) < stay[0]:
                self._files.remove(f"{self._path}/{name}")
        for name in self._files.names(f"{self._path}/parts"):
            if int(name.split(".")[0]) < stay[0]:
                self._files.remove(f"{self._path}/parts/{name}")
        if not self._lower_gone:
            _remove(self._files, self._home, below=self._token)
            self._lower_gone = True

    def _whole(self, path: str) -> list[int]:
        """The steps that all machines of an attempt have put below a path."""
        parts = Counter(tuple(name.split(".")[:3]) for name in self._files.names(f"{path}/parts"))
        return [int(step) for (step, machines, _), count in parts.items() if count >= int(machines)]

    def _newest(self) -> int:
        steps = [
            int(found.name.removeprefix("step-"))
            for found in self._folder.glob("step-*")
            if (found / self._last).is_file()
        ]
        return max(steps, default=-1)

    def _has(self, step: int) -> bool:
        return (self._folder / f"step-{step}" / self._last).is_file()


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
