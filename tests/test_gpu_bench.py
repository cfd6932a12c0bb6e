"""tests/bench/gpu.py: it runs through without a GPU, with the packages that it names and no Ray, and keeps to its time."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

GIVEN = "torch"  # what a bare machine has, with what it requires
ROOM = 64 * 2**20  # bytes of wheels


@pytest.fixture(scope="module")
def gpu(root):
    sys.path.insert(0, str(root / "tests" / "bench"))
    import gpu
    import gpu_words

    yield gpu, gpu_words
    sys.path.remove(str(root / "tests" / "bench"))


def required(names):
    """These distributions and all that they require, without extras."""
    found, open_ = {}, list(names)
    while open_:
        name = re.sub(r"[-_.]+", "-", open_.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # what only other systems need
        needs = map(Requirement, found[name].requires or ())
        open_ += [one.name for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def bare(folder, names):
    """A folder from which exactly these distributions, and what they require, can be imported."""
    folder.mkdir()
    for dist in required(names).values():
        for top in {file.parts[0] for file in dist.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(dist.locate_file(top))
    return folder


def started(root, folder, *arguments, path):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PYTHONPATH": str(path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys._base_executable, root / "tests" / "bench" / "gpu.py", "--json", folder, "--small", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done, {file.stem.removeprefix("gpu_"): json.loads(file.read_text()) for file in folder.glob("gpu_*.json")}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_part_runs_where_only_what_it_names_is_installed(gpu, root, tmp_path):
    names = gpu[0].NEEDS
    assert "ray" not in required([GIVEN, *names]) and "datasets" not in required([GIVEN, *names])
    path = bare(tmp_path / "packages", [GIVEN, *names])
    done, told = started(root, tmp_path / "told", "--budget", "1500", path=path)
    assert done.returncode == 0, done.stdout + done.stderr + json.dumps(told, indent=1)
    assert set(told) == {part.name for part in gpu[0].PARTS}
    figures = {name: one["figures"] for name, one in told.items()}
    for name, one in told.items():
        assert one["small"] and one["machine"]["torch"] and one["seconds"] > 0 and figures[name], name
        assert not one.keys() & {"left_out", "stopped", "failed"}, (name, one)
        assert not [key for key in figures[name] if key.endswith(("_left_out", "_failed"))], name
    assert all(value.endswith(", apart") for key, value in figures["packing"].items() if key.startswith("apart_"))
    assert set(figures["checks"].values()) == {"skipped"}
    assert figures["throughput_1b"]["smallest_gsm8k_tokens_per_second"] > 0
    assert figures["resume"]["exit_of_the_killed"] == -9
    assert 1 <= min(figures["resume"]["kept_steps"]) < figures["resume"]["steps"] and figures["resume"]["same_bits"]
    assert figures["nccl"]["exits"] == [0, 0] and figures["nccl"]["backend"] == "gloo"
    for part, key in (
        ("packing", "loss_off"),
        ("nccl", "loss_off"),
        ("zero3", "optimizer_loss_off"),
        ("zero3", "all_loss_off"),
    ):
        assert figures[part][key] < 1e-4, (part, key)
    assert told["evaluation"]["ratios"]["all_memorized_kvr"] > 0


@pytest.mark.slow
def test_the_wheels_have_room(gpu):
    """Packed about as wheels are; with what torch requires already there."""
    there = required([GIVEN])
    wheels = {name: dist for name, dist in required(gpu[0].NEEDS).items() if name not in there}
    sizes = {
        name: sum(packed_size(Path(dist.locate_file(file))) for file in dist.files or ())
        for name, dist in wheels.items()
    }
    assert sum(sizes.values()) < ROOM, sorted(sizes.items(), key=lambda one: -one[1])[:10]


def packed_size(file):
    skipped = file.suffix == ".pyc" or not file.is_file()
    return 0 if skipped else len(zlib.compress(file.read_bytes(), 6))


def test_what_no_longer_fits_is_left_out_and_said(gpu, root, tmp_path):
    done, told = started(root, tmp_path, "--budget", "10", path=os.pathsep.join(sys.path))
    assert done.returncode == 0, done.stderr
    assert set(told) == {part.name for part in gpu[0].PARTS}
    assert all(re.match(r"\d s of 10 were left", one["left_out"]) for one in told.values())


def test_a_part_that_takes_too_long_is_stopped_and_its_figures_kept(gpu, tmp_path, monkeypatch):
    """Driven by hand: a part that tells something, starts another process, and sleeps."""
    module = gpu[0]
    sleeper = tmp_path / "gpu_parts.py"
    sleeper.write_text(
        "import json, subprocess, sys\n"
        "sys.stdin.readline()\n"
        "open(sys.argv[2], 'w').write(json.dumps({'name': 'gpu_x', 'ratios': {}, 'figures': {'a': 1}, 'machine': {}}))\n"
        "subprocess.run(['sleep', '600'])\n"
    )
    monkeypatch.setattr(module, "HERE", tmp_path)
    fine = module.run([module.Part("x", 1, 3)], out=tmp_path / "out", small=False, budget=60)
    told = json.loads((tmp_path / "out" / "gpu_x.json").read_text())
    assert fine and told["figures"] == {"a": 1} and "not done after 3 s" in told["stopped"]
    assert 3 <= told["seconds"] < 30


def test_a_part_that_fails_says_so(gpu, tmp_path, monkeypatch):
    module = gpu[0]
    (tmp_path / "gpu_parts.py").write_text("raise SystemExit('no such kernel')\n")
    monkeypatch.setattr(module, "HERE", tmp_path)
    assert not module.run([module.Part("x", 1, 30)], out=tmp_path / "out", small=False, budget=60)
    assert "no such kernel" in json.loads((tmp_path / "out" / "gpu_x.json").read_text())["failed"]


def test_what_the_pages_say_of_a_gpu_is_what_was_kept(gpu, root):
    module, words = gpu
    for file in (module.HERE / "RESULTS.md", root / "README.md"):
        sections = words.MARKS.findall(file.read_text())
        assert len(sections) == 1, file
        assert f"{words.section(module.RESULTS, sections[0][1])}<!-- gpu: end -->" in file.read_text(), (
            "run gpu.py --take"
        )


def test_pages_take_over_what_was_measured(gpu, tmp_path):
    _, words = gpu
    figures = {"llama_1b_remix_mfu": 0.51, "llama_1b_remix_tokens_per_second": 61_000, "small_mfu": None}
    told = {"name": "gpu_throughput_1b", "ratios": {"packed_llama_1b_remix": 1.31}, "figures": figures}
    told |= {"machine": {"gpu": "NVIDIA H100", "torch": "2.11.0"}, "commit": "abc", "stopped": "it was not done"}
    (tmp_path / "gpu_throughput_1b.json").write_text(json.dumps(told))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- gpu: utilisation -->\nold\n<!-- gpu: end -->\nafter\n")
    words.tell(tmp_path, [page])
    assert "| `gpu_throughput_1b` `llama_1b_remix` | 61,000 | 51 % | 1.31 |" in page.read_text()
    assert (
        page.read_text().startswith("before\n")
        and page.read_text().endswith("after\n")
        and "old" not in page.read_text()
    )
    whole = words.section(tmp_path, "all")
    assert "NVIDIA H100" in whole and "commit abc" in whole and "it was not done" in whole
    assert "| `packed_llama_1b_remix` | 1.31 |" in whole
