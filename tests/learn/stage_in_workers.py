"""One stage in this process of several, in which test_workers has set RANK, WORLD_SIZE and MASTER_*."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from raysweep.data.scoring import SCORERS
from raysweep.learn import memory, snapshot
from raysweep.learn.async_checkpoint import Background
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.learn.model import load_tokenizer
from raysweep.learn.train import train
from raysweep.sweep.spec import Every, Runtime
from raysweep.sweep.stage import total_steps


def killed(write, after):
    """A write that ends the process, as a kill would, in the middle of the file that comes as number `after`."""
    count = itertools.count(1)

    def one(state, path):
        if next(count) < after:
            return write(state, path)
        whole = io.BytesIO()
        torch.save(state, whole)
        path.write_bytes(whole.getvalue()[: whole.tell() // 2])
        os._exit(9)

    return one


def stage(said: dict[str, Any]) -> None:
    """Do the stage that `said` describes, and write to its `out` what came of it."""
    torch.set_num_threads(1)
    Background.free = property(lambda beside: beside.wait() or True)  # as if writing took no time: the same every run
    if said.get("killed_in_write") and os.environ["RANK"] == str(said["runtime"].get("workers", 1) - 1):
        snapshot.write = killed(snapshot.write, said["killed_in_write"])
    settings, examples, questions, out = (said[name] for name in ("training", "examples", "questions", "out"))
    runtime = Runtime(**said["runtime"])
    if said.get("layer_by_layer"):
        memory.asks_at_once = lambda *_, **__: False
    total = total_steps(len(examples), settings)
    tokenizer = load_tokenizer(said["folder"])
    with Engine(said["folder"], training=settings, total_steps=total, runtime=runtime) as engine:
        step, first = engine.step, []

        def dying(batch):
            if batch.step == said.get("dies_after"):
                sys.exit(3)
            return step(batch)

        engine.step = dying
        outcome = train(
            engine,
            examples,
            training=settings,
            seed=0,
            tokenizer=tokenizer,
            own=questions,
            probes={"a": questions},
            every=Every(epochs=1),
            checkpoints=said["checkpoints"][engine.ranks.rank] if "checkpoints" in said else None,
            checkpoint_every=said.get("checkpoint_every", 600.0),
            on_progress=lambda progress: first.append(progress.step),
        )
        answers = answer(engine, tokenizer, questions, scorer=SCORERS["exact"])
        engine.save(out)
        told = {
            "first": first[0],
            "losses": [row["loss"] for row in outcome.curve],
            "stopped_by": outcome.stopped_by,
            "accuracy": [row.get("accuracy_a") for row in outcome.curve],
            "facts": engine.facts(),
            "answers": [(one.id, one.text, one.score) for one in answers],
        }
    (Path(out) / f"told-{os.environ['RANK']}.json").write_text(json.dumps(told))
