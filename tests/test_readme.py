"""The README keeps its word: its commands run, its tree and links are real, its numbers come from kept results."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep.api import load, overview
from raysweep.cli import parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(?:^<!-- (?P<note>[^>]*) -->\n)?^```sh\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(found["note"], found["body"]) for found in BLOCK.finditer(README)]


def commands(body):
    """The lines of a block without their comments."""
    return [shlex.split(line, comments=True) for line in body.splitlines() if shlex.split(line, comments=True)]


OURS = [(note, words) for note, body in BLOCKS for words in commands(body) if words[0] == "raysweep"]
PAPER = [shlex.split(text) for text in re.findall(r"`(raysweep run experiments/[^`]*)`", README)]


@pytest.mark.parametrize("words", [words for _, words in OURS] + PAPER, ids=" ".join)
def test_every_command_is_one(words):
    options = parser().parse_args(words[1:])
    assert callable(options.call)


def test_the_two_commands_come_first_and_set_everything_up():
    head = "\n".join(README.splitlines()[:25])
    first, second = (body.strip() for _, body in BLOCKS[:2])
    assert first in head and second in head
    assert first.endswith("raysweep run experiments/quickstart.yaml")
    assert "pytest" in second
    for command in (first, second):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -e")


def test_ci_runs_the_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    extract = re.search(r"^command=\$\((.*)\)$", script, re.MULTILINE)[1]
    found = subprocess.run(["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == BLOCKS[1][1].strip()


def test_the_tree_is_the_tree():
    tree = re.search(r"```text\nraysweep/\n(.*?)```", README, re.DOTALL)[1]
    inside = re.findall(r"^[├└]── (\S+)", tree, re.MULTILINE)
    beside = re.findall(r"^(\w+/) ", tree, re.MULTILINE)
    named = {name.rstrip("/") for name in inside} | set(re.findall(r"\b(\w+\.py|\w+/) ", tree))
    for name in inside:
        assert (ROOT / "raysweep" / name).exists(), name
    for name in beside:
        assert (ROOT / name).is_dir(), name
    folders = {path.name for path in (ROOT / "raysweep").iterdir() if (path / "__init__.py").exists()}
    assert folders <= {name.rstrip("/") for name in named}, "a folder that the README does not show"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_shown_output_is_kept_output():
    shown = re.findall(r"<!-- (experiments/results/\S+) -->\n```text\n(.*?)```", README, re.DOTALL)
    assert shown
    for file, text in shown:
        assert (ROOT / file).read_text() == text, file


def test_measured_ratios_are_those_that_the_benchmarks_wrote():
    rows = re.findall(r"^\| .* \| `(\w+)` `(\w+)` \| ([\d.]+) \|$", README, re.MULTILINE)
    assert len(rows) == 10
    for benchmark, ratio, told in rows:
        kept = json.loads((ROOT / "tests" / "bench" / "results" / f"{benchmark}.json").read_text())["ratios"][ratio]
        assert f"{kept:.1f}" == told, (benchmark, ratio)


def test_the_sweep_shown_is_the_file():
    text = re.search(r"```yaml\n(name: table2.*?)```", README, re.DOTALL)[1]
    file = load(ROOT / "experiments" / "table2.yaml")
    shown = ROOT / "experiments" / "table2.yaml"
    assert _without_comments(text).keys() <= _without_comments(shown.read_text()).keys()
    for key in ("name", "model", "grid", "examples", "train", "table"):
        assert _without_comments(text)[key] == _without_comments(shown.read_text())[key]
    assert file.name == "table2"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("readme")
def test_every_command_runs(tmp_path, data_dir):
    """Line by line, in one folder, as a reader would; those that need a cloud or a GPU are planned instead."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAYSWEEP_DATA": str(data_dir),
    }
    ran = []
    for note, words in [(None, shlex.split("raysweep run experiments/quickstart.yaml")), *OURS]:
        words = [str(data_dir) if word == "../shared/data" else word for word in words]
        if note and note.startswith("needs"):
            continue
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 or words[1:2] == ["doctor"], (words, done.stdout[-2000:], done.stderr[-4000:])
        ran.append((words, done))
    again = next(done for words, done in ran[1:] if words == ["raysweep", "run", "experiments/quickstart.yaml"])
    assert "nothing is left to do" in again.stderr
    python = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", python], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check = (
        "import raysweep; frame = raysweep.trials('quickstart')\n"
        "print((frame.accuracy_a1 == 100).all(), (frame.retention < 100).all(), len(frame))"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "6"], done.stderr


@pytest.mark.parametrize("words", PAPER, ids=" ".join)
def test_what_needs_a_gpu_is_planned(words, tmp_path, capsys):
    from raysweep.cli import main

    assert main(["plan", str(ROOT / words[2]), "--store", str(tmp_path)]) == 0
    assert "stage trainings" in capsys.readouterr().out


def test_the_predicted_numbers_are_those_of_plan(tmp_path):
    rows = re.findall(
        r"^\| .* \| `raysweep run (\S+)` \| ([\d,]+) \| ([\d,]+) \(([\d,]+)\) \| ([\d,]+) \|$", README, re.MULTILINE
    )
    assert len(rows) == len(PAPER) == 10
    sweeps = [load(ROOT / file) for file, *_ in rows]
    every = re.search(
        r"^\| all of them.* \| ([\d,]+) \| ([\d,]+) \(([\d,]+)\) \| ([\d,]+) \|$", README, re.MULTILINE
    ).groups()
    for told, planned in [*((row[1:], [sweep]) for row, sweep in zip(rows, sweeps, strict=True)), (every, sweeps)]:
        found = overview(planned, store=tmp_path)
        counts = [found["trials"], found["stages"], found["stages_unshared"], round(found["estimate"]["gpu_hours"])]
        assert [int(number.replace(",", "")) for number in told] == counts


def _without_comments(text):
    import yaml

    return yaml.safe_load(text)
