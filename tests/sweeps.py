"""Small sweeps for tests: a file's text, and the file loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raysweep.api import LoadedSweep, load

SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"name": "tiny"},
    "grid": {"d_a": ["kvr"], "d_b": ["id"], "mixer": ["none/none", "random/none"], "ratio": [1.0], "seed": [0]},
    "examples": 8,
    "mixing": {"words": 4},
    "train": {"precision": "fp32", "lr": 1e-3, "epochs": 2, "batch_size": 4, "stop": "epochs"},
}


def write(folder: Path, **changes: Any) -> Path:
    """A sweep file like `SMALL`, with some of its keys replaced."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def small(folder: Path, *overrides: str, **changes: Any) -> LoadedSweep:
    """`SMALL`, changed and loaded."""
    return load(write(folder, **changes), overrides)
