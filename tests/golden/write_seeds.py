"""Write `seeds/store`: trials of several seeds, trained, evaluated and committed by `execute`, without their weights.

`python tests/golden/write_seeds.py [FOLDER]` runs what FOLDER (else `tests/golden/seeds`) lacks, in some minutes. Tests of
statistics read it, so that they see what the real writer writes; one of them checks that it still writes so.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from raysweep.api import load
from raysweep.store.store import Store
from raysweep.trial.execute import execute

HERE = Path(__file__).parent / "seeds"
SWEEPS = ("real", "short")


def fill(store: Store, names: tuple[str, ...] = SWEEPS) -> None:
    """Run all missing trials of these sweeps, from the folder of their files."""
    for name in names:
        sweep = load(f"{name}.yaml")
        for job in sweep.missing(store, data=None)[1].values():
            execute(replace(job, model=sweep.sweep.model), report=lambda event: None)  # no path of this machine


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.chdir(Path(sys.argv[1]).resolve() if sys.argv[1:] else HERE)
    store = Store("store")
    fill(store)
    shutil.rmtree("store/.in-flight", ignore_errors=True)
    for folder in store.stage_folders().values():
        store.drop_weights(folder)
