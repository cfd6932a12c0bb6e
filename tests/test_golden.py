"""Ids and the payloads they cover are pinned: a difference here is a decision, never an accident.

`python tests/test_golden.py` writes the file anew. Whoever does that raises the recipe of what has changed, or says
why every stage that was ever trained is now another one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raysweep.api import load

HERE = Path(__file__).parent / "golden"


def pinned() -> dict[str, Any]:
    """What a plan says of its trials and stages, as JSON."""
    plan = load(HERE / "small.yaml").plan()
    assert not plan.missing
    return {
        "trials": [{"point": dict(point.values), "stages": plan.trials[point.trial].stages} for point in plan.points],
        "stages": {name: {"slug": node.slug, "config": node.config} for name, node in plan.stages.items()},
    }


def test_ids_and_payloads_are_what_they_were() -> None:
    assert json.loads(json.dumps(pinned())) == json.loads((HERE / "small.json").read_text())


if __name__ == "__main__":
    (HERE / "small.json").write_text(json.dumps(pinned(), indent=1) + "\n")
