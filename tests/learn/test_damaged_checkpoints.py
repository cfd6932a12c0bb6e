"""A checkpoint that is not what was written: it is set aside, and none runs code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raysweep.errors import TrialFailed
from raysweep.learn import snapshot
from raysweep.learn.async_checkpoint import Background
from raysweep.learn.checkpoints import resume
from raysweep.learn.engine import Engine
from raysweep.learn.train import train
from raysweep.sweep.spec import Every, Runtime
from raysweep.sweep.stage import total_steps


@pytest.fixture
def stage(small, tokenizer, tmp_path, pairs, training, encoded):
    """Runs a stage of 12 steps until it dies after a step, or to its end; the steps that were reported, and the weights."""
    examples, settings = encoded(pairs(20)), training(epochs=4)

    def run(kept: Path, *, dies_after: int | None = None, zero: int = 3):
        steps: list[int] = []
        with Engine(
            small, training=settings, total_steps=total_steps(len(examples), settings), runtime=Runtime(zero=zero)
        ) as engine:
            engine.step = mortal(engine.step, dies_after)
            train(
                engine,
                examples,
                training=settings,
                seed=5,
                tokenizer=tokenizer,
                probes={},
                every=Every(epochs=1),
                checkpoints=kept,
                checkpoint_every=0.0,
                on_progress=lambda progress: steps.append(progress.step),
            )
            engine.save(tmp_path / "out")
        return steps, load_file(tmp_path / "out" / "model.safetensors")

    return run


@pytest.fixture
def at_once(monkeypatch):
    """As if writing took no time: a checkpoint after every second step."""
    monkeypatch.setattr(Background, "free", property(lambda beside: beside.wait() or True))


def mortal(step, after):
    """An engine's step that dies once so many were made."""
    made = []

    def once_more(*said, **more):
        if len(made) == after:
            raise KeyboardInterrupt
        made.append(None)
        return step(*said, **more)

    return once_more


def killed(stage, kept, **said):
    with pytest.raises(KeyboardInterrupt):
        stage(kept, dies_after=8, **said)
    assert sorted(found.name for found in kept.glob("step-*")) == ["step-5", "step-7"]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def empty(file: Path) -> None:
    file.write_bytes(b"{}")


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


@pytest.mark.parametrize("zero", [0, 3])
def test_whatever_is_damaged_in_the_newest_checkpoint_the_one_before_is_taken(
    stage, small, training, tmp_path, at_once, caplog, zero
):
    kept, runtime = tmp_path / "kept", Runtime(zero=zero)
    killed(stage, kept, zero=zero)
    names = [path.relative_to(kept / "step-7") for path in files_of(kept / "step-7")]
    assert {"progress.json", "files-0.json", "rng-0.pt"} < {name.name for name in names}
    assert {name.suffix for name in names} == {".json", ".pt"}
    with Engine(small, training=training(epochs=4), total_steps=12, runtime=runtime) as engine:
        assert resume(kept, engine).step == 7
        for number, (name, damage) in enumerate(product(names, (truncate, flip, empty, Path.unlink))):
            again = tmp_path / f"again-{number}"
            shutil.copytree(kept, again)
            damage(again / "step-7" / name)
            caplog.clear()
            assert resume(again, engine).step == 5, (name, damage)
            if damage is not Path.unlink or name.suffix == ".pt":  # without its record it was never whole
                assert "is not used" in caplog.text


def test_beyond_a_damaged_checkpoint_the_numbers_are_the_same(stage, tmp_path, at_once):
    kept = tmp_path / "kept"
    _, weights = stage(tmp_path / "whole")
    killed(stage, kept)
    flip(next((kept / "step-7").rglob("*optim_states.pt")))
    steps, resumed = stage(kept)
    assert steps[0] == 6
    assert same(weights, resumed)


def test_with_both_checkpoints_damaged_the_stage_starts_again(stage, tmp_path, at_once):
    kept = tmp_path / "kept"
    _, weights = stage(tmp_path / "whole")
    killed(stage, kept)
    for checkpoint in kept.glob("step-*"):
        truncate(next(checkpoint.rglob("*optim_states.pt")))
    steps, resumed = stage(kept)
    assert steps[0] == 1
    assert same(weights, resumed)


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zero", [0, 1, 3])
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_crafted_checkpoint_runs_no_code(stage, tmp_path, at_once, zero, kind):
    """Its digests are those of the crafted file: whoever can write there can write these too."""
    kept, mark = tmp_path / "kept", tmp_path / "mark"
    killed(stage, kept, zero=zero)
    names = [path.relative_to(kept / "step-7") for path in files_of(kept / "step-7") if path.suffix == ".pt"]
    assert len(names) == (2 if zero == 0 else 3)
    for number, name in enumerate(names):
        crafted = tmp_path / f"crafted-{number}"
        shutil.copytree(kept, crafted)
        file = crafted / "step-7" / name
        if kind == "pickle":
            file.write_bytes(pickle.dumps({"module": Attack(mark)}, protocol=2))
        else:
            torch.save({"module": Attack(mark)}, file, _use_new_zipfile_serialization=kind == "zip")
        manifest = crafted / "step-7" / "files-0.json"
        manifest.write_text(with_digest(manifest, name, snapshot.digest(file)))
        with pytest.raises(TrialFailed, match="could run code"):
            stage(crafted, zero=zero)
        assert not mark.exists()
    torch.load(crafted / "step-7" / names[-1], weights_only=False) if kind != "pickle" else pickle.loads(
        file.read_bytes()
    )
    assert mark.exists()  # the attack is one


def with_digest(manifest: Path, name: Path, digest: str) -> str:
    """What a list of files says with another digest for one of them."""
    files = json.loads(manifest.read_text())["files"] | {name.as_posix(): digest}
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "digest": own})


def test_a_checkpoint_under_another_steps_name_is_not_taken_for_it(stage, tmp_path, at_once, small, training):
    kept = tmp_path / "kept"
    killed(stage, kept)
    (kept / "step-7").rename(kept / "step-9")
    with Engine(small, training=training(epochs=4), total_steps=12, runtime=Runtime()) as engine:
        assert resume(kept, engine).step == 5
