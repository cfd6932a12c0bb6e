"""Everything that only a GPU can show, in one command and nine minutes: `python tests/bench/gpu.py --json DIR`.

It needs one GPU (an H100, say), a checkout, and torch 2.11 or newer with CUDA; no registry, no data, no Ray. What else it
needs is `NEEDS` below, with what those require: under 64 MiB of wheels, DeepSpeed's built beforehand, since it has none.
Where the machine's Python is 3.12, this collects what is not there yet:

    pip wheel --no-deps -w wheels deepspeed==0.19.8
    pip download -d wheels --find-links wheels --only-binary :all: --python-version 3.12 PACKAGE…

Each part runs in a process of its own, which imports its libraries while the part before it runs, and writes
`DIR/gpu_PART.json` as soon as it knows something: `ratios` (reference ÷ ours), `figures`, `machine`, `commit`, `seconds`.
What does not fit into the budget is not begun, and what takes too long is stopped; both leave a file that says so
(`left_out`, `stopped`, `failed`). Parts are in the order of what is wanted most:

- `packing`: which attention runs, whether packed examples stay apart, for several families; packed against sorted losses
- `checks`: tests/learn/test_gpu.py
- `throughput_1b`: Llama-3.2-1B's shape, random weights, our sets' lengths, packed against sorted; utilisation, peak memory
- `memory`: bytes told beforehand against bytes taken
- `evaluation`: proof against `generate`
- `zero3`: ZeRO-3 with its optimizer and weights here or in the machine's memory: the same losses, and what it costs
- `resume`: killed in the middle, and gone on: the same numbers
- `nccl`: ranks on two GPUs or more against one rank; without a GPU two ranks on gloo
- `throughput_8b`: Llama-3-8B's shape whole where it fits, else a quarter of its layers

Without a GPU, or with `--small`, all parts run through on tiny shapes; that shows that they run, and nothing else.
`python tests/bench/gpu.py --take DIR` keeps such files in tests/bench/results, and tells them in RESULTS.md and README.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
NEEDS = (
    "deepspeed", "huggingface-hub", "hypothesis", "ninja", "numpy", "packaging", "pydantic", "pytest", "pyyaml",
    "rich", "safetensors", "tokenizers", "transformers",
)  # fmt: skip
BUDGET = 540.0  # seconds
SPARE = 5.0  # seconds that ending takes


@dataclass(frozen=True, slots=True)
class Part:
    """It is not begun with less than `least` seconds left, and stopped after `most`."""

    name: str
    least: float
    most: float


PARTS = (
    Part("packing", 20, 60),
    Part("checks", 30, 110),
    Part("throughput_1b", 45, 110),
    Part("memory", 20, 60),
    Part("evaluation", 25, 70),
    Part("zero3", 20, 60),
    Part("resume", 20, 50),
    Part("nccl", 25, 60),
    Part("throughput_8b", 40, 150),
)


class Process:
    """A part's process: it imports what it needs as soon as it exists, and begins when it is told."""

    def __init__(self, part: Part, *, out: Path, place: Path, small: bool) -> None:
        self.part = part
        self.file = out / f"gpu_{part.name}.json"
        self.file.unlink(missing_ok=True)
        self._said = place / f"{part.name}.log"
        path = os.pathsep.join([str(HERE), str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, str(HERE / "gpu_parts.py"), part.name, str(self.file), str(place)]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [*command, *(["--small"] if small else [])],
                env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def begin(self, seconds: float) -> None:
        """Let it begin; it may take so many seconds."""
        self._send(f"{seconds:.0f}\n")

    def finish(self, seconds: float) -> None:
        """Wait so long, then stop it and whatever it started; what it has told so far is kept, and what became of it."""
        began = time.monotonic()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            self._add({"stopped": f"it was not done after {seconds:.0f} s"})
        if self._process.returncode and not self._told().get("stopped"):
            said = self._said.read_text(errors="replace")
            self._add({"failed": f"exit {self._process.returncode}: {said[-3000:]}"})
        self._add({"seconds": round(time.monotonic() - began, 1)})

    def leave_out(self, why: str) -> None:
        self.end()
        self._add({"left_out": why})

    def end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _told(self) -> dict[str, Any]:
        if not self.file.exists():
            return {"name": f"gpu_{self.part.name}", "ratios": {}, "figures": {}, "machine": {}}
        return json.loads(self.file.read_text())

    def _add(self, what: dict[str, Any]) -> None:
        write(self.file, self._told() | what)

    def _send(self, words: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(words.encode())
            self._process.stdin.close()
        except BrokenPipeError:  # it failed while it imported: `finish` tells why
            self._process.stdin = None


def write(file: Path, told: dict[str, Any]) -> None:
    """Whole or not at all: it may be stopped at any time."""
    aside = file.with_suffix(".part")
    aside.write_text(json.dumps(told, indent=1))
    aside.replace(file)


def run(parts: Sequence[Part], *, out: Path, small: bool, budget: float) -> bool:
    """Run parts one after the other, and say a line of each; whether none failed."""
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + budget - SPARE
    fine = True
    with tempfile.TemporaryDirectory() as place:
        waiting = [Process(part, out=out, place=Path(place), small=small) for part in parts[:1]]
        for number, part in enumerate(parts):
            process, left = waiting.pop(), deadline - time.monotonic()
            given = left if small else min(left, part.most)
            if left >= part.least:
                process.begin(given)
            waiting = [Process(one, out=out, place=Path(place), small=small) for one in parts[number + 1 : number + 2]]
            if left >= part.least:
                process.finish(given)
            else:
                process.leave_out(f"{left:.0f} s of {budget:.0f} were left, and it wants {part.least:.0f}")
            told = json.loads(process.file.read_text())
            fine = fine and "failed" not in told
            print(_line(told), flush=True)
    return fine


def _line(told: dict[str, Any]) -> str:
    state = next((f"{word}: {told[word]}" for word in ("left_out", "stopped", "failed") if word in told), "done")
    return f"{told['name']:20} {told.get('seconds', 0):6.1f} s  {state}"


def take(folder: Path) -> None:
    """Keep what was measured on a GPU, and tell it where people look."""
    for file in sorted(folder.glob("gpu_*.json")):
        shutil.copyfile(file, RESULTS / file.name)
    from gpu_words import tell

    tell(RESULTS, [HERE / "RESULTS.md", ROOT / "README.md"])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="the folder for the parts' files")
    parser.add_argument("--small", action="store_true", help="tiny shapes, as where no GPU is")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all parts")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], default=None)
    parser.add_argument("--take", type=Path, help="a folder of such files to keep and tell")
    chosen = parser.parse_args(arguments)
    if chosen.take:
        take(chosen.take)
        return 0
    if chosen.json is None:
        parser.error("name a folder: --json DIR")
    parts = [part for part in PARTS if chosen.only is None or part.name in chosen.only]
    return 0 if run(parts, out=chosen.json.resolve(), small=chosen.small, budget=chosen.budget) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
