"""`data list`, `data check` and `data fetch`: what is there, whether it loads, and a folder that gives the same ids."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from fakehub import FakeHub, point_to, serving

from raysweep.cli import main
from raysweep.data import fetch as fetching
from raysweep.data import hub
from raysweep.data.checks import check, named_in
from raysweep.data.example import Example
from raysweep.data.examples import candidates, digest_of
from raysweep.data.fetch import fetch
from raysweep.data.inventory import listed
from raysweep.data.sources import find, find_mixer
from raysweep.sweep.catalog import DATASETS, MIXERS
from raysweep.sweep.spec import OwnSet, Sweep

GSM8K = "\n".join(json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) for n in range(20)).encode()


def always(example: Example) -> bool:
    return True


def sweep(*, d_a="kvr", d_b=("none",), mixer=("none/none",), evaluate=(), **more) -> Sweep:
    grid = {"d_a": [d_a], "d_b": list(d_b), "mixer": list(mixer)}
    file = {"name": "x", "model": {"name": "tiny"}, "grid": grid, "evaluate": list(evaluate), **more}
    return Sweep.model_validate(file)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "_failed", {})


def test_a_sweep_names_its_sets_and_mixers_once():
    named = named_in(
        sweep(
            d_b=["id", "webqa", "none"],
            mixer=["random/none", "replay/knowledge_pile", "random/random"],
            evaluate=["familiar/popqa", "webqa"],
        )
    )
    assert named.sets == ("kvr", "webqa", "popqa")
    assert named.mixers == ("random", "knowledge_pile")


def test_the_list_has_every_set_and_mixer_and_says_what_is_here(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_bytes(GSM8K)
    own = OwnSet(path="a.jsonl", prompt="{question}", target="answer", factoid=False)
    entries = {entry.name: entry for entry in listed(data_dir=tmp_path / "data", sets={"mine": own})}
    assert entries.keys() == {*DATASETS, "mine"} | {name for name, mixer in MIXERS.items() if mixer.hub} | {"random"}
    assert {name for name, entry in entries.items() if entry.here} == {"kvr", "gsm8k", "mine", "random"}
    assert entries["gsm8k"].examples == entries["mine"].examples == 20
    assert entries["kvr"].examples == 62**8
    assert entries["mine"].role == "B"
    assert all(entry.licence and entry.source for entry in entries.values())


def test_a_check_shows_every_error_and_an_example_of_what_loads(tmp_path):
    (tmp_path / "gsm8k.jsonl").write_bytes(GSM8K + b"\n{")
    lines = {
        line.name: line
        for line in check(sweep(d_b=["gsm8k", "math"], mixer=["random/none"]), data_dir=tmp_path, fits=always)
    }
    assert lines["kvr"].example.prompt.startswith("The value of key")
    assert lines["random"].examples > 0
    assert "gsm8k.jsonl, row 21: not JSON" in lines["gsm8k"].error
    assert "the set math" in lines["math"].error


def test_a_check_counts_what_is_too_long(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GSM8K)
    lines = {
        line.name: line
        for line in check(sweep(d_b=["gsm8k"]), data_dir=tmp_path, fits=lambda example: len(example.target) < 7)
    }
    assert (lines["gsm8k"].examples, lines["gsm8k"].counts["too_long"]) == (10, 10)


def test_what_was_fetched_has_the_hubs_identity_and_examples(tmp_path, monkeypatch):
    pile = "\n".join(json.dumps({"content": f"w{n} " * 120}) for n in range(50)).encode()
    repositories = {
        "openai/gsm8k": {"main/train.jsonl": GSM8K, "main/test.jsonl": GSM8K},
        "Query-of-CC/Knowledge_Pile": {"a.jsonl": pile},
        "me/mine": {"data/train.jsonl": GSM8K},
    }
    own = {"hub": "me/mine", "prompt": "{question}", "target": "answer"}
    named = sweep(d_b=["gsm8k", "mine"], mixer=["random/knowledge_pile"], sets={"mine": own})
    to = tmp_path / "data"
    with serving(FakeHub(repositories)) as address:
        point_to(address, monkeypatch)
        remote = {name: find(name, data_dir=None, own=named.sets.get(name)) for name in ("gsm8k", "mine")}
        remote |= {name: find_mixer(name, text=None, data_dir=None) for name in ("random", "knowledge_pile")}
        lines = list(fetch(named, to=to, data_dir=None))
    assert [(line.name, line.error) for line in lines] == [
        ("gsm8k", ""),
        ("mine", ""),
        ("random", ""),
        ("knowledge_pile", ""),
    ]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    local = {name: find(name, data_dir=to, own=named.sets.get(name)) for name in ("gsm8k", "mine")}
    local |= {name: find_mixer(name, text=None, data_dir=to) for name in ("random", "knowledge_pile")}
    assert {name: source.identity for name, source in local.items()} == {
        name: source.identity for name, source in remote.items()
    }
    assert len(list(candidates(local["gsm8k"], data_seed=0))) == 20


def test_a_fetched_file_that_was_changed_is_another_source(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a.jsonl").write_bytes(GSM8K)
    to = tmp_path / "to"
    assert not any(line.error for line in fetch(sweep(d_b=["gsm8k"]), to=to, data_dir=tmp_path / "from"))
    before, after = find("gsm8k", data_dir=tmp_path / "from"), find("gsm8k", data_dir=to)
    assert before.identity == after.identity
    next(to.rglob("a.jsonl")).write_bytes(GSM8K.replace(b"#### 7", b"#### 8"))
    assert find("gsm8k", data_dir=to).identity != before.identity


def test_files_named_by_path_are_fetched_to_where_they_are_looked_for(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rows.jsonl").write_bytes(GSM8K)
    monkeypatch.chdir(tmp_path)
    own = {"path": "mine/rows.jsonl", "prompt": "{question}", "target": "answer"}
    named = sweep(
        d_b=["own"], mixer=["text/none"], sets={"own": own}, mixing={"text": {"path": "mine", "field": "question"}}
    )
    here = find("own", data_dir=None, own=named.sets["own"]).identity
    assert not any(line.error for line in fetch(named, to=tmp_path / "to", data_dir=None))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find("own", data_dir=tmp_path / "to", own=named.sets["own"]).identity == here
    assert find_mixer("text", text=named.mixing.text, data_dir=tmp_path / "to").files


def named_by(path: str) -> Sweep:
    return sweep(d_b=["own"], sets={"own": {"path": path, "prompt": "{question}", "target": "answer"}})


@pytest.mark.parametrize("path", ["../b.jsonl", "deep/../../b.jsonl", "~/b.jsonl"])
def test_nothing_is_written_outside_of_the_folder(path, tmp_path, monkeypatch):
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / "b.jsonl").write_bytes(GSM8K)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    here = find("own", data_dir=None, own=named_by(path).sets["own"]).identity
    to = tmp_path / "out" / "data"
    assert [line.error for line in fetch(named_by(path), to=to, data_dir=None)] == [""]
    assert [found.relative_to(tmp_path / "out").as_posix() for found in (tmp_path / "out").rglob("*.jsonl")] == [
        "data/b.jsonl"
    ]
    (tmp_path / "b.jsonl").unlink()
    assert find("own", data_dir=to, own=named_by(path).sets["own"]).identity == here


def test_a_path_without_a_name_is_refused(tmp_path, monkeypatch):
    (tmp_path / "work" / "data").mkdir(parents=True)
    (tmp_path / "work" / "rows.jsonl").write_bytes(GSM8K)
    monkeypatch.chdir(tmp_path / "work" / "data")
    (line,) = fetch(named_by(".."), to=tmp_path / "to", data_dir=None)
    assert "ends in no name" in line.error
    assert list((tmp_path / "to").iterdir()) == []


def test_a_file_that_is_there_already_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(GSM8K)
    (line,) = fetch(named_by("a.jsonl"), to=Path("."), data_dir=None)
    assert (line.error, line.files, (tmp_path / "a.jsonl").read_bytes()) == ("", 1, GSM8K)


def test_a_file_is_no_folder_to_copy_into(tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "a.jsonl").write_bytes(GSM8K)
    file = {"name": "x", "model": {"name": "tiny"}, "grid": {"d_a": ["kvr"]}}
    (tmp_path / "sweep.yaml").write_text(json.dumps(file))
    for to in ("file", "file/below"):
        assert main(["data", "fetch", str(tmp_path / "sweep.yaml"), "--to", str(tmp_path / to)]) == 2
        assert f"--to {tmp_path / to}: cannot be a folder" in capsys.readouterr().err


def test_a_copy_that_fails_is_a_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GSM8K)
    (tmp_path / "to" / "a.jsonl").mkdir(parents=True)
    own = sweep(
        d_b=["own"], sets={"own": {"path": str(tmp_path / "a.jsonl"), "prompt": "{question}", "target": "answer"}}
    )
    (line,) = fetch(own, to=tmp_path / "to", data_dir=None)
    assert line.error == f"{tmp_path / 'to' / 'a.jsonl'}: cannot be copied: Is a directory"


def test_an_upstream_archive_is_unpacked(tmp_path, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("dataset/train/P19.train.json", '[{"question": "Where was Ada born?", "answers": ["Rome"]}]')
        archive.writestr("dataset/readme.txt", "x")
    path = tmp_path / "dataset.zip"
    path.write_bytes(packed.getvalue())
    monkeypatch.setattr(fetching, "archive_url", lambda name: path.as_uri())
    (line,) = fetch(sweep(d_b=["entityqa"]), to=tmp_path / "to", data_dir=None)
    assert (line.name, line.files, line.error) == ("entityqa", 1, "")
    (example,) = candidates(find("entityqa", data_dir=tmp_path / "to"), data_seed=0)
    assert example.subject == "Ada"


def test_a_failed_fetch_leaves_what_was_there(tmp_path):
    to = tmp_path / "to"
    (to / "gsm8k").mkdir(parents=True)
    (to / "gsm8k" / "old.txt").write_text("kept")
    (line,) = fetch(sweep(d_b=["gsm8k"]), to=to, data_dir=None)
    assert "cannot be reached" in line.error
    assert sorted(path.name for path in to.rglob("*")) == ["gsm8k", "old.txt"]


def test_everything_that_the_folder_carries_is_checked(data_dir):
    sets = [name for name in DATASETS if name != "math"]
    text = {"path": str(data_dir / "generic_text")}
    named = sweep(d_b=[*sets, "id"], mixer=["random/text", "replay/none"], mixing={"text": text})
    lines = list(check(named, data_dir=data_dir, fits=always))
    assert [line.name for line in lines if line.error] == []
    assert {line.name for line in lines} == {*sets, "random", "text"}


def test_a_fetched_copy_of_the_folder_has_the_same_digests(data_dir, tmp_path):
    sets = ["popqa", "webqa", "lama", "apps", "gsm8k"]
    named = sweep(d_b=sets)
    assert [line.error for line in fetch(named, to=tmp_path / "to", data_dir=data_dir)] == [""] * len(sets)
    for name in sets:
        here, there = (find(name, data_dir=folder) for folder in (data_dir, tmp_path / "to"))
        assert here.identity == there.identity
        one, other = (digest_of(list(candidates(source, data_seed=0))) for source in (here, there))
        assert one == other
