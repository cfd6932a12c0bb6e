"""A hub on this machine: enough of the real one's interface for the real client to list and read dataset files."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "a" * 40


class FakeHub:
    """Repositories by id, each a mapping of paths to bytes; `asked` lists the requests, `sent` counts bytes, `commit` is that of
    all their main branches."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.commit = COMMIT
        self.asked: list[str] = []
        self.sent = 0


@contextmanager
def serving(hub: FakeHub):
    """Serves a hub on a free port and gives its address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_to(address: str, monkeypatch) -> None:
    """Makes the hub's clients ask there; `datasets` reads its address once, when it is imported."""
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", address)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        for id, files in self.hub.repositories.items():
            if path.startswith(f"/datasets/{id}/resolve/"):
                return self._file(files, *path.removeprefix(f"/datasets/{id}/resolve/").split("/", 1), body)
            if path.startswith(f"/api/datasets/{id}/tree/"):
                return self._json(self._tree(files, path.removeprefix(f"/api/datasets/{id}/tree/")))
            if path.startswith(f"/api/datasets/{id}/paths-info/"):
                return self._json([self._entry(files, name) for name in files])
            if path.startswith(f"/api/datasets/{id}"):
                _, _, pinned = path.partition("/revision/")
                siblings = [{"rfilename": name} for name in files]
                return self._json({"id": id, "sha": pinned or self.hub.commit, "siblings": siblings})
        self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

    def _tree(self, files: dict[str, bytes], rest: str) -> list[dict]:
        prefix = "/".join(rest.split("/")[1:])
        return [self._entry(files, name) for name in files if name.startswith(prefix)]

    def _entry(self, files: dict[str, bytes], name: str) -> dict:
        return {"type": "file", "path": name, "size": len(files[name]), "oid": hashlib.sha1(files[name]).hexdigest()}

    def _file(self, files: dict[str, bytes], commit: str, name: str, body: bool) -> None:
        if name not in files:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)
        content, status = files[name], 200
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        self._send(status, content, headers, body=body)

    def _json(self, value) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body=True)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.hub.sent += len(content)
            self.wfile.write(content)
