"""How long data takes: finding, cleaning and encoding 2,000 examples of every set here, drawing mixing data.

`python tests/bench/data.py [--data DIR] [--json FILE]` prints medians in seconds. There is no reference to divide by:
the figures are there to stay in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from raysweep.data.encoding import encode
from raysweep.data.example import Example
from raysweep.data.examples import candidates
from raysweep.data.mixing import draw
from raysweep.data.sources import find, find_text, find_words
from raysweep.errors import SourceMissing
from raysweep.learn.model import load_tokenizer, prepare
from raysweep.sweep.catalog import DATASETS
from raysweep.sweep.spec import Text
from raysweep.sweep.stage import Mixing

EXAMPLES = 2000
BESIDE = Path(__file__).parents[3] / "shared" / "data"


def measure(*, data_dir: Path, repeats: int = 3) -> dict[str, Any]:
    """Figures: seconds by what was done, spreads beside them, and how many examples each set has here."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as cache:
        tokenizer = load_tokenizer(prepare("tiny", None, cache=Path(cache)))
    figures: dict[str, Any] = {}
    for name in DATASETS:
        try:
            found = list(islice(candidates(find(name, data_dir=data_dir), data_seed=0), 100_000))
        except SourceMissing:
            continue
        figures[f"{name}_examples_here"] = len(found)
        figures |= _timed(f"{name}_load", lambda name=name: _load(name, data_dir), repeats)
        figures |= _timed(f"{name}_encode_2000", lambda found=found: _encode(found[:EXAMPLES], tokenizer), repeats)
    figures |= _mixing_figures(data_dir, tokenizer, repeats)
    return {"name": "data", "ratios": {}, "figures": figures, "machine": machine()}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}


def _mixing_figures(data_dir: Path, tokenizer: Any, repeats: int) -> dict[str, Any]:
    avoid = list(islice(candidates(find("popqa", data_dir=data_dir), data_seed=0), EXAMPLES))
    listed = find_words(data_dir=data_dir)
    corpus = find_text("text", text=Text(path=str(data_dir / "generic_text")), data_dir=data_dir)

    def drawn(source: Any, name: str, count: int) -> None:
        mixing = Mixing(source=name, ratio=2.0, data_seed=0, words=50, cut="described", overlap="drop")
        taken = draw(mixing, count=count, source=source, avoid=avoid, fits=lambda example: True, replay_from=())
        _encode(taken.examples, tokenizer)

    return {
        **_timed("word_list", lambda: find_words(data_dir=data_dir), repeats),
        **_timed("random_draw_and_encode_4000", lambda: drawn(listed, "random", 4000), repeats),
        **_timed("passages_draw_and_encode_300", lambda: drawn(corpus, "text", 300), repeats),
    }


def _load(name: str, data_dir: Path) -> None:
    for _ in islice(candidates(find(name, data_dir=data_dir), data_seed=0), EXAMPLES):
        pass


def _encode(examples: Sequence[Example], tokenizer: Any) -> None:
    for example in examples:
        encode(example, tokenizer, strip=True)


def _timed(name: str, work: Callable[[], None], repeats: int) -> dict[str, float]:
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return {name: round(statistics.median(seconds), 4), f"{name}_spread": round(max(seconds) - min(seconds), 4)}


def main(arguments: list[str]) -> None:
    """Prints a table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RAYSWEEP_TEST_DATA", BESIDE)))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    result = measure(data_dir=chosen.data)
    for name, value in result["figures"].items():
        if not name.endswith("_spread"):
            spread = result["figures"].get(f"{name}_spread")
            print(f"{name:36} {value:>10}" + ("" if spread is None else f" s ± {spread}"))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
