"""Stages and trials to put into stores, without any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysweep.plan.plan import Node
from raysweep.store.evaluations import Evaluated
from raysweep.store.store import FinishedStage, Store
from raysweep.sweep.stage import Selection, Stage, StopAt, Training

TRAINING = Training(
    lr=1e-3,
    batch_size=32,
    epochs=2,
    stop=StopAt(rule="epochs"),
    max_length=64,
    precision="fp32",
    order="reshuffled",
    last_batch="keep",
    label_padding="ignore",
    weight_decay=0.0,
    warmup=0.05,
    clip=1.0,
    betas=(0.9, 0.95),
)


def node(name: str = "1" * 16, *, letter: str = "a") -> Node:
    """A stage on kvr with any id."""
    selection = Selection(set="kvr", examples=8, data_seed=0, familiarity="all")
    stage = Stage(letter=letter, selection=selection, mixing=None, training=TRAINING, strip="both", seed=0)
    return Node(name, "kvr-none-s0", stage, None, {"recipe": 1})


def commit(
    store: Store,
    of: Node,
    content: bytes | None = b"weights",
    *,
    asked: Mapping[str, float] | None = None,
    record: Mapping[str, Any] | None = None,
    evaluations: Sequence[Evaluated] = (),
    token: int = 0,
) -> FinishedStage:
    """Commit a stage whose weights are two files of this content, or none."""
    rows = [
        {"of": "a" if name == "kvr" else None, "set": name, "accuracy": accuracy}
        for name, accuracy in (asked or {"kvr": 100.0}).items()
    ]
    with store.aside() as folder:
        if content is not None:
            write_weights(folder / "weights", content)
        whole = {"metrics": {"evaluations": rows}, **(record or {})}
        return store.commit_stage(
            of, folder, whole, curve=[{"step": 1, "loss": 0.5}], evaluations=evaluations, token=token
        )


def write_weights(folder: Path, content: bytes) -> None:
    """Two files, so that a mixture of two commits can be told."""
    folder.mkdir()
    (folder / "config.json").write_bytes(content)
    (folder / "model.safetensors").write_bytes(content)


def checkpoints(store: Path) -> set[str]:
    """What checkpoints there are in a store on disk, whose folders are renamed and removed at any time."""
    try:
        return {str(path) for path in (store / ".in-flight").rglob("progress.json")}
    except FileNotFoundError:
        return set()
