"""Who may import whom, and that the core needs none of the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

CORE = ["api", "cli", "errors", "plan.plan", "plan.schedule", "store.prune", "store.store", "sweep.grid", "sweep.spec"]
HEAVY = ["ray", "torch", "transformers", "deepspeed", "datasets", "nltk", "pandas"]


def test_imports_point_down(root):
    lint = subprocess.run(["lint-imports"], cwd=root, capture_output=True, text=True, env=_environment())
    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_the_core_runs_without_heavy_libraries(root):
    """Blocked, not just unused: `plan` of a file of 486 trials works where none of them is installed."""
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY}))\n"
        f"import {', '.join(f'raysweep.{name}' for name in CORE)}\n"
        "from raysweep.sweep.grid import Grid\n"
        "from raysweep.plan.plan import Sources, make_plan\n"
        "from raysweep.sweep.file import load\n"
        "nothing = Sources(lambda model: None, lambda name: None, lambda name: None)\n"
        "plan = make_plan([(Grid(*load('experiments/table2.yaml')), nothing)])\n"
        "print(len(plan.trials), len(plan.stages))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["486", "513"]


def _environment() -> dict[str, str]:
    import os

    here = os.path.dirname(sys.executable)
    return {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
