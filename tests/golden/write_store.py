"""Write a golden store: what the code of today leaves in a store, for the code of tomorrow to read.

`python tests/golden/write_store.py FOLDER DATA` writes it into FOLDER, which has a `model/` and sweep files; DATA is a
folder of real data. A store that was written once is never written again: a new schema gets a folder of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import raysweep
from raysweep.api import load
from raysweep.store.store import Store
from raysweep.sweep.spec import Model
from raysweep.trial.execute import execute

SWEEPS = ("chains", "longer", "facts")
PENDING = {"mixer": "random/none", "seed": 1}
KILLED = {"mixer": "none/none", "seed": 1, "train.b.lr": 1.0e-3}


class _Killed(BaseException):
    """Ends a trial as a lost process does: its record still says `running`."""


def write_model(folder: Path) -> None:
    """A Llama of 20 thousand weights, with the tokenizer of `tiny`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from raysweep.learn.model import copy_tokenizer, prepare

    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    copy_tokenizer(prepare("tiny", None, cache=folder.parent / ".tiny"), folder)
    shutil.rmtree(folder.parent / ".tiny")


def fill(store: Store, data: Path) -> None:
    """Run all points of all sweeps but one that is left pending, and one that is killed in its second stage."""
    for name in SWEEPS:
        _, jobs = load(f"{name}.yaml").missing(store, data=data)
        for absolute in jobs.values():
            job = replace(absolute, model=Model(name="model"))  # a record names no path of this machine
            if not _is(job.point, PENDING) or name != "chains":
                with contextlib.suppress(_Killed):
                    execute(job, report=_kill if name == "chains" and _is(job.point, KILLED) else _nothing)


def expected(store: Path) -> dict[str, Any]:
    """What is read of the store, as JSON."""
    read = {kind: getattr(raysweep, kind)(SWEEPS, store=store) for kind in ("trials", "evals", "predictions", "curves")}
    rows = {kind: json.loads(frame.to_json(orient="records", date_format="iso")) for kind, frame in read.items()}
    return {**rows, "tables": {name: str(raysweep.table(name, store=store)) for name in SWEEPS}}


def _is(point: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(point[axis] == value for axis, value in wanted.items())


def _nothing(event: Mapping[str, Any]) -> None:
    pass


def _kill(event: Mapping[str, Any]) -> None:
    if event.get("stage") == 2:
        raise _Killed


if __name__ == "__main__":
    folder, data = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    os.chdir(folder)
    if not Path("model").exists():
        write_model(folder / "model")
    fill(Store("store"), data)
    shutil.rmtree("store/.in-flight", ignore_errors=True)
    Path("expected.json").write_text(json.dumps(expected(folder / "store"), indent=1) + "\n")
