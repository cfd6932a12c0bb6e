"""The parts of `gpu.py`, each in a process of its own: `gpu_parts.py PART FILE PLACE [--small]`, begun by a line on stdin
that says how many seconds it may take."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
import transformers
from devices import gib, offload_that_fits, peak_of
from gpu import write
from run import machine
from shapes import QUARTERS, SHAPES, Llama, write_random
from throughput import TRAINING, WARM_UP, Watched, clocked, memory_of, work

from raysweep.data.encoding import Encoded, Question
from raysweep.data.scoring import SCORERS
from raysweep.errors import TrialFailed
from raysweep.learn import packing, zero
from raysweep.learn.attention import implementation
from raysweep.learn.batches import Batch
from raysweep.learn.checkpoints import RECORD
from raysweep.learn.engine import ROUNDING, Engine
from raysweep.learn.loss import Scored
from raysweep.learn.memory import free_memory
from raysweep.learn.model import load_tokenizer, prepare
from raysweep.learn.ranks import connect, meeting_place
from raysweep.learn.train import train
from raysweep.store.provenance import here
from raysweep.sweep.spec import Every, Runtime

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = replace(SHAPES["small"], hidden=64, heads=2, keys=2, intermediate=128)
LLAMAS = SHAPES | QUARTERS | {"smallest": SMALLEST}
ON_GPU = torch.cuda.is_available()
PRECISION = "bf16" if ON_GPU else "fp32"  # CPUs take seconds for what they have no instructions for
STEPS = 8
# As long as our sets' examples are, and mixed alike: how many in so many, their mean, the deviation of its logarithm.
LENGTHS = {
    "remix": ((1, 34, 0.04), (2, 165, 0.04)),  # kvr pairs, and random words at twice as many
    "gsm8k": ((1, 200, 0.33),),
    "evolcode": ((1, 437, 0.72),),
    "ultrachat": ((1, 1100, 0.5),),
}
ASKED = {"kvr": (24, 10, 64), "gsm8k": (80, 120, 32)}  # tokens of a question, of its answer, and how many are asked
KILLED_AFTER = 3  # steps, and the first checkpoint
NEWER = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
OLDER = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256}
GROUPED = {"num_key_value_heads": 2, "head_dim": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": NEWER, "Mistral": NEWER | GROUPED | {"sliding_window": 4}, "Qwen3": NEWER | GROUPED, "Gemma": NEWER | GROUPED,
    "Gemma3Text": NEWER | GROUPED | {"sliding_window": 4}, "Olmo2": NEWER, "GPTNeoX": NEWER, "GPTBigCode": OLDER,
    "GPT2": OLDER | {"attn_pdrop": 0.0}, "GPTJ": OLDER | {"rotary_dim": 8},
    "GPTNeo": {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
}  # fmt: skip


@dataclass
class Told:
    """What a part has told so far: on disk after each `add`."""

    name: str
    file: Path
    place: Path
    small: bool
    deadline: float
    ratios: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, *, ratios: dict[str, float] | None = None, **figures: Any) -> None:
        self.figures |= figures
        self.ratios |= ratios or {}
        told = {"name": f"gpu_{self.name}", "ratios": self.ratios, "figures": self.figures, "machine": machine()}
        write(self.file, told | {"commit": here()["commit"], "small": self.small})

    def has(self, seconds: float, what: str) -> bool:
        """Whether there is time for something; a line is left where there is not."""
        left = self.deadline - time.monotonic()
        if left < seconds:
            self.add(**{f"{what}_left_out": f"{left:.0f} s were left"})
        return left >= seconds

    def weights(self, shape: str) -> Path:
        """The folder of a shape's random weights, which all parts share."""
        folder = self.place / "weights" / shape
        if not folder.exists():
            aside = folder.with_suffix(f".{os.getpid()}")
            write_random(LLAMAS[shape], aside, tokenizer=prepare("tiny", None, cache=self.place))
            aside.rename(folder)
        return folder

    def engine(self, shape: str, **runtime: Any) -> Watched:
        """An engine that trains a shape in bf16, ZeRO-3 unless something else is said."""
        given = Runtime(**{"zero": 3, **runtime})
        training = replace(TRAINING, precision=PRECISION)
        return Watched(self.weights(shape), training=training, total_steps=1000, runtime=given, longest=2048)


def examples_of(lengths: str, vocabulary: int, count: int, *, longest: int) -> list[Encoded]:
    """Random tokens in examples as long as a set's are; the last half of each is trained on."""
    generator = np.random.default_rng(0)
    kinds = [(mean, spread) for many, mean, spread in LENGTHS[lengths] for _ in range(many)]
    means, spreads = np.array(kinds)[generator.integers(len(kinds), size=count)].T
    drawn = generator.lognormal(np.log(means) - spreads**2 / 2, spreads).clip(8, longest).astype(int)
    return [
        Encoded(str(index), generator.integers(1, vocabulary, length, dtype=np.int32), np.arange(length) >= length // 2)
        for index, length in enumerate(drawn)
    ]


def batches_of(told: Told, lengths: str, llama: Llama) -> list[Batch]:
    """The batches of one run, those of the warm-up first."""
    size, count = (8, WARM_UP + 2) if told.small else (TRAINING.batch_size, WARM_UP + STEPS)
    examples = examples_of(lengths, llama.vocabulary, size * count, longest=96 if told.small else 2048)
    return [Batch(1 + step, 0, tuple(examples[step * size : (step + 1) * size])) for step in range(count)]


def largest(values: Sequence[float]) -> float:
    return round(max(values), 6)


# ---- packing


def packing_part(told: Told) -> None:
    """Whether examples stay apart in each family, and whether packed batches train as sorted ones do."""
    for family, settings in FAMILIES.items():
        told.add(**{f"apart_{family.lower()}": _apart(family, settings)})
    shape = "smallest" if told.small else "llama_1b_quarter"
    batches = batches_of(told, "remix", LLAMAS[shape])
    losses = {}
    for packed in (True, False):
        with told.engine(shape) as engine:
            told.add(attention=engine.facts()["attention"], packed=engine.packed)
            engine.packed = packed and engine.packed
            losses[packed] = [loss for _, loss in clocked(engine, batches)]
    off = [abs(one / other - 1) for one, other in zip(losses[True], losses[False], strict=True)]
    told.add(loss_off=largest(off))
    if ON_GPU:
        for lengths in LENGTHS:
            told.add(ratios={f"kernel_{lengths}": _kernel_ratio(lengths)})


def _apart(family: str, settings: dict[str, Any]) -> str:
    """What computes a family's attention here, and whether its packed examples stay apart."""
    config = getattr(transformers, f"{family}Config")(vocab_size=1024, **settings)
    device, dtype = connect().device, torch.bfloat16 if ON_GPU else torch.float32
    chosen = implementation(config, dtype, device)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=chosen)
    apart = packing.isolates(Scored(model.to(device).eval()), device, connect(), rounding=ROUNDING[PRECISION])
    return f"{model.config._attn_implementation}, {'apart' if apart else 'not apart'}"


def _kernel_ratio(lengths: str) -> float:
    """Forward and backward of one layer's attention on a batch: SDPA with a mask of all tokens by all ÷ the varlen kernel."""
    from torch.nn.attention.varlen import varlen_attn

    sizes = [len(one) for one in examples_of(lengths, 1024, TRAINING.batch_size, longest=512)]
    starts = torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32, device="cuda")
    given = {"dtype": torch.bfloat16, "device": "cuda", "requires_grad": True}
    parts_THD = [torch.randn(sum(sizes), 32, 64, **given) for _ in range(3)]
    whose = torch.repeat_interleave(torch.arange(len(sizes), device="cuda"), torch.tensor(sizes, device="cuda"))
    mask = (whose[:, None] == whose).tril()

    def packed() -> torch.Tensor:
        return varlen_attn(*parts_THD, starts, starts, max(sizes), max(sizes), window_size=(-1, 0))

    def masked() -> torch.Tensor:
        heads_first = (part.transpose(0, 1)[None] for part in parts_THD)
        return torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask)

    return round(_on_gpu_seconds(masked) / _on_gpu_seconds(packed), 2)


def _on_gpu_seconds(forward: Callable[[], torch.Tensor], repeats: int = 10) -> float:
    for number in range(repeats + 3):
        if number == 3:
            torch.cuda.synchronize()
            began = time.perf_counter()
        forward().sum().backward()
    torch.cuda.synchronize()
    return time.perf_counter() - began


# ---- checks


class Outcomes:
    """A plugin of pytest that tells each outcome as it comes."""

    def __init__(self, told: Told) -> None:
        self.told = told

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            said = report.outcome if report.outcome != "failed" else f"failed: {report.longreprtext[-1500:]}"
            self.told.add(**{report.nodeid.rsplit("::", 1)[-1]: said})


def checks_part(told: Told) -> None:
    """The tests that need a GPU, by a configuration without plugins that may not be here."""
    settings = told.place / "pytest.ini"
    settings.write_text("[pytest]\naddopts = -q -p no:cacheprovider\nmarkers =\n  gpu: needs a GPU\n")
    tests = str(ROOT / "tests" / "learn" / "test_gpu.py")
    ended = pytest.main(["-c", str(settings), "--rootdir", str(ROOT), tests], plugins=[Outcomes(told)])
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with {ended!r}")


# ---- throughput


def throughput_1b_part(told: Told) -> None:
    _throughput(told, "smallest" if told.small else "llama_1b")


def throughput_8b_part(told: Told) -> None:
    _throughput(told, "smallest" if told.small else _fitting_8b(told))


def _fitting_8b(told: Told) -> str:
    """The whole where it fits without offloading, which would take minutes to load and seconds a step."""
    total = torch.cuda.get_device_properties(0).total_memory
    disk = shutil.disk_usage(told.place).free
    try:
        offload = offload_that_fits(SHAPES["llama_8b"], training=TRAINING, device=total, host=free_memory())
    except TrialFailed as error:
        offload = str(error)
    if offload == "none" and disk > 2.1 * SHAPES["llama_8b"].weights:
        return "llama_8b"
    why = f"on a GPU of {gib(total)} GiB, with {gib(disk)} GiB of disk, offload would be: {offload}"
    told.add(llama_8b_left_out=f"{why}; a quarter of its layers is measured")
    return "llama_8b_quarter"


def _throughput(told: Told, shape: str) -> None:
    """Each set's lengths, packed and sorted, on one engine."""
    peak = peak_of(torch.cuda.get_device_name()) if ON_GPU else None
    told.add(peak_flops=peak)
    with told.engine(shape) as engine:
        packs = engine.packed
        told.add(attention=engine.facts()["attention"], packs=packs)
        for lengths, packed in product(LENGTHS, (True, False) if packs else (False,)):
            name = f"{shape}_{lengths}{'_sorted' if packs and not packed else ''}"
            if told.has(12, name):
                engine.packed = packed
                told.add(**{f"{name}_{key}": value for key, value in _run(told, engine, shape, lengths, peak).items()})
        for lengths in LENGTHS:
            ours, other = (told.figures.get(f"{shape}_{lengths}{end}_seconds") for end in ("", "_sorted"))
            if ours and other:
                told.add(ratios={f"packed_{shape}_{lengths}": round(other / ours, 3)})


def _run(told: Told, engine: Watched, shape: str, lengths: str, peak: float | None) -> dict[str, Any]:
    batches = batches_of(told, lengths, LLAMAS[shape])
    engine.widest = 0
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds = [one for one, _ in clocked(engine, batches)][WARM_UP:]
    except TrialFailed as error:
        return {"failed": str(error)}
    middle = float(np.median(seconds))
    done = work(LLAMAS[shape], batches[WARM_UP:])
    products = done.pop("product_flops")
    return done | memory_of(engine) | {
        "seconds": round(middle, 5),
        "spread": round(max(seconds) - min(seconds), 5),
        "tokens_per_second": round(done["tokens"] / middle),
        "mfu": peak and round(done["model_flops"] / middle / peak, 4),
        "mfu_products": peak and round(products / middle / peak, 4),
    }  # fmt: skip


# ---- memory


def memory_part(told: Told) -> None:
    """GiB told beforehand and GiB taken, by how many tokens a micro-batch has and whether they are recomputed."""
    shape = "smallest" if told.small else "llama_1b_quarter"
    batch = Batch(1, 0, batches_of(told, "gsm8k", LLAMAS[shape])[0].examples)
    for stage, recomputed in ((3, True), (3, False), (1, True)):
        with told.engine(shape, zero=stage, gradient_checkpointing=recomputed) as engine:
            for tokens in (128, 256) if told.small else (2048, 4096):
                engine._tokens_at_once, engine.widest = tokens, 0
                if ON_GPU:
                    torch.cuda.reset_peak_memory_stats()
                engine.step(batch)
                name = f"zero{stage}_{'recomputed' if recomputed else 'kept'}_{tokens}"
                peaks = memory_of(engine)
                told.add(**{f"{name}_{key}": value for key, value in peaks.items()})


# ---- evaluation


def evaluation_part(told: Told) -> None:
    """`generate` ÷ ours: what is memorized, on `tiny`; and the passes alone, on random weights of 1B's shape."""
    count = 16 if told.small else 200
    training = replace(evaluate.SETTINGS, batch_size=4 if told.small else 32)
    asked = evaluate.Asked(
        name="kvr", count=count, scorer=replace(SCORERS["exact"], max_new_tokens=32), training=training
    )
    found = evaluate._examples(asked, told.place)
    folder, _ = evaluate._memorize(told.place / "tiny", found[:count], asked)
    for case, examples in (("all", found[:count]), ("none", found[count:])):
        compared = evaluate._compared(folder, examples, asked, PRECISION, 1)
        ours = compared["ours_seconds"]
        ratios = {"": compared["reference_seconds"] / ours, "_same_batch": compared["same_batch_seconds"] / ours}
        told.add(
            ratios={f"{case}_memorized_kvr{end}": round(ratio, 2) for end, ratio in ratios.items()},
            **{f"{case}_memorized_kvr_{key}": value for key, value in compared.items()},
        )
    shape = "smallest" if told.small else "llama_1b"
    with told.engine(shape) as engine:
        for name in ASKED:
            if told.has(15, f"passes_{name}"):
                questions = _questions(name, LLAMAS[shape].vocabulary, small=told.small)
                told.add(ratios={f"passes_{shape}_{name}": evaluate._passes(engine, questions, end=0)})


def _questions(name: str, vocabulary: int, *, small: bool) -> list[Question]:
    prompt, target, count = ASKED[name]
    generator = np.random.default_rng(0)
    count, target = (4, 8) if small else (count, target)
    drawn = generator.integers(1, vocabulary, (count, prompt + target)).tolist()
    return [Question(str(index), tuple(row[:prompt]), tuple(row[prompt:]), ("",)) for index, row in enumerate(drawn)]


# ---- zero3


def zero3_part(told: Told) -> None:
    """The same losses wherever weights and states are kept, and the seconds of a step."""
    shape = "smallest" if told.small else "llama_1b_quarter"
    batches = batches_of(told, "gsm8k", LLAMAS[shape])[: WARM_UP + 2]
    here_losses: list[float] = []
    for offload in ("none", "optimizer", "all"):
        if not told.has(10, offload):
            continue
        with told.engine(shape, offload=offload) as engine:
            engine.widest = 0
            if ON_GPU:
                torch.cuda.reset_peak_memory_stats()
            seconds, losses = zip(*clocked(engine, batches), strict=True)
            here_losses = here_losses or list(losses)
            off = [abs(one / other - 1) for one, other in zip(losses, here_losses, strict=True)]
            figures = memory_of(engine) | {"seconds": round(seconds[-1], 4), "loss_off": largest(off)}
            told.add(**{f"{offload}_{key}": value for key, value in figures.items()})


# ---- resume


def resume_part(told: Told) -> None:
    """A stage that is killed after a checkpoint and goes on, beside one that is not."""
    whole = _trained(told, None)
    folder = told.place / "checkpoints"
    killed = _child("killed", told, told.place / "killed.json")
    kept = sorted(int(one.parent.name.removeprefix("step-")) for one in folder.glob(f"step-*/{RECORD}"))
    again = _trained(told, folder)
    off = [abs(one / other - 1) for one, other in zip(again, whole, strict=True)]
    told.add(
        exit_of_the_killed=killed, kept_steps=kept, steps=len(again), loss_off=largest(off), same_bits=again == whole
    )


def killed_part(told: Told) -> None:
    """What `resume` starts, and what does not come back."""
    folder = told.place / "checkpoints"

    def dying(step: Callable[[Batch], Any], batch: Batch) -> Any:
        if batch.step >= KILLED_AFTER:
            if any(folder.glob(f"step-*/{RECORD}")):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.3)
        return step(batch)

    _trained(told, folder, dying=dying)


def _trained(told: Told, checkpoints: Path | None, *, dying: Callable[..., Any] | None = None) -> list[float]:
    """The losses of a stage of some steps on the smallest shape."""
    folder = told.weights("smallest")
    examples = examples_of("remix", 1024, 48, longest=96)
    training = replace(TRAINING, precision=PRECISION, batch_size=8, epochs=4)
    with Engine(folder, training=training, total_steps=24, runtime=Runtime(zero=3)) as engine:
        if dying:
            engine.step = partial(dying, engine.step)
        outcome = train(
            engine, examples, training=training, seed=0, tokenizer=load_tokenizer(folder), probes={}, every=Every(epochs=1),
            checkpoints=checkpoints, checkpoint_every=0.0,
        )  # fmt: skip
    return [row["loss"] for row in outcome.curve]


def _child(part: str, told: Told, file: Path, **environment: str) -> int:
    """The exit code of another part in a process of its own."""
    return _started(part, told, file, **environment).wait()


def _started(part: str, told: Told, file: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, part, str(file), str(told.place), *(["--small"] if told.small else [])]
    process = subprocess.Popen(command, env=os.environ | environment, stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write("600\n")
    process.stdin.close()
    return process


# ---- nccl


def nccl_part(told: Told) -> None:
    """As many ranks as there are GPUs beside one rank on the same batches; on CPUs two."""
    size = torch.cuda.device_count() if ON_GPU else 2
    if size < 2:
        told.add(left_out="one GPU is here")
        return
    alone = _rank_losses(told)
    meeting = meeting_place()
    shared = {
        "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    files = [told.place / f"rank-{rank}.json" for rank in range(size)]
    ranks = [
        _started("rank", told, file, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank, file in enumerate(files)
    ]
    told.add(ranks=size, exits=_ended(ranks))
    figures = json.loads(files[0].read_text())["figures"]
    off = [abs(one / other - 1) for one, other in zip(figures["losses"], alone["losses"], strict=True)]
    told.add(
        ratios={"ranks": round(alone["seconds"] / figures["seconds"], 2)},
        backend=figures["backend"], loss_off=largest(off), alone_seconds=alone["seconds"], seconds=figures["seconds"],
    )  # fmt: skip


def _ended(ranks: Sequence[subprocess.Popen[str]]) -> list[int]:
    """Exit codes; where one fails, the others are not waited for."""
    while any(rank.poll() is None for rank in ranks):
        if any(rank.poll() for rank in ranks):
            for rank in ranks:
                rank.kill()
        time.sleep(0.1)
    return [rank.wait() for rank in ranks]


def rank_part(told: Told) -> None:
    """What `nccl` starts: one rank."""
    told.add(**_rank_losses(told))


def _rank_losses(told: Told) -> dict[str, Any]:
    shape = "smallest" if told.small else "llama_1b_quarter"
    batches = batches_of(told, "gsm8k", LLAMAS[shape])
    with told.engine(shape) as engine:
        losses, seconds = [], []
        for batch in batches:
            began = time.perf_counter()
            stats = engine.step(batch)
            losses.append(engine.ranks.sum([stats.loss_sum])[0] / batch.target_tokens)
            seconds.append(time.perf_counter() - began)
        backend = engine.facts()["backend"]
    return {"losses": losses, "seconds": round(float(np.median(seconds[WARM_UP:])), 4), "backend": backend}


def main(arguments: list[str]) -> None:
    parts = {name.removesuffix("_part"): part for name, part in globals().items() if name.endswith("_part")}
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=parts)
    parser.add_argument("file", type=Path)
    parser.add_argument("place", type=Path)
    parser.add_argument("--small", action="store_true")
    chosen = parser.parse_args(arguments)
    zero._deepspeed()  # imports it, while the part before this one runs
    if not (said := sys.stdin.readline()):
        return
    if not ON_GPU:
        torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    small = chosen.small or not ON_GPU
    told = Told(chosen.part, chosen.file, chosen.place, small, time.monotonic() + float(said) - 3)
    told.add()
    parts[chosen.part](told)


if __name__ == "__main__":
    main(sys.argv[1:])
