"""How long a checkpoint holds up training: `held_up` is a write between two steps ÷ the copy that is taken there instead.

A Llama of 50 million weights, float32, ZeRO-3 on one worker. `beside`: a step alone ÷ a step while a
checkpoint is written, which is what the writing thread costs the training.
"""

from __future__ import annotations

import logging
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from run import machine

from raysweep.data.encoding import Encoded
from raysweep.sweep.stage import StopAt, Training

EXAMPLES, LENGTH = 4, 32
SETTINGS = Training(
    lr=1e-4,
    batch_size=EXAMPLES,
    epochs=1,
    stop=StopAt(rule="epochs"),
    max_length=LENGTH,
    precision="fp32",
    order="fixed",
    last_batch="drop",
    label_padding="ignore",
    weight_decay=0.0,
    warmup=0.0,
    clip=1.0,
    betas=(0.9, 0.95),
)


def measure(*, data_dir: Path, repeats: int = 3) -> dict[str, Any]:
    """Medians in seconds of the copy, the write and the steps; `bytes` is what is on disk."""
    from raysweep.learn.batches import Batch
    from raysweep.learn.checkpoints import State, take
    from raysweep.learn.engine import Engine
    from raysweep.sweep.spec import Runtime

    logging.disable(logging.WARNING)
    tokens = np.random.default_rng(0).integers(1, 1000, LENGTH, dtype=np.int32)
    batch = Batch(0, 0, tuple(Encoded(str(index), tokens, np.arange(LENGTH) > 0) for index in range(EXAMPLES)))
    taken: dict[str, list[float]] = {"copy": [], "write": [], "step": [], "step_beside": []}
    with tempfile.TemporaryDirectory() as place:
        folder, kept = _model(Path(place)), Path(place) / "kept"
        with Engine(folder, training=SETTINGS, total_steps=1000, runtime=Runtime(zero=3)) as engine:
            for _ in range(2):
                engine.step(batch)
            for number in range(repeats):
                taken["step"] += [_seconds(engine.step, batch) for _ in range(3)]
                began = time.perf_counter()
                one = take(kept, engine, State(step=number))
                taken["copy"].append(time.perf_counter() - began)
                taken["write"].append(_seconds(one.write))
                beside = threading.Thread(target=one.write)
                beside.start()
                while beside.is_alive():
                    taken["step_beside"].append(_seconds(engine.step, batch))
                one.publish()
            size = sum(file.stat().st_size for file in one.target.rglob("*") if file.is_file())
        shutil.rmtree(kept)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    figures = {f"{name}_seconds": round(value, 4) for name, value in seconds.items()} | {"bytes": size}
    ratios = {
        "held_up": round((seconds["copy"] + seconds["write"]) / seconds["copy"], 1),
        "beside": round(seconds["step"] / seconds["step_beside"], 2),
    }
    return {"name": "checkpoint", "ratios": ratios, "figures": figures, "machine": machine()}


def _seconds(work: Any, *arguments: Any) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def _model(place: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=7,
        num_attention_heads=12,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(place / "model")
    return place / "model"
