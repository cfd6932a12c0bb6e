"""Training speed, side by side: same model, batches and optimizer; every contender in a process of its own, in turn.

- `ours`: the engine, ZeRO-3 on one worker
- `padded`: a plain PyTorch loop, padded to the longest example of the set (the released code's rule), no DeepSpeed
- `trainer_zero3`: transformers.Trainer with its padding collator and DeepSpeed ZeRO-3 (needs accelerate)
- `trainer`: the same without DeepSpeed
- `trainer_grouped`: the same with `train_sampling_strategy="group_by_length"`, which Trainer's users can switch on. It
  changes which examples share a batch, so its losses are others; ours keeps the batches as they are. Grouped are the
  examples after the warm-up, which are the same for all
- `trainer_packed`: on a GPU alone, the same with `DataCollatorWithFlattening`, flash-attention where it is installed, and
  Liger's kernels where `liger_kernel` is
- `plain`: a plain PyTorch loop, padded to the longest of the batch, no DeepSpeed

Stages: `remix`, kvr pairs and twice as many random word sequences; `long_tail`, gsm8k (lengths alike where it is not
here).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from run import machine, turns

from raysweep.data.encoding import Encoded, encode
from raysweep.data.examples import candidates
from raysweep.data.mixing import draw
from raysweep.data.sources import find, find_words
from raysweep.errors import SourceMissing
from raysweep.sweep.stage import Mixing, StopAt, Training

CONTENDERS = ("ours", "padded", "trainer_zero3", "trainer", "plain", "trainer_grouped", "trainer_packed")
STEPS = {"remix": 12, "long_tail": 4}
WARM_UP = 2
ZERO_3 = {
    "zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto",
    "gradient_accumulation_steps": "auto", "zero_allow_untested_optimizer": True, "steps_per_print": 10**9,
}  # fmt: skip
SETTINGS = Training(
    lr=1e-4,
    batch_size=32,
    epochs=1,
    stop=StopAt(rule="epochs"),
    max_length=2048,
    precision="fp32",
    order="reshuffled",
    last_batch="drop",
    label_padding="ignore",
    weight_decay=0.0,
    warmup=0.05,
    clip=1.0,
    betas=(0.9, 0.95),
)


def measure(*, data_dir: Path, repeats: int = 3) -> dict[str, Any]:
    """Ratios of seconds a step, reference ÷ ours, and useful tokens a second of each."""
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    contenders = [name for name in CONTENDERS if _can_run(name)]
    with tempfile.TemporaryDirectory() as cache:
        runs = {stage: {name: [] for name in contenders} for stage in STEPS}
        for _, stage, name in turns(product(range(repeats), STEPS, contenders)):
            runs[stage][name].append(_in_own_process(name, stage, data_dir, cache))
        for stage, told in runs.items():
            figures |= _figures(stage, told)
            ours = figures[f"ours_{stage}_seconds"]
            for name in contenders[1:]:
                ratios[f"{name}_{stage}"] = round(figures[f"{name}_{stage}_seconds"] / ours, 3)
    return {"name": "train", "ratios": ratios, "figures": figures, "machine": machine()}


def _can_run(name: str) -> bool:
    import torch

    if name == "trainer_packed" and not torch.cuda.is_available():
        return False
    return not name.startswith("trainer") or importlib.util.find_spec("accelerate") is not None


def _figures(stage: str, runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    figures = {}
    for name, told in runs.items():
        seconds = [one["seconds"] for one in told]
        figures[f"{name}_{stage}_seconds"] = round(statistics.median(seconds), 4)
        figures[f"{name}_{stage}_spread"] = round(max(seconds) - min(seconds), 4)
        figures[f"{name}_{stage}_tokens_per_second"] = round(told[0]["tokens"] / statistics.median(seconds))
        figures[f"{name}_{stage}_loss"] = round(told[0]["loss"], 5)
    return figures


def _in_own_process(name: str, stage: str, data_dir: Path, cache: str) -> dict[str, float]:
    command = [sys.executable, __file__, name, stage, str(data_dir), cache]
    path = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} on {stage}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def examples_of(stage: str, tokenizer: Any, data_dir: Path) -> list[Encoded]:
    """Enough examples of a stage for its steps, in training order."""
    wanted = (STEPS[stage] + WARM_UP) * SETTINGS.batch_size
    match stage:
        case "remix":
            keys = list(islice(candidates(find("kvr", data_dir=None), data_seed=0), wanted // 3 + 1))
            mixing = Mixing(source="random", ratio=2.0, data_seed=0, words=50, cut="described", overlap="drop")
            words = find_words(data_dir=data_dir if data_dir.is_dir() else None)
            mixed = draw(
                mixing, count=2 * len(keys), source=words, avoid=keys, fits=lambda example: True, replay_from=()
            ).examples
            found = [encode(example, tokenizer, strip=True) for example in (*keys, *mixed)]
        case _:
            found = _long_tail(wanted, tokenizer, data_dir)
    random.Random(0).shuffle(found)
    return found[:wanted]


def _long_tail(wanted: int, tokenizer: Any, data_dir: Path) -> list[Encoded]:
    try:
        source = find("gsm8k", data_dir=data_dir if data_dir.is_dir() else None)
        return [encode(one, tokenizer, strip=True) for one in islice(candidates(source, data_seed=0), wanted)]
    except SourceMissing:
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.lognormal(5.6, 0.5, wanted), 40, 2000).astype(int)
        return [
            Encoded(str(index), rng.integers(1, 1000, length, dtype=np.int32), np.arange(length) > length // 2)
            for index, length in enumerate(lengths)
        ]


def _compete(name: str, stage: str, data_dir: Path, cache: Path) -> dict[str, float]:
    """One contender's median seconds a step after the warm-up, mean useful tokens a step, and its last loss."""
    import torch

    from raysweep.learn.model import load_tokenizer, prepare

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    logging.disable(logging.WARNING)
    folder = prepare("tiny", None, cache=cache)
    examples = examples_of(stage, load_tokenizer(folder), data_dir)
    contender: Callable[[Path, list[Encoded]], tuple[list[float], float]] = {
        "ours": _ours,
        "padded": _padded,
        "plain": _plain,
        "trainer": _trainer,
        "trainer_grouped": partial(_trainer, grouped=True),
        "trainer_packed": partial(_trainer, packed=True),
        "trainer_zero3": partial(_trainer, deepspeed=ZERO_3),
    }[name]
    seconds, loss = contender(folder, examples)
    used = examples[WARM_UP * SETTINGS.batch_size :]
    measured = seconds[WARM_UP:]
    return {"seconds": sum(measured) / len(measured), "tokens": sum(map(len, used)) / len(measured), "loss": loss}


def _clocked(losses: Iterator[float]) -> tuple[list[float], float]:
    """Seconds of each step, and the last loss."""
    marks, last = [time.perf_counter()], float("nan")
    for loss in losses:
        marks.append(time.perf_counter())
        last = loss
    return [after - before for before, after in zip(marks, marks[1:], strict=False)], last


def _batches(examples: list[Encoded]) -> Iterator[list[Encoded]]:
    for start in range(0, len(examples), SETTINGS.batch_size):
        yield examples[start : start + SETTINGS.batch_size]


def _ours(folder: Path, examples: list[Encoded]) -> tuple[list[float], float]:
    return _clocked(_our_steps(folder, examples))


def _our_steps(folder: Path, examples: list[Encoded]) -> Iterator[float]:
    from raysweep.learn.batches import Batch
    from raysweep.learn.engine import Engine
    from raysweep.sweep.spec import Runtime

    total = len(examples) // SETTINGS.batch_size
    training = replace(SETTINGS, precision=_precision())
    with Engine(folder, training=training, total_steps=total, runtime=Runtime(zero=3)) as engine:
        for step, chosen in enumerate(_batches(examples)):
            batch = Batch(step, 0, tuple(chosen))
            yield engine.step(batch).loss_sum / batch.target_tokens


def _plain(folder: Path, examples: list[Encoded]) -> tuple[list[float], float]:
    return _clocked(_loop(folder, examples, width=None))


def _padded(folder: Path, examples: list[Encoded]) -> tuple[list[float], float]:
    return _clocked(_loop(folder, examples, width=max(map(len, examples))))


def _loop(folder: Path, examples: list[Encoded], *, width: int | None) -> Iterator[float]:
    import torch
    from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_pretrained(folder).train().to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=SETTINGS.lr, betas=SETTINGS.betas, weight_decay=0.0, fused=True
    )
    total = len(examples) // SETTINGS.batch_size
    schedule = get_cosine_schedule_with_warmup(optimizer, -(-total * 5 // 100), total)
    for chosen in _batches(examples):
        given = {name: tensor.to(device) for name, tensor in _tensors(chosen, width).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=_precision() == "bf16"):
            loss = model(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()


def _tensors(chosen: list[Encoded], width: int | None) -> dict[str, Any]:
    import torch

    width = width or max(map(len, chosen))
    ids = torch.zeros(len(chosen), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, one in enumerate(chosen):
        tokens = torch.from_numpy(one.tokens).long()
        ids[row, : len(one)], mask[row, : len(one)] = tokens, 1
        labels[row, : len(one)] = torch.where(torch.from_numpy(one.targets), tokens, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _trainer(
    folder: Path,
    examples: list[Encoded],
    *,
    deepspeed: dict[str, Any] | None = None,
    grouped: bool = False,
    packed: bool = False,
) -> tuple[list[float], float]:
    import torch
    from transformers import (
        AutoModelForCausalLM,
        DataCollatorWithFlattening,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers.trainer_pt_utils import LengthGroupedSampler
    from transformers.utils import is_flash_attn_2_available

    from raysweep.learn import zero

    if deepspeed:
        _alone()
    zero._deepspeed()  # without the shared-memory op that takes a minute to build: the same for all contenders
    marks: list[float] = []
    rows = [_row(one) for one in examples]
    warm = WARM_UP * SETTINGS.batch_size

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            if not grouped:
                return torch.utils.data.SequentialSampler(self.train_dataset)
            after = LengthGroupedSampler(SETTINGS.batch_size, dataset=rows[warm:])  # as `group_by_length` makes it
            return [*range(warm), *(warm + index for index in after)]

    flash = packed and is_flash_attn_2_available()
    flattening = DataCollatorWithFlattening(return_flash_attn_kwargs=flash)
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=SETTINGS.batch_size,
            num_train_epochs=1,
            learning_rate=SETTINGS.lr,
            lr_scheduler_type="cosine",
            warmup_steps=SETTINGS.warmup,
            max_grad_norm=SETTINGS.clip,
            adam_beta2=0.95,
            optim="adamw_torch_fused",
            use_cpu=not torch.cuda.is_available(),
            bf16=_precision() == "bf16",
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            dataloader_drop_last=True,
            remove_unused_columns=False,
            use_liger_kernel=packed and importlib.util.find_spec("liger_kernel") is not None,
            deepspeed=deepspeed,
        )
        trainer = InOrder(
            model=AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="flash_attention_2" if flash else None
            ),
            args=arguments,
            train_dataset=rows,
            data_collator=flattening if packed else _padding,
            callbacks=[Clock()],
        )
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return [after - before for before, after in zip([marks[0], *marks], marks, strict=False)], losses[-1]


def _precision() -> str:
    """What all contenders train in: float32 on a CPU."""
    import torch

    return "bf16" if torch.cuda.is_available() else "fp32"


def _row(one: Encoded) -> dict[str, list[int]]:
    """An example as Trainer's own collators and samplers take it."""
    labels = np.where(one.targets, one.tokens, -100)
    return {"input_ids": one.tokens.tolist(), "labels": labels.tolist()}


def _padding(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    import torch

    parts = {
        "input_ids": ([row["input_ids"] for row in rows], 0),
        "attention_mask": ([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": ([row["labels"] for row in rows], -100),
    }
    return {
        name: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(values) for values in part], batch_first=True, padding_value=padding
        )
        for name, (part, padding) in parts.items()
    }


def _alone() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("stage", choices=STEPS)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("cache", type=Path)
    chosen = parser.parse_args(arguments)
    print(json.dumps(_compete(chosen.name, chosen.stage, chosen.data_dir, chosen.cache)))


if __name__ == "__main__":
    main(sys.argv[1:])
