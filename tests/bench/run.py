"""Run one benchmark: `python tests/bench/run.py NAME [--json FILE] [--repeats N] [--data DIR]`.

Each benchmark is a module beside this one with `measure(*, data_dir, repeats)`, which measures ours and its references
in turn in one run and gives `{"name", "ratios", "figures", "machine"}`. A ratio is reference ÷ ours: above 1 ours is
better.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

HERE = Path(__file__).parent
BESIDE = HERE.parents[2] / "shared" / "data"


def turns(of: Iterable[Any]) -> Iterator[Any]:
    """What is measured one after the other, with a bar on stderr that says how long it will still take."""
    yield from track(list(of), description="measuring", console=Console(stderr=True), transient=True)


def names() -> list[str]:
    return sorted(file.stem for file in HERE.glob("*.py") if "def measure(" in file.read_text() and file.stem != "run")


def show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(f"{result['name']} on {', '.join(f'{name} {value}' for name, value in machine.items())}")
    for kind in ("ratios", "figures"):
        for name, value in result[kind].items():
            print(f"  {kind[:-1]:7} {name:40} {value}")


def machine() -> dict[str, Any]:
    """What is measured on."""
    import torch

    told = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    told |= {"torch": torch.__version__, "processor": _processor()}
    return told | {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else told


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=names())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RAYSWEEP_TEST_DATA", BESIDE)))
    chosen = parser.parse_args(arguments)
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]
    result = importlib.import_module(chosen.name).measure(
        data_dir=chosen.data and chosen.data.resolve(), repeats=chosen.repeats
    )
    show(result)
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
