"""What stops a sweep is found before it starts: every verdict is made to fail once."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep.cli import main
from raysweep.doctor import Finding, examine, machine


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """A machine on which nothing of this one's Ray, token, caches or hub is seen."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAYSWEEP_DATA", "RAYSWEEP_STORE", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "ops"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def look(tmp_path):
    """Examine, and give the findings about one thing."""

    def about(
        name: str, *, store: Path | str = tmp_path / "store", data: str | None = None, address: str | None = None
    ):
        found = examine(store=str(store), data=data, address=address)
        return [finding for finding in found if finding.about == name]

    return about


def test_a_machine_that_can_run_a_sweep_has_nothing_that_stops(tmp_path):
    found = examine(store=str(tmp_path / "store"), data=None, address=None)
    assert [finding for finding in found if finding.verdict == "stop"] == []
    assert all(bool(finding.advice) == (finding.verdict != "ok") for finding in found)
    assert not (tmp_path / "store").exists()


def test_nothing_heavy_is_imported_to_find_out(tmp_path):
    code = (
        "import sys; from raysweep.doctor import examine; examine(store=sys.argv[1], data=None, address=None);"
        "sys.exit(str(sorted({'ray', 'torch', 'deepspeed', 'transformers', 'pandas', 'nltk'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], capture_output=True, text=True)
    assert done.stderr.strip() == ("['torch']" if any(Path(path).exists() for path in machine.DRIVERS) else "[]")


def test_a_version_outside_the_declared_range_stops(monkeypatch, look):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.3" if name == "ray" else real(name))
    (found,) = look("ray")
    assert (found.verdict, found.found) == ("stop", "2.9.3, outside <2.61,>=2.60")
    assert found.advice == "pip install 'ray[default,train,tune]<2.61,>=2.60'"
    assert look("versions") == []


def test_rays_extra_is_looked_for(monkeypatch, look):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "aiohttp_cors" or name == "aiohttp-cors":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (found,) = look("Ray State API")
    assert (found.verdict, found.advice) == ("stop", "pip install 'ray[default]'")


def test_a_missing_compiler_is_named(monkeypatch, look, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = look("compiler")
    assert found.verdict == "warn" and found.found.startswith("a C++ compiler")


def test_a_lock_that_a_killed_build_left_is_shown(look, tmp_path):
    lock = tmp_path / "ops" / "py311_cpu" / "some_op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (found,) = look("compiled ops")
    assert found.verdict == "warn" and str(lock) in found.found


@pytest.mark.parametrize(
    ("free", "verdict"), [(machine.MEMORY[0] - 1, "stop"), (machine.MEMORY[1] - 1, "warn"), (machine.MEMORY[1], "ok")]
)
def test_little_memory_warns_and_too_little_stops(monkeypatch, look, free, verdict):
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    assert look("memory")[0].verdict == verdict


def test_free_memory_is_no_more_than_the_machine_has():
    import os

    free = machine.free_memory()
    assert free is None or 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_full_disk_stops(monkeypatch, look, tmp_path):
    full = type("Usage", (), {"total": 100 * machine.GIB, "free": machine.GIB // 2})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: full)
    assert look("disk")[0].verdict == "stop"
    assert look("Ray's disk")[0].verdict == "warn"


def test_a_store_that_cannot_be_written_stops(look, tmp_path):
    (tmp_path / "file").write_text("")
    assert look("store", store=tmp_path / "file")[0].verdict == "stop"
    assert look("store", store=tmp_path / "file" / "store")[0].verdict == "stop"
    assert look("store", store="nowhere://bucket")[0].verdict == "stop"
    assert look("store", store=tmp_path / "new" / "store")[0].verdict == "ok"


def test_a_bucket_is_tried_and_left_clean(look):
    import fsspec

    assert look("store", store="memory://bucket/store")[0].verdict == "ok"
    assert fsspec.filesystem("memory").find("/bucket") == []


def test_the_token_is_told_by_its_place_and_mode_alone(monkeypatch, look, tmp_path):
    token = tmp_path / "token"
    assert look("token")[0].verdict == "ok"
    assert look("token", address="auto")[0].verdict == "warn"
    token.write_text("d3adbeef")
    token.chmod(0o644)
    (open_to_all,) = look("token")
    assert open_to_all.verdict == "warn" and "644" in open_to_all.found and "d3adbeef" not in repr(open_to_all)
    token.chmod(0o600)
    assert look("token")[0].verdict == "ok"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert look("token")[0].verdict == "warn"


def test_a_ray_that_is_asked_for_must_answer(look, tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert look("Ray", address=address)[0].verdict == "ok"
        assert look("Ray", address=f"http://{address}")[0].verdict == "ok"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert look("Ray", address="auto")[0].found == f"one runs at {address}"
    assert look("Ray", address=address)[0].verdict == "stop"
    assert look("Ray", address="auto")[0].verdict == "stop"
    assert look("Ray")[0].verdict == "ok"


def test_data_is_told_set_by_set(look, tmp_path):
    folder = tmp_path / "data"
    (folder / "gsm8k").mkdir(parents=True)
    assert look("data", data=str(tmp_path / "nothing"))[0].verdict == "stop"
    (folder / "gsm8k" / "train.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "It is\n#### 2"}) + "\n")
    (found,) = look("data", data=str(folder))
    here, _, missing = found.found.partition("; not here: ")
    assert (found.verdict, here) == ("warn", "here: kvr, gsm8k") and "popqa" in missing.split(", ")


def test_the_command_prints_findings_and_fails_where_something_stops(capsys, tmp_path):
    assert main(["doctor", "--store", str(tmp_path / "store"), "--json"]) == 0
    found = [Finding(**one) for one in json.loads(capsys.readouterr().out)]
    assert {finding.about for finding in found} >= {"versions", "compiler", "memory", "store", "token", "data"}
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--store", str(tmp_path / "file")]) == 1
    shown = capsys.readouterr().out
    assert "stop  store" in shown and "→ use another --store" in shown
