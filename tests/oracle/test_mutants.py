"""Mutants of the experiment's own rules: each is seen by a test."""

from __future__ import annotations

import pytest
from mutants import Mutant, killed

ORACLE = "tests/oracle/test_oracle.py::test_the_experiment_is_that_of_the_reference"
KVR, FACTS = f"{ORACLE}[kvr, then others]", f"{ORACLE}[facts, then pairs]"

MUTANTS = [
    Mutant("the loss rule never ends a stage", "learn/train.py", "if self.rule.reached(loss):", "if False:", KVR),
    Mutant(
        "hits are forgotten",
        "learn/train.py",
        "self.rule.hits = state.hits",
        "pass",
        "tests/trial/test_resume.py::test_a_stage_that_is_resumed_has_not_forgotten_how_often_its_loss_was_low",
    ),
    Mutant("stage 2 starts from the base model", "trial/execute.py", "weights = there or weights", "pass", KVR),
    Mutant(
        "retention is taken after stage 1",
        "trial/measures.py",
        "first, last = on_d_a[0], on_d_a[-1]",
        "first, last = on_d_a[0], on_d_a[0]",
        FACTS,
    ),
    Mutant("half is memorized", "store/records.py", "own[0] >= 100.0", "own[0] >= 50.0", FACTS),
    Mutant(
        "a reused stage is not checked against today's data",
        "trial/execute.py",
        'if recorded and recorded["digest"] != now[part]["digest"]:',
        "if False:",
        "tests/trial/test_resume.py::test_a_stage_that_was_trained_on_other_examples_is_not_used",
    ),
    *(
        Mutant(
            f"familiarity whatever the {name}",
            "plan/plan.py",
            line,
            "",
            f"tests/plan/test_plan.py::test_what_a_model_knows_is_asked_again_of_another_model_seed_or_type[{test}]",
        )
        for name, line, test in (
            ("model", '            "model": _known(model),\n', "model"),
            ("type", '            "dtype": dtype,\n', "type"),
            ("seed", '            "data_seed": stage.selection.data_seed,\n', "seed"),
        )
    ),
    Mutant(
        "other random words", "data/mixing.py", 'f"random/{words}/{data_seed}"', 'f"random/{data_seed}/{words}"', KVR
    ),
    Mutant(
        "replay without its shuffle",
        "data/mixing.py",
        'random.Random(f"replay/{mixing.data_seed}").shuffle(order)',
        "pass",
        KVR,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_a_mutant_is_seen(mutant, tmp_path):
    done = killed(mutant, tmp_path)
    assert done.returncode == 1, f"{mutant.test} did not see it:\n{done.stdout[-2000:]}{done.stderr[-1000:]}"
    assert "1 failed" in done.stdout, done.stdout[-2000:]
