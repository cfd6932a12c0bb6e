"""A cluster's head as a client sees it: its address, whether it asks who one is, and the token that it asks for."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ray.dashboard.utils import get_address_for_submission_client

from raysweep.errors import BadInput

__all__ = ["api_url", "credentials", "given_address_wins"]

PATH = "/api/jobs/"  # asks for the token wherever authentication is on
SECONDS = 10.0
_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


def api_url(address: str | None) -> str:
    """The URL of the job server at an address, as `ray job submit --address` takes it. BadInput where there is none."""
    try:
        with given_address_wins(address):
            url = get_address_for_submission_client(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"--address {address or 'auto'}: no Ray was found ({str(error).splitlines()[0]}); give the dashboard's address, "
            "such as http://127.0.0.1:8265 behind `ray dashboard cluster.yaml`"
        ) from None
    if urlsplit(url).scheme not in ("http", "https"):
        raise BadInput(f"--address {address}: not an address of a job server; write http://HOST:8265")
    return url.rstrip("/")


def credentials(url: str, *, insecure: bool) -> dict[str, str]:
    """The headers that this head wants: the token where it asks for one.

    Raises BadInput where nothing answers, where a head beyond loopback takes anyone and `insecure` does not say that this is
    meant, and where a token is asked for and none is here.
    """
    status = _status(url, {})
    if status in (401, 403):
        headers = {"Authorization": f"Bearer {_token(url)}"}
        if _status(url, headers) in (401, 403):
            raise BadInput(f"--address {url}: refuses the token that is here; copy the cluster's to ~/.ray/auth_token")
        return headers
    if not insecure and not _is_loopback(url):
        raise BadInput(
            f"--address {url}: anyone who reaches this head can run code on it, since it asks for no token; start it with "
            "RAY_AUTH_MODE=token, go through a tunnel to its loopback (`ray dashboard`), or say --insecure"
        )
    return {}


@contextlib.contextmanager
def given_address_wins(address: str | None) -> Iterator[None]:
    """Inside, Ray takes the address that was given; its own variables would win over it otherwise."""
    before = {name: os.environ.pop(name) for name in _ADDRESSES if address and name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _status(url: str, headers: dict[str, str]) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url + PATH, headers=headers), timeout=SECONDS) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise BadInput(f"--address {url}: nothing answers there ({reason}); is the tunnel open?") from None


def _is_loopback(url: str) -> bool:
    """Whether every address of the host is this machine's own."""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(one[4][0]).partition("%")[0]).is_loopback for one in found)


def _token(url: str) -> str:
    """The token, from where Ray itself takes it."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    place = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token")).expanduser()
    try:
        return place.read_text().strip()
    except OSError:
        raise BadInput(
            f"--address {url}: asks for a token, and there is none at {place}; copy the cluster's there, or set RAY_AUTH_TOKEN"
        ) from None
