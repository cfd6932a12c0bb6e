"""One-line mutants of the code, each in a copy of it: a test that cannot see one of them shows nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutant:
    """A line of `raysweep/<file>` as it is and as it must not be, and the test that is to see the difference."""

    name: str
    file: str
    old: str
    new: str
    test: str


def killed(mutant: Mutant, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a mutant's test on a copy of the code that has it; AssertionError where the line to change is not there once."""
    shutil.copytree(ROOT / "raysweep", folder / "raysweep", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "raysweep" / mutant.file
    text = file.read_text()
    assert text.count(mutant.old) == 1, (
        f"{mutant.file} has {mutant.old!r} {text.count(mutant.old)} times: bring the mutant up to date"
    )
    file.write_text(text.replace(mutant.old, mutant.new))
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.test]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "tests")])}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)
