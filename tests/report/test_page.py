"""The page: whole, safe, self-contained; in a browser it loads without errors, sorts, and shows commands that work."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from filling import commit_stages, fill, filled, put
from sweeps import small

import raysweep
from raysweep.api import LoadedSweep
from raysweep.cli import main
from raysweep.errors import BadInput
from raysweep.results import watch_page
from raysweep.store.store import Store

GRID = {"d_a": ["kvr"], "d_b": ["id"], "mixer": ["none/none", "random/none"], "ratio": [1.0], "seed": [0, 1, 2]}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def mixed(point: Mapping[str, Any]) -> Any:
    match point["mixer"], point["seed"]:
        case "random/none", 2:
            return "failed"
        case "random/none", 1:
            return None
        case _:
            return {"retention": 30.0 + 10 * point["seed"], "seconds_1": 5.0 + point["seed"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedSweep, Store, Path]:
    folder = tmp_path_factory.mktemp("page")
    sweep, store = filled(folder, mixed, grid=GRID)
    commit_stages(sweep, store)
    return sweep, store, raysweep.page("small", folder / "page.html", store=store.url)


class _Read(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_tells_status_tables_figures_failures_and_provenance(made: tuple[LoadedSweep, Store, Path]) -> None:
    text = " ".join(_Read(made[2].read_text()).words)
    for told in (
        "4",
        "of 6",
        "failed it is",
        "40.0 ± 10.0 (3)",
        "30.0 (1/3)",
        "Forgetting",
        "Training",
        "0123456789ab",
        "d" * 64,
    ):
        assert told in re.sub(r"\s+", " ", text), told
    assert "and more" not in text, "only the first line of an error"


def test_a_page_needs_no_network(made: tuple[LoadedSweep, Store, Path]) -> None:
    for tag, attributes in _Read(made[2].read_text()).tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, (tag, name, value)
        assert tag not in ("link", "iframe", "object", "embed") or attributes.get("rel") == "icon"
    assert "@import" not in made[2].read_text() and "url(http" not in made[2].read_text()


def test_every_command_on_the_page_works(
    made: tuple[LoadedSweep, Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = {unescape(one) for one in re.findall(r'data-(?:command|copy)="([^"]+)"', made[2].read_text())}
    assert len(commands) >= 12
    for command in sorted(commands):
        program, *arguments = shlex.split(command)
        assert program == "raysweep" and main(arguments) == 0, command
        assert capsys.readouterr().out.strip()


def test_the_command_of_a_number_lists_the_trials_behind_it(made: tuple[LoadedSweep, Store, Path], capsys: Any) -> None:
    cell = re.search(r'data-command="([^"]+)">40\.0 ± 10\.0 \(3\)', made[2].read_text())
    assert cell and main([*shlex.split(unescape(cell[1]))[1:], "--format", "csv"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1 + 3 and all("none/none" in line for line in lines[1:])


def test_what_records_say_cannot_become_a_part_of_the_page(tmp_path: Path) -> None:
    sweep, store = filled(tmp_path, mixed, grid=GRID)
    trial = sweep.plan().points[0].trial
    store.write_trial(trial, {"status": "failed", "error": "<script>alert(1)</script>", "attempts": 1})
    text = raysweep.page("small", tmp_path / "page.html", store=store.url).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert sum(tag == "script" for tag, _ in _Read(text).tags) == 1


def test_a_watched_page_is_written_until_nothing_is_left(tmp_path: Path) -> None:
    sweep, store = filled(tmp_path, lambda point: None, grid=GRID)
    output = tmp_path / "page.html"
    states = watch_page("small", output, store=store.url, data=None, every=0.01)
    assert next(states) == "6 pending" and 'http-equiv="refresh"' in output.read_text()
    for point in sweep.plan().points:
        put(store, point.trial, {"retention": 1.0})
    assert list(states) == ["6 done"] and 'http-equiv="refresh"' not in output.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".page")] == []


def test_pages_that_cannot_be_are_bad_input(tmp_path: Path) -> None:
    _, store = filled(tmp_path, mixed, grid=GRID)
    with pytest.raises(BadInput, match="cannot be written"):
        raysweep.page("small", tmp_path / "nowhere" / "page.html", store=store.url)
    with pytest.raises(BadInput, match="above 0"):
        next(watch_page("small", tmp_path / "page.html", store=store.url, data=None, every=-1.0))


def test_a_page_of_a_sweep_that_never_ran_and_of_several(tmp_path: Path) -> None:
    _, store = filled(tmp_path, lambda point: None, grid=GRID)
    fill(small(tmp_path, name="other", grid={**GRID, "d_b": ["none"]}), store, lambda point: None)
    text = raysweep.page(["small", "other"], tmp_path / "page.html", store=store.url).read_text()
    assert "No trial has trained yet" in text and "small, other" in text


# ---- in a browser


def browsed(page: Path, folder: Path, script: str = "", *options: str) -> tuple[str, str]:
    """The page's DOM after it ran, with a script of ours at its end, and what the browser's console said."""
    copy = folder / "browsed.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{{{script}}}</script></body>"))
    done = subprocess.run(
        [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
         "--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000", *options, "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")


@pytest.mark.slow
@browser
def test_in_a_browser_it_loads_without_errors_and_shows_its_figures(
    made: tuple[LoadedSweep, Store, Path], tmp_path: Path
) -> None:
    script = """
      const shown = [...document.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect());
      document.title = JSON.stringify({
        figures: shown.length, visible: shown.every((box) => box.width > 100 && box.height > 80),
        wide: document.documentElement.scrollWidth <= innerWidth,
        unnamed: [...document.querySelectorAll("a, button")].filter((one) => !one.textContent.trim()).length,
        headings: [...document.querySelectorAll("h1, h2, h3")].map((one) => one.tagName[1]).join(""),
      });
    """
    dom, console = browsed(made[2], tmp_path, script, "--window-size=400,900")
    assert console == ""
    title = unescape(re.search(r"<title>(.*?)</title>", dom)[1])  # type: ignore[index]
    assert '"figures":3' in title and '"visible":true' in title and '"unnamed":0' in title
    assert '"wide":true' in title, "on a narrow screen only tables scroll"
    assert not re.search(r"13|24", re.search(r'"headings":"(\d+)"', title)[1]), "no level of headings is skipped"  # type: ignore[index]


@pytest.mark.slow
@browser
def test_in_a_browser_tables_sort_and_numbers_show_their_commands(
    made: tuple[LoadedSweep, Store, Path], tmp_path: Path
) -> None:
    script = """
      const slowest = [...document.querySelectorAll("table")].find((one) => one.caption.textContent.startsWith("Seconds"));
      const column = () => [...slowest.tBodies[0].rows].map((row) => Number.parseFloat(row.cells[2].dataset.value));
      const head = slowest.tHead.rows[0].cells[2];
      const orders = [column()];
      for (let turn = 0; turn < 2; turn++) { head.querySelector("button").click(); orders.push([head.ariaSort, column()]); }
      const link = document.querySelector("td a[data-command]");
      link.click();
      const shelf = document.getElementById("command");
      const opened = [shelf.hidden, document.getElementById("chosen").textContent === link.dataset.command];
      document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
      document.title = JSON.stringify({ orders, opened, closed: shelf.hidden, back: document.activeElement === link });
    """
    dom, console = browsed(made[2], tmp_path, script)
    assert console == ""
    title = unescape(re.search(r"<title>(.*?)</title>", dom)[1])  # type: ignore[index]
    down, up = [8, 7, 6, 6], [6, 6, 7, 8]
    expected = f'"orders":[{down},["ascending",{up}],["descending",{down}]]'.replace(" ", "")
    assert expected in title, title
    assert '"opened":[false,true],"closed":true,"back":true' in title
