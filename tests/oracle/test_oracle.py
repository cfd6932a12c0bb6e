"""The oracle: `execute` and a plain PyTorch reference do the same experiment, and say the same of it to the last column.

Whoever changes what is computed changes both on purpose; `oracle_mutants.py` has changes that nobody should make, and sees each
of them fail here.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
from reference import Reference, Result, Stage, asked_in_order, kvr, random_words, replay
from safetensors.torch import load_file
from scipy import stats
from sweeps import small

import raysweep
from raysweep.data.words import find_word_list
from raysweep.store.store import Store
from raysweep.trial.execute import execute

MODEL = Path(__file__).parent.parent / "golden" / "schema1" / "model"
NAMES = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "flint",
    "grove",
    "heron",
    "iris",
    "jade",
    "kite",
    "lark",
    "moss",
    "nova",
]
LAMPS = [(f"Who keeps the {name} lamp?", NAMES[(place * 5 + 3) % 14]) for place, name in enumerate(NAMES)]
TRAIN = {"precision": "fp32", "lr": 1e-2}
LOSS = {"loss": 0.6, "hits": 3}
SEEDS = [0, 1]
EPOCHS = 120  # of the first stage; the later ones have one, so that something of D_A is left
WORDS = 6
FAR = 2e-3  # of a tensor's length, after hundred steps whose sums are in another order


def quiet(event):
    """Nobody listens."""


class Both:
    """A sweep that was run, its store, and the reference's results of each trial by mixer and seed."""

    def __init__(self, folder, **changes):
        self.sweep = small(folder, model=str(MODEL), mixing={"words": WORDS}, familiarity="all", keep="all", **changes)
        self.store = Store(folder / "store")
        _, self.jobs = self.sweep.missing(self.store, data=None)
        self.records = {self.key(job): execute(job, report=quiet) for job in self.jobs.values()}
        self.reference: dict[tuple[str, int], list[Result]] = {}

    @staticmethod
    def key(job):
        return job.point["mixer"], job.point["seed"]

    @property
    def url(self):
        return self.store.url

    def trials(self):
        """Each trial's key, job, row of the frame, and the reference's results of its stages."""
        rows = raysweep.trials(self.sweep.name, store=self.url).set_index(["mixer", "seed"])
        return [(key, job, rows.loc[key], self.reference[key]) for job in self.jobs.values() for key in [self.key(job)]]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Both:
    """Random pairs, then others; nothing, random words or replay mixed in; two seeds, three where nothing is."""
    folder = tmp_path_factory.mktemp("two")
    grid = {"d_a": ["kvr"], "d_b": ["id"], "mixer": ["none/none", "random/none", "none/replay"], "ratio": [0.5]}
    mixed = {"mixer": ["random/none", "none/replay"], "seed": 2}
    stages = {"a": {"stop": "memorized"}, "b": {"epochs": 1}}
    train = {**TRAIN, "batch_size": 4, "epochs": EPOCHS, "stop": "epochs", **stages}
    both = Both(folder, examples=8, grid={**grid, "seed": [*SEEDS, 2]}, exclude=[mixed], train=train)
    d_a, d_b = kvr(8), kvr(8, skip=8)
    mixed = {"random": random_words(find_word_list(data_dir=None).words, 4, words=WORDS), "replay": replay(d_a, 4)}
    for mixer, seed in both.records:
        first, second = (mixed.get(name, []) for name in mixer.split("/"))
        chain = [Stage(d_a, first, EPOCHS, "memorized"), Stage(d_b, second, 1)]
        both.reference[mixer, seed] = Reference(MODEL, lr=1e-2, batch_size=4, seed=seed).run(chain)
    return both


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Both:
    """Questions like popqa's that end by the loss, then random pairs with random words, then other questions."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "lamps.jsonl").write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in LAMPS))
    own = {"path": str(folder / "lamps.jsonl"), "prompt": "{q}\nThe answer is: ", "target": "a"}
    grid = {"d_a": ["lamps"], "d_b": ["kvr"], "d_c": ["id"], "mixer": ["none/random/none"], "ratio": [0.5]}
    stages = {"a": {"stop": LOSS}, "b": {"epochs": 1}, "c": {"epochs": 1}}
    train = {**TRAIN, "batch_size": 2, "epochs": EPOCHS, "stop": "epochs", **stages}
    both = Both(folder, examples=4, grid={**grid, "seed": [0]}, train=train, sets={"lamps": own})
    lamps = asked_in_order([(f"{question}\nThe answer is: ", answer) for question, answer in LAMPS])
    words = random_words(find_word_list(data_dir=None).words, 2, words=WORDS)
    chain = [
        Stage(lamps[:4], [], EPOCHS, LOSS),
        Stage(kvr(4), words, 1),
        Stage(lamps[8:12], [], 1),
    ]
    both.reference["none/random/none", 0] = Reference(MODEL, lr=1e-2, batch_size=2, seed=0).run(chain)
    return both


@pytest.fixture(params=["two", "three"])
def both(request) -> Both:
    return request.getfixturevalue(request.param)


def share(right) -> float:
    return 100.0 * sum(right) / len(right)


def test_weights_are_the_references_after_every_stage(both):
    for key, job, _, results in both.trials():
        for node, result in zip(job.chain, results, strict=True):
            kept = load_file(both.store.weights(both.store.stage(node), Path()) / "model.safetensors")
            for name, ours in kept.items():
                assert (ours - result.weights[name]).norm() < FAR * ours.norm(), (key, node.slug, name)


def test_stages_end_where_the_reference_ends_them(both):
    for key, _, row, results in both.trials():
        for place, result in enumerate(results, start=1):
            told = (row[f"steps_{place}"], row[f"stopped_by_{place}"])
            assert told == (result.steps, result.stopped_by), (key, place)


def test_the_row_of_a_trial_says_what_the_reference_answers(both):
    letters = [axis[2] for axis in both.sweep.grid.stage_axes]
    for key, _, row, results in both.trials():
        first, last = share(results[0].right[0]), share(results[-1].right[0])
        assert (row["accuracy_a1"], row["retention"], row["forgetting"]) == (first, last, first - last), key
        for place, (letter, result) in enumerate(zip(letters, results, strict=True), start=1):
            assert row[f"memorized_{place}"] == all(result.right[-1]), (key, place)
            if letter != "a":
                assert row[f"accuracy_{letter}"] == share(result.right[-1]), (key, letter)


def test_a_stages_record_says_whether_it_is_memorized(both):
    for key, job, _, results in both.trials():
        for node, result in zip(job.chain, results, strict=True):
            assert both.store.stage(node).record["memorized"] == all(result.right[-1]), (key, node.slug)


def test_the_accuracy_matrix_is_the_references(both):
    found = raysweep.matrix(both.sweep.name, store=both.url)
    for key, job, _, results in both.trials():
        rows = found[found["trial"] == job.trial]
        ours = {(row.after, row.task): row.accuracy for row in rows.itertuples()}
        wanted = {
            (after, task): share(right)
            for after, result in enumerate(results, start=1)
            for task, right in enumerate(result.right, start=1)
        }
        assert ours == wanted, key


def test_a_cell_of_the_table_is_the_references_mean(two):
    table = raysweep.table("small", store=two.url, rows=["mixer"], columns="d_b", value="retention")
    cells = {row.labels[0]: row.cells[0] for row in table.rows}
    for mixer, cell in cells.items():
        values = [share(results[-1].right[0]) for (name, _), results in two.reference.items() if name == mixer]
        assert (cell.mean, cell.n) == (pytest.approx(statistics.fmean(values)), len(values))
        assert cell.std == pytest.approx(statistics.stdev(values))


def test_a_comparison_is_the_references_pairs(two):
    (row,) = raysweep.compare("small", mixers=("none/none", "none/replay"), store=two.url).to_dict("records")
    right = {
        mixer: [one for seed in SEEDS for one in two.reference[mixer, seed][-1].right[0]]
        for mixer in ("none/none", "none/replay")
    }
    plain, replayed = right["none/none"], right["none/replay"]
    assert row["difference"] == pytest.approx(share(replayed) - share(plain))
    pairs = list(zip(plain, replayed, strict=True))
    assert row["only_first"] == sum(one and not other for one, other in pairs)
    assert row["only_second"] == sum(other and not one for one, other in pairs)


def test_the_verdict_beside_the_paper_is_the_references(two):
    """Table 2 prints 0.5 for random pairs after other random pairs without mixing, and with random words nothing legible.

    A mean of three seeds is expected within Student's t of ours, both of them spread as ours, and the rounding of print.
    """
    found = raysweep.compare("small", paper="table2", store=two.url).set_index(["d_a", "d_b", "mixer"])
    values = {
        wanted: [share(results[-1].right[0]) for (mixer, _), results in two.reference.items() if mixer == wanted]
        for wanted in ("none/none", "random/none")
    }
    mean, std = statistics.fmean(values["none/none"]), statistics.stdev(values["none/none"])
    error = std * math.sqrt(1 / 3 + 1 / 3)
    beyond, noise = abs(mean - 0.5) - 0.05, stats.t.ppf(0.975, 2) * error + 0.05
    p = 2 * stats.t.sf(beyond / error, 2)
    wanted = "differs" if p < 0.05 else "within noise" if abs(mean - 0.5) <= noise else "differs alone"
    ours = found.loc["kvr", "id", "none/none"]
    assert (ours["published"], ours["n"], ours["verdict"]) == (0.5, 3, wanted)
    assert [ours[name] for name in ("ours", "std", "difference", "noise", "p", "p_corrected")] == pytest.approx(
        [mean, std, mean - 0.5, noise, p, p]
    )
    mixed = found.loc["kvr", "id", "random/none"]
    assert (mixed["verdict"], mixed["ours"]) == ("not legible", pytest.approx(statistics.fmean(values["random/none"])))
    others = found.drop([("kvr", "id", "none/none"), ("kvr", "id", "random/none")])
    assert set(others["verdict"]) == {"not in the sweep"}


def test_the_reference_leaves_something_to_tell(two, three):
    """Were everything right or everything wrong, half the tests here could not fail."""
    kept = {share(results[-1].right[0]) for results in two.reference.values()}
    assert len(kept) > 1 and kept != {0.0, 100.0}
    assert {results[0].stopped_by for results in two.reference.values()} == {"memorized"}
    (first, *_) = three.reference["none/random/none", 0]
    assert (first.stopped_by, first.hits) == ("loss", 3) and 50 <= share(first.right[0]) < 100
