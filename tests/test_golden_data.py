"""What examples a recipe gives is pinned beside its ids: a change there is a decision, and raises the recipe.

`python tests/test_golden_data.py` writes the file anew, and refuses where a digest is another under the same recipe.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysweep.data.encoding import Encoded
from raysweep.data.example import Example
from raysweep.data.examples import candidates, digest_of, take
from raysweep.data.kvr import RECIPE as KVR
from raysweep.data.mixing import draw
from raysweep.data.sources import find, find_text, find_words
from raysweep.learn.batches import batches_from
from raysweep.plan.identity import canonical, digest
from raysweep.plan.plan import RECIPES, familiarity_id
from raysweep.sweep.spec import OwnSet, Text, Train
from raysweep.sweep.stage import Mixing, Selection, Stage, StopAt, Training
from raysweep.trial.familiarity import RECIPE as SHOTS
from raysweep.trial.familiarity import few_shot

FILE = Path(__file__).parent / "golden" / "data.json"
OWN = OwnSet(path="towns.jsonl", prompt="{question}", target="answer", subject="town")
SETTINGS = Train().of("a")
TRAINING = Training(**{**SETTINGS, "batch_size": 3, "epochs": 2, "stop": StopAt(rule="epochs")})

Pinned = dict[str, dict[str, Any]]


def pinned(folder: Path) -> Pinned:
    """The recipe and the digest of everything that a stage may train on, made from what is built in and two small files."""
    rows = [{"town": f"T{n}", "question": f"What river is T{n} on?", "answer": f"R{n % 7}"} for n in range(40)]
    texts = [{"text": " ".join(f"w{n * m % 31}" for m in range(1, 30))} for n in range(60)]
    for name, lines in (("towns", rows), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    kvr = find("kvr", data_dir=None)
    towns = find("towns", data_dir=folder, own=OWN)
    text = find_text("text", text=Text(path="texts.jsonl"), data_dir=folder)
    d_a = _taken(kvr, data_seed=0)
    found = {
        "kvr": (f"{KVR}/{RECIPES['select']}", _said(d_a)),
        "kvr of data_seed 1": (f"{KVR}/{RECIPES['select']}", _said(_taken(kvr, data_seed=1))),
        "id": (f"{KVR}/{RECIPES['select']}", _said(_taken(kvr, data_seed=0, skip=20))),
        "a file": (RECIPES["select"], _said(_taken(towns, data_seed=0))),
        "familiarity, shots": (SHOTS, _said(few_shot("towns", candidates(towns, data_seed=0), data_seed=0).pool)),
        "order": (RECIPES["train"], _order(TRAINING)),
        "order, fixed": (RECIPES["train"], _order(replace(TRAINING, order="fixed"))),
        "order, last batch dropped": (RECIPES["train"], _order(replace(TRAINING, last_batch="drop"))),
    }
    for again in (None, 2):
        for name, source in (("random", find_words(data_dir=None)), ("text", text), ("replay", None)):
            drawn = draw(
                _mixing(name, again), count=10, source=source, avoid=d_a, fits=lambda one: True, replay_from=d_a
            )
            found[f"{name}, draw {again or 1}"] = (RECIPES["mix"], drawn.digest)
    for precision in ("fp32", "bf16"):
        found[f"familiarity key, {precision}"] = (RECIPES["familiarity"], _key(precision))
    return {name: {"recipe": str(recipe), "digest": told} for name, (recipe, told) in found.items()}


def renewed(before: Pinned, now: Pinned) -> Pinned:
    """What is written: raises where a digest is another and its recipe is not."""
    for name, one in before.items():
        if name in now and now[name] != one and now[name]["recipe"] == one["recipe"]:
            raise ValueError(f"{name}: other examples under recipe {one['recipe']}; raise it, or mend the change")
    return now


def _taken(source: Any, *, data_seed: int, skip: int = 0) -> tuple[Example, ...]:
    chosen = Selection(set=source.name, examples=20, data_seed=data_seed, familiarity="all", skip=skip)
    return take(candidates(source, data_seed=data_seed), chosen, fits=lambda one: True, unfamiliar=None).examples


def _said(examples: Any) -> str:
    return digest_of(list(examples))


def _mixing(source: str, again: int | None) -> Mixing:
    overlap = "keep" if source == "replay" else "drop"
    return Mixing(source=source, ratio=0.5, data_seed=0, words=8, cut="described", overlap=overlap, draw=again)


def _order(training: Training) -> str:
    encoded = [Encoded(str(n), np.zeros(1, dtype=np.int32), np.ones(1, dtype=bool)) for n in range(8)]
    steps = [[one.id for one in batch.examples] for batch in batches_from(0, encoded, training=training, seed=5)]
    return digest(canonical(steps).encode())


def _key(precision: str) -> str:
    selection = Selection(set="popqa", examples=20, data_seed=0, familiarity="unfamiliar")
    stage = Stage(
        letter="a",
        selection=selection,
        mixing=None,
        training=replace(TRAINING, precision=precision),
        strip="both",
        seed=0,
    )
    return familiarity_id({"name": "tiny", "recipe": 1}, {"hub": "akariasai/PopQA", "revision": "0"}, stage=stage)


def test_examples_are_what_they_were(tmp_path: Path) -> None:
    assert pinned(tmp_path) == json.loads(FILE.read_text())


def test_other_examples_under_the_same_recipe_are_refused(tmp_path: Path) -> None:
    kept = json.loads(FILE.read_text())
    changed = {**kept, "order": {**kept["order"], "digest": "0"}}
    with pytest.raises(ValueError, match="order: other examples under recipe 1"):
        renewed(kept, changed)
    raised = {**kept, "order": {"recipe": "2", "digest": "0"}}
    assert renewed(kept, raised) == raised


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        now = pinned(Path(folder))
    FILE.write_text(json.dumps(renewed(json.loads(FILE.read_text()) if FILE.exists() else {}, now), indent=1) + "\n")
