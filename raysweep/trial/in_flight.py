"""Where checkpoints of a stage in flight lie: where every node that may go on with it can reach them.

A store that is a folder holds them itself: one disk, or one that all nodes see. From any other place they are brought
to a folder of each machine, and put there as they come (`mirror`).
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from raysweep.learn.checkpoints import RECORD
from raysweep.learn.ranks import Ranks
from raysweep.plan.plan import Node
from raysweep.store.store import Store
from raysweep.trial.mirror import Mirror

__all__ = ["in_flight"]

NAME = ".machine"


@contextlib.contextmanager
def in_flight(store: Store, node: Node, ranks: Ranks) -> Iterator[Path]:
    """This machine's folder for the checkpoints of a stage; every rank enters and leaves.

    All are gone once the block ends; they stay when it raises, for the next attempt, on whatever nodes that runs.
    """
    with store.in_flight(node) as folder:
        if store.files.local is not None:
            yield folder
            return
        with _mirrored(store, node, folder, ranks):
            yield folder
        ranks.barrier()  # nobody puts anything any more
        if ranks.rank == 0:
            store.files.remove(f".in-flight/{node.id}")


@contextlib.contextmanager
def _mirrored(store: Store, node: Node, folder: Path, ranks: Ranks) -> Iterator[None]:
    """The first rank of every machine mirrors; all begin when what there was is here."""
    attempt = ranks.broadcast(uuid.uuid4().hex[:12])
    machines = ranks.gather(_machine(folder))
    machine = machines[ranks.rank]
    if machines.index(machine) != ranks.rank:
        ranks.barrier()
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
    ranks.barrier()
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
