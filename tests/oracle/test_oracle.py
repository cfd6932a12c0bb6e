"""The whole experiment beside a plain PyTorch reference: weights after every stage, why and when stages stop, what is kept."""

from __future__ import annotations

import itertools
import json
import random
from itertools import islice
from pathlib import Path

import pytest
import yaml
from oracle.reference import Reference, facts, kvr, random_words, replay
from safetensors.torch import load_file

import raysweep
from raysweep.api import load
from raysweep.store.store import Store
from raysweep.trial.execute import execute

BASE = Path(__file__).parents[1] / "golden" / "schema1" / "model"
COLOURS = ("red", "blue")
EXAMPLES, WORDS, SEEDS = 8, 6, (0, 1)
TRAIN = {"precision": "fp32", "lr": 1e-2, "epochs": 20, "batch_size": 4}
STOP = {
    "kvr": {"loss": 3.7, "hits": 4},
    "facts": {"loss": 2.4, "hits": 4},
}  # met by some trials before their last epoch
FAR = 1e-3  # between two weights: rounding, after some dozen steps
LATER = {"epochs": 2, "lr": 3e-3, "stop": "epochs"}
SETS = {
    "facts": {"path": "facts.jsonl", "prompt": "{question}\nThe answer is: ", "target": "answer", "subject": "subject"}
}
MIXERS = {2: ["none/none", "random/none", "none/random", "none/replay"], 3: ["random/none/none"]}
GRIDS = {
    "kvr, then others": {"d_a": ["kvr"], "d_b": ["id"]},
    "facts, then pairs": {"d_a": ["facts"], "d_b": ["kvr"]},
    "facts, pairs, other facts": {"d_a": ["facts"], "d_b": ["kvr"], "d_c": ["id"]},
}


@pytest.fixture(params=GRIDS)
def sweep(request, tmp_path, monkeypatch):
    """A sweep of two or three stages, and its grid; the words and facts that it names are in the folder."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghij", k=5)) for _ in range(60)]
    (tmp_path / "data" / "words").mkdir(parents=True)
    (tmp_path / "data" / "words" / "en").write_text("".join(f"{word}\n" for word in words))
    rows = [
        {"question": f"Is Lamp {n} red or blue?", "answer": rng.choice(COLOURS), "subject": f"Lamp {n}"}
        for n in range(40)
    ]
    (tmp_path / "facts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    grid = GRIDS[request.param]
    later = {letter: LATER for letter in ("b", "c")[: len(grid) - 1]}
    file = {
        "name": "oracle",
        "model": str(BASE),
        "grid": {**grid, "mixer": MIXERS[len(grid)], "ratio": [0.5], "seed": list(SEEDS)},
        "exclude": [{"mixer": ["none/random", "none/replay"], "seed": 1}],
        "examples": EXAMPLES,
        "mixing": {"words": WORDS},
        "train": {**TRAIN, "a": {"stop": STOP[grid["d_a"][0]]}, **later},
        "sets": SETS,
        "keep": "all",
    }
    (tmp_path / "oracle.yaml").write_text(yaml.safe_dump(file))
    return load("oracle.yaml"), words


def by_reference(point, words):
    """The stages of a point, by the reference."""
    count = round(point["ratio"] * EXAMPLES)
    letters = [axis[2] for axis in point if axis.startswith("d_")]
    sources = {"kvr": lambda: kvr(0), "facts": lambda: iter(facts(Path("facts.jsonl"), 0))}
    own = {}
    for place, letter in enumerate(letters):
        name = point[f"d_{letter}"]
        skip = place * EXAMPLES if name == "id" else 0
        own[letter] = list(islice(sources[point["d_a"] if name == "id" else name](), skip, skip + EXAMPLES))
    reference = Reference(BASE)
    for letter, mixer in zip(letters, point["mixer"].split("/"), strict=True):
        drawn = {
            "none": lambda: iter(()),
            "random": lambda: random_words(words, WORDS, 0),
            "replay": lambda: iter(replay(own["a"], count, 0)),
        }
        settings = {**TRAIN, **({"stop": STOP[point["d_a"]]} if letter == "a" else LATER)}
        mixed = list(islice(drawn[mixer](), count))
        yield letter, reference.stage(own[letter], mixed, own, seed=point["seed"], train=settings)


def test_the_experiment_is_that_of_the_reference(sweep):
    loaded, words = sweep
    store = Store("store")
    _, jobs = loaded.missing(store, data=Path("data"))
    records = {trial: execute(job, report=lambda event: None) for trial, job in jobs.items()}
    kept: dict[tuple[str, int], float] = {}
    endings: set[str] = set()
    differ = False
    for trial, job in jobs.items():
        metrics = records[trial]["metrics"]
        stages = list(by_reference(job.point, words))
        for place, (letter, theirs) in enumerate(stages, start=1):
            finished = store.stage(job.chain[place - 1])
            weights = load_file(store.weights(finished, Path("scratch")) / "model.safetensors")
            far = max(float((weights[name] - theirs.weights[name]).abs().max()) for name in weights)
            assert far < FAR, (job.point, letter, far)
            assert metrics[f"stopped_by_{place}"] == theirs.stopped_by
            assert metrics[f"steps_{place}"] == len(theirs.losses)
            assert metrics[f"loss_{place}"] == pytest.approx(theirs.losses[-1], rel=1e-3)
            assert metrics[f"memorized_{place}"] == (theirs.accuracy[letter] == 100.0)
            if letter != "a":
                assert metrics[f"accuracy_{letter}"] == theirs.accuracy[letter]
        (_, first), (_, last) = stages[0], stages[-1]
        assert metrics["accuracy_a1"] == first.accuracy["a"]
        assert metrics["retention"] == last.accuracy["a"]
        assert metrics["forgetting"] == first.accuracy["a"] - last.accuracy["a"]
        kept[job.point["mixer"], job.point["seed"]] = last.accuracy["a"]
        endings.add(first.stopped_by)
        differ |= first.accuracy["a"] not in (last.accuracy["a"], last.accuracy[stages[-1][0]])
    assert "loss" in endings, "no first stage was ended by its rule: the test could not see it broken"
    assert differ or job.point["d_a"] == "kvr", "nothing was forgotten: the test could not see stages mixed up"
    frame = raysweep.trials("oracle", store="store").set_index(["mixer", "seed"])["retention"]
    assert {key: frame[key] for key in kept} == kept
    table = raysweep.table("oracle", store="store", rows=["mixer"], columns="d_b", value="retention")
    means = {row.labels[0]: row.cells[0].mean for row in table.rows}
    for mixer in dict.fromkeys(mixer for mixer, _ in kept):
        seeds = [value for (of, _), value in kept.items() if of == mixer]
        assert means[mixer] == pytest.approx(sum(seeds) / len(seeds))


def test_different_points_are_different_experiments():
    """The reference itself is no constant: seeds and mixers change what it keeps of the weights."""
    words = [f"w{n}" for n in range(50)]
    point = {"d_a": "kvr", "d_b": "id", "mixer": "none/none", "ratio": 0.5, "seed": 0}
    short = {**TRAIN, "epochs": 2, "stop": "epochs"}
    ends = []
    for seed, mixer in itertools.product((0, 1), ("none", "random")):
        reference = Reference(BASE)
        own, mixed = (
            list(islice(kvr(0), EXAMPLES)),
            list(islice(random_words(words, WORDS, 0), 4)) if mixer == "random" else [],
        )
        ends.append(reference.stage(own, mixed, {}, seed=seed, train=short).losses[-1])
    assert len(set(ends)) == 4 and point["seed"] == 0
