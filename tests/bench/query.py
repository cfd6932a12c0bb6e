"""How long results take to load as a store grows: the first time, again, and after a few records have changed.

There is no reference to divide by: the figures, in seconds, are there to stay small.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from run import machine

SIZES = (1_000, 10_000, 100_000)
_SETS = ("id", "lama", "entityqa", "webqa", "gsm8k", "math", "evolcode", "apps", "ultrachat")
_MIXERS = ("none/none", "random/none", "knowledge_pile/none", "none/random", "none/knowledge_pile")


def measure(*, data_dir: Path | None = None, repeats: int = 3, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Figures: seconds by number of records, and what the store's dataframe takes on disk; `data_dir` is not needed."""
    figures: dict[str, Any] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder), size)
            figures |= {f"{name}_{size}": value for name, value in _figures(Path(folder), size, repeats).items()}
    return {"name": "query", "ratios": {}, "figures": figures, "machine": machine()}


def write_store(folder: Path, size: int) -> None:
    """A store with `size` finished trials of one sweep, as records on disk look; their times lie a minute back."""
    generator = random.Random(0)
    points = list(itertools.islice(_points(), size))
    settled = time.time() - 60
    for point in points:
        record = folder / "trials" / point["trial"] / "record.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps(_record(point, generator), indent=1))
        os.utime(record, (settled, settled))
    plan = folder / "sweeps" / "grown" / "plan" / "000001.json"
    plan.parent.mkdir(parents=True)
    plan.write_text(json.dumps({"name": "grown", "schema": 1, "settings": "0", "model": "tiny", "points": points}))
    os.utime(plan, (settled, settled))


def _figures(folder: Path, size: int, repeats: int) -> dict[str, float]:
    from raysweep.report.cells import measure_cells
    from raysweep.report.frame import trials_of
    from raysweep.store.store import Store

    store = Store(folder)
    load = lambda: trials_of(["grown"], store)  # noqa: E731
    first = _seconds(load, 1)
    again = _seconds(load, repeats)
    for record in itertools.islice((folder / "trials").glob("*/record.json"), min(100, size)):
        record.write_text(record.read_text() + " ")
    changed = _seconds(load, 1)
    frame = load()
    return {
        "first_seconds": first,
        "again_seconds": again,
        "100_changed_seconds": changed,
        "where_seconds": _seconds(lambda: trials_of(["grown"], store, where="d_a == 'kvr' and ratio == 2"), repeats),
        "table_seconds": _seconds(lambda: measure_cells(frame, by=["d_a", "mixer", "d_b"], value="retention"), repeats),
        "file_megabytes": round((folder / "sweeps/grown/trials.parquet").stat().st_size / 1e6, 2),
    }


def _seconds(call: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return round(statistics.median(taken), 4)


def _points() -> Iterator[dict[str, Any]]:
    axes = (("kvr", "popqa", "triviaqa"), _SETS, _MIXERS, (0.5, 1.0, 2.0, 4.0))
    grown = ((seed, *point) for seed in itertools.count() for point in itertools.product(*axes))
    for number, (seed, d_a, d_b, mixer, ratio) in enumerate(grown):
        values = {"d_a": d_a, "d_b": d_b, "mixer": mixer, "ratio": ratio, "seed": seed}
        yield {"values": values, "trial": f"{number:016x}", "stages": [f"a{number:015x}", f"{number:016x}"]}


def _record(point: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    retention = generator.uniform(0, 100)
    per_stage = {
        f"{name}_{stage}": value
        for stage in (1, 2)
        for name, value in (
            ("steps", 1260),
            ("epochs", 20.0),
            ("loss", generator.random()),
            ("seconds", generator.uniform(600, 900)),
            ("tokens", 4_000_000),
            ("stopped_by", "epochs"),
            ("memorized", stage == 1),
            ("reused", False),
        )
    }
    return {
        "id": point["trial"],
        "schema": 1,
        "point": point["values"],
        "model": "tiny",
        "stages": point["stages"],
        "attempts": 1,
        "started": "2026-11-20T06:59:47.654+00:00",
        "finished": "2026-11-20T07:59:47.654+00:00",
        "provenance": {"commit": "0123456789ab", "versions": {"python": "3.11.7", "torch": "2.13.0"}},
        "status": "done",
        "error": None,
        "reused": [],
        "metrics": {"accuracy_a1": 100.0, "retention": retention, "forgetting": 100 - retention, **per_stage},
    }
