"""One-line changes that nobody should make, each made in a copy of the code: the oracle must see it die.

`python tests/oracle/oracle_mutants.py [NAME…]` prints what became of each, and ends with 1 where one lives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ORACLE = "tests/oracle/test_oracle.py"
LAWS = "tests/oracle/test_laws.py"
KEYS = f"{LAWS}::test_what_a_model_knows_is_known_of_that_model_in_those_numbers_by_those_shots"


@dataclass(frozen=True)
class Mutant:
    """A change of one place (`old` stands there once), and the tests that must fail of it."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    Mutant(
        "a stage ignores its loss",
        "raysweep/learn/train.py",
        '        if self.rule.reached(loss):\n            return "loss"\n',
        "",
        f"{ORACLE}::test_stages_end_where_the_reference_ends_them[three]",
    ),
    Mutant(
        "hits are lost with the process",
        "raysweep/learn/train.py",
        "        self.rule.hits = state.hits\n",
        "",
        f"{LAWS}::test_hits_before_an_interruption_count",
    ),
    Mutant(
        "stage 2 starts from the base model",
        "raysweep/trial/execute.py",
        "            if self._engine.can_go_on(training):\n",
        "            self._close()\n            if self._engine is None:\n"
        "                return Engine(start, **parts, runtime=self._job.runtime)\n"
        "            if self._engine.can_go_on(training):\n",
        f"{ORACLE}::test_weights_are_the_references_after_every_stage[three]",
    ),
    Mutant(
        "retention is taken after stage 1",
        "raysweep/trial/measures.py",
        "first, last = on_d_a[0], on_d_a[-1]",
        "first, last = on_d_a[0], on_d_a[0]",
        f"{ORACLE}::test_the_row_of_a_trial_says_what_the_reference_answers[three]",
    ),
    Mutant(
        "half is memorized",
        "raysweep/trial/measures.py",
        "else accuracy >= 100.0",
        "else accuracy >= 50.0",
        f"{ORACLE}::test_the_row_of_a_trial_says_what_the_reference_answers[three]",
    ),
    Mutant(
        "half is memorized, in a stage's record",
        "raysweep/store/records.py",
        "own[0] >= 100.0",
        "own[0] >= 50.0",
        f"{ORACLE}::test_a_stages_record_says_whether_it_is_memorized[three]",
    ),
    Mutant(
        "a stage is reused whatever it was trained on",
        "raysweep/trial/execute.py",
        'if recorded and recorded["digest"] != now[part]["digest"]:',
        "if False:",
        f"{LAWS}::test_a_reused_stage_was_trained_on_todays_data",
    ),
    Mutant(
        "what a model knows is known of all models",
        "raysweep/plan/plan.py",
        '            "model": _known(model),\n            "set": _known(source),',
        '            "set": _known(source),',
        KEYS,
    ),
    Mutant(
        "what a model knows in fp32 it knows in bf16",
        "raysweep/plan/plan.py",
        '            "dtype": dtype,\n            "data_seed"',
        '            "data_seed"',
        KEYS,
    ),
    Mutant(
        "what a model knows by other shots",
        "raysweep/plan/plan.py",
        '            "dtype": dtype,\n            "data_seed": stage.selection.data_seed,\n',
        '            "dtype": dtype,\n',
        KEYS,
    ),
    Mutant(
        "other random words",
        "raysweep/data/mixing.py",
        'random.Random(f"random/{words}/{seed}")',
        'random.Random(f"random/{words}/{seed}/")',
        f"{ORACLE}::test_weights_are_the_references_after_every_stage[three]",
    ),
    Mutant(
        "replay of the first examples",
        "raysweep/data/mixing.py",
        '    random.Random(f"replay/{_seed(mixing)}").shuffle(order)\n',
        "",
        f"{ORACLE}::test_weights_are_the_references_after_every_stage[two]",
    ),
    Mutant(
        "a resumed stage draws its dropout anew",
        "raysweep/learn/checkpoints.py",
        "    _set_random_state(snapshot.read(_rng(newest, engine.ranks.rank)))\n",
        "",
        f"{LAWS}::test_a_resumed_stage_with_dropout_ends_in_the_same_bits",
    ),
    Mutant(
        "offloaded gradients take no room below ZeRO 3",
        "raysweep/learn/memory.py",
        "gradients = gradients if runtime.zero < 3 else 0",
        "gradients = 0",
        f"{LAWS}::test_offloaded_states_leave_gradients_on_the_device_below_zero_3",
    ),
    Mutant(
        "an evaluation does not say how long an answer may be",
        "raysweep/plan/evaluator.py",
        '                "max_new_tokens": most,\n                **self',
        "                **self",
        "tests/plan/test_evaluator.py::test_what_is_asked_and_how_changes_every_evaluation",
    ),
    Mutant(
        "the paper's three seeds are one truth",
        "raysweep/report/compare.py",
        "    scale = math.sqrt(1 / n + 1 / SEEDS)\n",
        "    scale = math.sqrt(1 / n)\n",
        f"{ORACLE}::test_the_verdict_beside_the_paper_is_the_references",
    ),
    Mutant(
        "a difference that is none is called one",
        "raysweep/report/compare.py",
        '    return "within noise" if abs(row["difference"]) <= row["noise"] else "differs alone"\n',
        '    return "differs alone"\n',
        f"{ORACLE}::test_the_verdict_beside_the_paper_is_the_references",
    ),
    Mutant(
        "earlier sets are not evaluated",
        "raysweep/plan/evaluator.py",
        "return range(after) if whole else sorted({0, after - 1})",
        "return sorted({0, after - 1})",
        f"{ORACLE}::test_the_accuracy_matrix_is_the_references[three]",
    ),
)


def dies(mutant: Mutant) -> bool:
    """Whether the mutant's tests fail in a copy that has it. ValueError where its place is not in the code once."""
    with tempfile.TemporaryDirectory(prefix="raysweep-mutant-") as folder:
        copy = Path(folder)
        for name in ("raysweep", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        path = copy / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: {mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}")
        path.write_text(text.replace(mutant.old, mutant.new))
        return _fails(copy, mutant.tests)


def _fails(copy: Path, tests: str) -> bool:
    """Whether tests fail there; that they cannot be found or begun is no failure of theirs."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{tests}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


if __name__ == "__main__":
    chosen = [mutant for mutant in MUTANTS if not sys.argv[1:] or mutant.name in sys.argv[1:]]
    alive = []
    for mutant in chosen:
        dead = dies(mutant)
        print(f"{'dies ' if dead else 'LIVES'}  {mutant.name}", flush=True)
        alive += [] if dead else [mutant.name]
    sys.exit(1 if alive else 0)
