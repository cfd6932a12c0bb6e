"""A trained model out of the store: an ordinary Transformers folder with a model card and the records it came with."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysweep.errors import BadInput
from raysweep.store.card import card
from raysweep.store.stages import FinishedStage
from raysweep.store.store import Store

__all__ = ["export"]


def export(store: Store, trial: str, to: Path, *, stage: int | None = None) -> Path:
    """Copy the model of a trial after one of its stages (1 is the first; None the last) into a new folder.

    The folder is one that `from_pretrained` reads: config, safetensors, tokenizer; beside them README.md, a model card,
    and raysweep.json, the records. The weights are compared with their digests first. Raises BadInput where there is no
    such trial or stage, the weights were not kept, or `to` is there already.
    """
    record = store.trial(trial)
    if record is None or record.get("status") != "done":
        state = f"is {record['status']}" if record else "is not in the store"
        raise BadInput(
            f"trial {trial!r} {state} ({store.files.name}); give the id of a finished trial, as `raysweep results NAME` shows it"
        )
    chain = record["stages"]
    if stage is not None and not 1 <= stage <= len(chain):
        raise BadInput(f"--stage {stage}: trial {trial} has the stages 1 to {len(chain)}")
    finished = _finished(store, chain[: stage or len(chain)])
    if to.exists():
        raise BadInput(f"--to {to}: is there already; give a folder that is not there yet")
    with tempfile.TemporaryDirectory(prefix="raysweep-export-") as scratch:
        weights = store.weights(finished[-1], Path(scratch))
        if weights is None:
            raise BadInput(_without_weights(finished[-1], record))
        _write(weights, to, record, [one.record for one in finished])
    return to


def _finished(store: Store, chain: list[str]) -> list[FinishedStage]:
    folders = store.stage_folders()
    found = [store.stage_in(folders[name]) if name in folders else None for name in chain]
    if missing := [name for name, one in zip(chain, found, strict=True) if one is None]:
        raise BadInput(f"stage {missing[0]} is not in the store {store.files.name}; running the sweep again makes it")
    return [one for one in found if one is not None]


def _write(weights: Path, to: Path, trial: Mapping[str, Any], stages: list[Mapping[str, Any]]) -> None:
    """Aside, then renamed: a folder that is there is whole."""
    to.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
    try:
        folder = aside / "model"
        shutil.copytree(weights, folder)
        (folder / "README.md").write_text(card(trial, stages), encoding="utf-8")
        (folder / "raysweep.json").write_text(
            json.dumps({"trial": trial, "stages": stages}, indent=1), encoding="utf-8"
        )
        folder.rename(to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _without_weights(stage: FinishedStage, trial: Mapping[str, Any]) -> str:
    seconds = stage.record["metrics"].get("seconds")
    cost = f", about {seconds:.0f} worker-seconds" if seconds else ""
    return (
        f"the weights of stage {stage.folder} of trial {trial['id']} were not kept (a sweep keeps those that other stages start "
        f"from, unless it says `keep: all`); running it again with --set keep=all trains that stage again{cost}"
    )
