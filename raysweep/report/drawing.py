"""Drawing: lines and bars with spreads, readable in print, in grey and for colour-blind readers.

Colours are Okabe and Ito's; every series also has its own marker and dash, or hatch. No global state of matplotlib is
used, and the same values give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pandas as pd

from raysweep.errors import BadInput

__all__ = ["FigureKind", "save", "to_svg"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B3A100")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo", "+++")
_INK = "#101112"  # on a page it becomes the colour of the text around the figure
_FEW = 30  # points of a series up to which each has its marker
_MOST_PANELS = 40
_STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    
    "axes.axisbelow": True, "grid.alpha": 0.2, "grid.linewidth": 0.6,
    "grid.color": _INK, "legend.frameon": False, "lines.linewidth": 1.4, "lines.markersize": 4,
    "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "svg.hashsalt": "raysweep", "pdf.fonttype": 42, "hatch.linewidth": 0.5,
}  # fmt: skip
_WITHOUT_DATES = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}


@dataclass(frozen=True, slots=True)
class FigureKind:
    """One kind of figure: its title, whether it has lines or bars, its axes, and how its values come about."""

    title: str
    marks: str
    x: str
    y: str
    values: Callable[[pd.DataFrame], pd.DataFrame]
    needs: str
    log_x: bool = False
    log_y: bool = False


def save(about: FigureKind, values: pd.DataFrame, path: Path) -> None:
    """Write the figure as .svg, .pdf or .png. Raises BadInput for other ends and places that cannot be written."""
    suffix = path.suffix.lower()
    if suffix not in _WITHOUT_DATES:
        raise BadInput(f"{path}: a figure is written as {', '.join(_WITHOUT_DATES)}, not as {suffix or 'nothing'}")
    content = _written(about, values, suffix, inline=False)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None


def to_svg(about: FigureKind, values: pd.DataFrame, *, inline: bool) -> str:
    """The figure as an SVG element with its title; `inline` leaves text as text and takes the page's text colour."""
    text = _written(about, values, ".svg", inline=inline).decode()
    text = text[text.index("<svg") :]
    if not inline:
        return text
    title = f"{about.title}: {about.y} by {about.x}"
    text = re.sub(r"(?<![\w#])" + _INK, "currentColor", text)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{escape(title)}" ', text, count=1)


def _written(about: FigureKind, values: pd.DataFrame, suffix: str, *, inline: bool) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with mpl.rc_context({**_STYLE, "svg.fonttype": "none" if inline else "path"}):
        figure = Figure(layout="constrained")
        _draw(figure, about, values)
        figure.savefig(out, format=suffix[1:], dpi=200, transparent=inline, metadata=_WITHOUT_DATES[suffix])
    return out.getvalue()


def _draw(figure: Any, about: FigureKind, values: pd.DataFrame) -> None:
    panels, series = _in_order(values["panel"]), _in_order(values["series"])
    if len(panels) > _MOST_PANELS:
        raise BadInput(f"{len(panels)} panels are too many to read; choose some with --where")
    across = min(len(panels), 1 if about.marks == "bars" else 3)
    down = -(-len(panels) // across)
    wide = 4.2 * across if about.marks == "lines" else max(5.0, 1.0 + 0.14 * len(values) / len(panels))
    figure.set_size_inches(min(wide, 14.0), 2.9 * down)
    axes = figure.subplots(down, across, squeeze=False, sharey=not about.log_y)
    for place, panel in enumerate(panels):
        _draw_panel(axes.flat[place], about, values[values["panel"] == panel], str(panel), series)
    for spare in axes.flat[len(panels) :]:
        spare.set_visible(False)
    _legend(figure, axes, series, _about_bars(values, about))


def _draw_panel(axis: Any, about: FigureKind, values: pd.DataFrame, title: str, series: Sequence[Any]) -> None:
    axis.set_title(title)
    axis.set_xlabel(about.x)
    axis.set_ylabel(about.y)
    if about.marks == "bars":
        _bars(axis, values, series)
    else:
        _lines(axis, values, series)
    if about.log_x and values["x"].min() > 0:
        _log_x(axis, sorted(values["x"].unique()))
    elif about.x.startswith(("epoch", "step")):
        _whole_numbers(axis)
    if about.log_y and values["y"].min() > 0:
        axis.set_yscale("log")
    elif "%" in about.y:
        axis.set_ylim(0, 103)


def _log_x(axis: Any, places: Sequence[float]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.minorticks_off()


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _lines(axis: Any, values: pd.DataFrame, series: Sequence[Any]) -> None:
    for name, colour, marker, dash in zip(series, cycle(_COLOURS), cycle(_MARKERS), cycle(_DASHES), strict=False):
        own = values[values["series"] == name].sort_values("x")
        if own.empty:
            continue
        x, y = own["x"].to_numpy(float), own["y"].to_numpy(float)
        every = max(1, len(x) // 10) if len(x) > _FEW else 1
        axis.plot(x, y, color=colour, marker=marker, linestyle=dash, markevery=every, label=str(name))
        _spread(axis, x, y, _reach(own), colour)


def _spread(axis: Any, x: np.ndarray, y: np.ndarray, reach: np.ndarray, colour: str) -> None:
    """Error bars for a few points, a band along a curve; nothing where there is one seed. `reach` is down and up of y."""
    if not np.nansum(reach) > 0:
        return
    if len(x) <= _FEW:
        axis.errorbar(x, y, yerr=reach, fmt="none", ecolor=colour, elinewidth=0.7, capsize=2, alpha=0.6)
    else:
        down, up = np.nan_to_num(reach)
        axis.fill_between(x, y - down, y + up, color=colour, alpha=0.15, linewidth=0)


def _reach(own: pd.DataFrame) -> np.ndarray:
    """How far a bar goes down and up from its mean."""
    return np.stack([own["y"] - own["low"], own["high"] - own["y"]]).astype(float)


def _about_bars(values: pd.DataFrame, about: FigureKind) -> str:
    """What the bars are, in the figure itself: one that is shown elsewhere has no other words with it."""
    counts = sorted(set(values["n"]))
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    if not (values["std"] > 0).any():
        return f"no bars: {n}" if counts[-1] < 2 else f"no bars: all runs alike, {n}"
    below, above = values["y"] - values["std"] < values["low"], values["y"] + values["std"] > values["high"]
    cut = ", cut at 0 and 100" if (below | above).any() and "%" in about.y else ""
    return f"bars: ± one standard deviation over runs{cut}, {n}"


def _bars(axis: Any, values: pd.DataFrame, series: Sequence[Any]) -> None:
    places = _in_order(values["x"])
    width = min(0.8 / max(1, len(series)), 0.25)
    styles = zip(series, cycle(_COLOURS), cycle(_HATCHES), strict=False)
    for place, (name, colour, hatch) in enumerate(styles):
        own = values[values["series"] == name].set_index("x").reindex(places)
        at = np.arange(len(places)) + (place - (len(series) - 1) / 2) * width
        reach = np.where(own["std"] > 0, _reach(own), np.nan)
        axis.bar(at, own["y"], width * 0.92, yerr=reach, color=colour, hatch=hatch,
                 edgecolor="white", linewidth=0.3, ecolor=_INK, capsize=1.5, error_kw={"elinewidth": 0.8},
                 label=str(name))  # fmt: skip
    axis.set_xticks(np.arange(len(places)), [str(place) for place in places])
    axis.grid(False, axis="x")


def _legend(figure: Any, axes: Any, series: Sequence[Any], title: str) -> None:
    found: dict[str, Any] = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    ordered = [str(name) for name in series if str(name) in found]
    handles = [found[name] for name in islice(ordered, 24)]
    figure.legend(handles, ordered[:24], loc="outside lower center", title=title, ncols=min(4, max(1, len(ordered))))


def _in_order(column: pd.Series) -> list[Any]:
    return list(dict.fromkeys(column))
