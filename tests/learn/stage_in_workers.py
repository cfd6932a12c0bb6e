"""One stage in this process of several: started by test_workers with RANK, WORLD_SIZE and MASTER_* set."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import torch

from raysweep.data.scoring import SCORERS
from raysweep.learn.batches import total_steps
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.learn.model import load_tokenizer
from raysweep.learn.train import train
from raysweep.spec import Every, Runtime


def main(job: Path) -> None:
    torch.set_num_threads(1)
    said = pickle.loads(job.read_bytes())
    settings, examples, questions, out = (said[name] for name in ("training", "examples", "questions", "out"))
    runtime = Runtime(**said["runtime"])
    total = total_steps(len(examples), settings)
    with Engine(said["folder"], training=settings, total_steps=total, runtime=runtime) as engine:
        step, first = engine.step, []

        def dying(batch):
            if batch.step == said.get("dies_after"):
                sys.exit(3)
            return step(batch)

        engine.step = dying
        outcome = train(
            engine, examples, training=settings, seed=0, own=questions, probes={"a": questions}, every=Every(epochs=1),
            checkpoints=said["checkpoints"][engine.ranks.rank] if "checkpoints" in said else None,
            checkpoint_every=said.get("checkpoint_every", 600.0),
            on_progress=lambda progress: first.append(progress.step),
        )
        answers = answer(engine, load_tokenizer(said["folder"]), questions, scorer=SCORERS["exact"])
        engine.save(out)
        told = {
            "first": first[0], "losses": [row["loss"] for row in outcome.curve], "stopped_by": outcome.stopped_by,
            "accuracy": [row.get("accuracy_a") for row in outcome.curve], "facts": engine.facts(),
            "answers": [(one.id, one.text, one.score) for one in answers],
        }
    (Path(out) / f"told-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
