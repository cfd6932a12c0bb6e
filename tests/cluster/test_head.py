"""Who may be talked to, and what a job may name: decided before anything is sent."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml
from sweeps import write

from raysweep.cli import main
from raysweep.cluster import head
from raysweep.cluster.jobs import _job
from raysweep.errors import BadInput


@pytest.fixture
def server(monkeypatch):
    """A head that asks for the token `right`, or for none; it remembers what it was sent."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        asks = True

        def do_GET(self):
            sent = self.headers.get("Authorization")
            seen.append(sent)
            self.send_response(200 if not Handler.asks or sent == "Bearer right" else 403 if sent else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", Handler, seen
        running.shutdown()


def test_the_token_is_sent_only_where_it_is_asked_for(server, monkeypatch, tmp_path):
    url, handler, seen = server
    (tmp_path / "token").write_text("right\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert head.credentials(url, insecure=False) == {"Authorization": "Bearer right"}
    handler.asks = False
    del seen[:]
    assert head.credentials(url, insecure=False) == {}
    assert seen == [None]


def test_a_head_beyond_loopback_that_takes_anyone_is_refused_unless_told(server, monkeypatch):
    url, handler, _ = server
    handler.asks = False
    monkeypatch.setattr(head, "_is_loopback", lambda url: False)
    with pytest.raises(BadInput, match="asks for no token"):
        head.credentials(url, insecure=False)
    assert head.credentials(url, insecure=True) == {}


@pytest.mark.parametrize(
    ("url", "loopback"),
    [("http://127.0.0.1:8265", True), ("http://localhost:8265", True), ("http://[::1]:8265", True),
     ("http://192.0.2.7:8265", False), ("http://no-such-host.invalid:8265", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(url, loopback):
    assert head._is_loopback(url) is loopback


def test_the_address_given_wins_over_rays_variables(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://192.0.2.9:8265")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://192.0.2.9:8265")
    assert head.api_url("http://127.0.0.1:1234/") == "http://127.0.0.1:1234"
    assert head.api_url(None) == "http://192.0.2.9:8265"


def test_a_job_is_a_sweeps_by_its_id_and_its_metadata():
    from ray.dashboard.modules.job.pydantic_models import JobDetails

    def details(id: str, **metadata: str) -> JobDetails:
        return JobDetails(type="SUBMISSION", submission_id=id, status="RUNNING", entrypoint="", metadata=metadata)

    ours = {"name": "table2", "store": "s3://b", "asked": "0"}
    assert _job(details("table2.12", **ours)).attempt == 12
    assert _job(details("table2", **ours)).attempt == 1
    assert _job(details("table3", **ours)) is None
    assert _job(details("table2")) is None


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        (["--store", "here"], {}, "--store here: relative"),
        ([], {}, "--store is missing"),
        (["--store", "/s", "--data", "here"], {}, "--data here: relative"),
        (["--store", "/s"], {"model": "./mine"}, "model.name: ./mine"),
        (
            ["--store", "/s"],
            {"sets": {"own": {"path": "rows.jsonl", "prompt": "{q}", "target": "{a}"}}},
            "sets.own.path",
        ),
    ],
)
def test_what_a_job_could_not_see_is_refused(tmp_path, monkeypatch, capsys, options, changes, said):
    monkeypatch.delenv("RAYSWEEP_STORE", raising=False)
    file = write(tmp_path, **changes)
    assert yaml.safe_load(file.read_text())["name"] == "small"
    assert main(["submit", str(file), "--address", "http://192.0.2.1:9", *options]) == 2
    assert said in capsys.readouterr().err
