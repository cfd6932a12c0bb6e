"""The figures: what each kind draws, as values in long form, before anything is drawn.

Every kind gives rows of panel, series, x, y, std, n, low, high: what is drawn is exactly what `values` holds. Bars and
bands go from low to high, one standard deviation to each side, but never past 0 or 100 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from raysweep.errors import BadInput
from raysweep.report.drawing import FigureKind, save, to_svg
from raysweep.sweep.catalog import DATASETS

__all__ = ["KINDS", "NEEDS_CURVES", "Figure", "FigureKind", "make_figure", "with_start"]

_FOUND = ("panel", "series", "x", "y", "std", "n")
COLUMNS = (*_FOUND, "low", "high")
_POINTS = 300  # of one series of a curve; more than a page can show


@dataclass(frozen=True)
class Figure:
    """A figure: `values` is what it draws. A notebook shows it; `save` writes .svg, .pdf or .png."""

    kind: str
    about: FigureKind
    values: pd.DataFrame

    def svg(self, *, inline: bool = False) -> str:
        """The figure as SVG; `inline` for a page: text as text, colours of the page around it."""
        return to_svg(self.about, self.values, inline=inline)

    def save(self, path: str | Path) -> None:
        """Write it in the format that the path's end names. BadInput for any other."""
        save(self.about, self.values, Path(path))

    def _repr_html_(self) -> str:
        return self.svg()


def make_figure(kind: str, frame: pd.DataFrame) -> Figure:
    """A figure of the rows of a dataframe (of curves for NEEDS_CURVES, of trials else). BadInput where it would be empty."""
    about = KINDS.get(kind)
    if about is None:
        raise BadInput(f"no figure {kind!r}; there are {', '.join(KINDS)}")
    values = about.values(frame)
    if values.empty:
        raise BadInput(
            f"nothing to draw for {kind!r}: it shows {about.needs}, and there is no such finished trial here"
        )
    return Figure(kind, about, _with_bars(values, about))


def _with_bars(values: pd.DataFrame, about: FigureKind) -> pd.DataFrame:
    """Where each bar begins and ends: no accuracy is below 0 or above 100, and no loss below 0."""
    highest = 100.0 if "%" in about.y else None
    low = (values["y"] - values["std"]).clip(lower=0.0)
    return values.assign(low=low, high=(values["y"] + values["std"]).clip(upper=highest))


def with_start(curves: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Curves with what the trials know of D_A at the end of stage 1: where a forgetting curve begins."""
    return curves.merge(trials[["trial", "accuracy_a1"]].drop_duplicates("trial"), on="trial", how="left")


# ---- what each kind draws


def _replay(frame: pd.DataFrame) -> pd.DataFrame:
    """Figure 2: retention by replay ratio, 0 without, averaged over D_B; one panel for factoid D_B, one for others."""
    chosen = frame[frame["mixer"].isin(["none/none", "none/replay"])]
    if not (chosen["mixer"] == "none/replay").any():
        return _nothing()
    ratio = chosen["ratio"].where(chosen["mixer"] == "none/replay", 0.0)
    told = chosen.assign(_x=ratio, _panel=chosen["d_b"].map(_kind_of), _series=chosen["d_a"].astype(str))
    return _averaged(told, "retention")


def _sources(frame: pd.DataFrame) -> pd.DataFrame:
    """Figure 5: retention by D_B, one bar a source that is mixed into one stage, and one for none at all."""
    mixed = frame["mixer"].astype(str).map(lambda mixer: sum(part != "none" for part in mixer.split("/")))
    single = frame[mixed <= 1] if (mixed == 1).any() else frame.iloc[:0]
    told = single.assign(
        _x=single["d_b"].astype(str), _panel=single["d_a"].astype(str), _series=_words(single, "mixer")
    )
    return _spread(told, "retention")


def _length(frame: pd.DataFrame) -> pd.DataFrame:
    """Figure 6: retention by the length of mixed sequences, one panel a mixer (and one for none), one line a D_B."""
    if "mixing.words" not in frame:
        return _nothing()
    told = frame.assign(_x=frame["mixing.words"], _panel=_words(frame, "mixer"), _series=frame["d_b"].astype(str))
    return _spread(told if _mixes(frame).any() else told.iloc[:0], "retention")


def _ratio(frame: pd.DataFrame) -> pd.DataFrame:
    """Figure 7: retention by mixing ratio, one panel a mixer (and one for none), one line a D_B."""
    mixed = frame[frame["mixer"] != "none/replay"]
    mixed = mixed if _mixes(mixed).any() else mixed.iloc[:0]
    told = mixed.assign(_x=mixed["ratio"], _panel=_words(mixed, "mixer"), _series=mixed["d_b"].astype(str))
    return _spread(told, "retention")


def _mixes(frame: pd.DataFrame) -> pd.Series:
    return frame["mixer"] != "none/none"


def _stages(frame: pd.DataFrame) -> pd.DataFrame:
    """Figure 8: D_A's accuracy after each stage of its chain, one panel a route, one line a mixer."""
    lengths = _lengths(frame)
    told = frame.assign(_panel=_route(frame), _series=_words(frame, "mixer"))
    parts = []
    for place in range(1, max(lengths, default=0) + 1):
        column = "accuracy_a1" if place == 1 else f"retention_{place}"
        middle = told[lengths > place] if place > 1 else told
        if column in middle:
            parts.append(_spread(middle.assign(_x=float(place)), column))
        if place > 1:
            parts.append(_spread(told[lengths == place].assign(_x=float(place)), "retention"))
    whole = [part for part in parts if len(part)]
    return pd.concat(whole, ignore_index=True) if whole else _nothing()


def _familiar(frame: pd.DataFrame) -> pd.DataFrame:
    """Figure 9: accuracy on facts known before, by D_B, one panel a set, one bar a mixer."""
    columns = [column for column in frame.columns if column.startswith("familiar_")]
    parts = [
        _spread(
            frame.assign(
                _x=frame["d_b"].astype(str), _panel=column.removeprefix("familiar_"), _series=_words(frame, "mixer")
            ),
            column,
        )
        for column in columns
    ]
    return pd.concat(parts, ignore_index=True) if parts else _nothing()


def _mixers(frame: pd.DataFrame) -> pd.DataFrame:
    """Figure 10: retention by D_B, one panel a D_A, one bar a combination of mixers."""
    told = frame.assign(_x=frame["d_b"].astype(str), _panel=frame["d_a"].astype(str), _series=_words(frame, "mixer"))
    return _spread(told, "retention")


def _forgetting(curves: pd.DataFrame) -> pd.DataFrame:
    """D_A's accuracy along the stages after its own, from what it was before; one panel a route, one line a mixer."""
    if "accuracy_a" not in curves:
        return _nothing()
    asked = curves[(curves["stage"] > 1) & curves["accuracy_a"].notna()]
    panel = _route(asked)
    if (asked["stage"] > 2).any():
        panel = panel + ", stage " + asked["stage"].astype(str)
    told = _told(asked, asked["epoch"], panel)
    return _spread(pd.concat([_before(told), told], ignore_index=True), "accuracy_a")


def _before(told: pd.DataFrame) -> pd.DataFrame:
    """Each trial's D_A at the end of stage 1, as epoch 0 of stage 2; nothing where that is not known."""
    if "accuracy_a1" not in told:
        return told.iloc[:0]
    second = told[told["stage"] == 2].drop_duplicates("trial").dropna(subset=["accuracy_a1"])
    return second.assign(_x=0.0, accuracy_a=second["accuracy_a1"])


def _training(curves: pd.DataFrame) -> pd.DataFrame:
    """Training loss by step, one panel a stage of a D_A and later sets, one line a mixer."""
    panel = _route(curves) + ", stage " + curves["stage"].astype(str)
    return _thinned(_spread(_told(curves, curves["step"], panel), "loss"))


def _told(curves: pd.DataFrame, x: pd.Series, panel: pd.Series) -> pd.DataFrame:
    return curves.assign(_x=x, _panel=panel, _series=_words(curves, "mixer"))


KINDS: Mapping[str, FigureKind] = {
    "replay": FigureKind(
        "Replay", "lines", "replayed part of D_A", "retention (%)", _replay, "the mixers none/none and none/replay"
    ),
    "sources": FigureKind("Sources of mixing data", "bars", "D_B", "retention (%)", _sources, "mixers with one source"),
    "length": FigureKind(
        "Length of mixed sequences", "lines", "words", "retention (%)", _length, "several mixing.words", log_x=True
    ),
    "ratio": FigureKind(
        "Mixing ratio", "lines", "ratio", "retention (%)", _ratio, "mixers other than none/none", log_x=True
    ),
    "stages": FigureKind("Stages", "lines", "stage", "D_A accuracy (%)", _stages, "trials with a retention"),
    "familiar": FigureKind(
        "Familiar facts", "bars", "D_B", "accuracy (%)", _familiar, "evaluations of familiar/… sets"
    ),
    "mixers": FigureKind("Mixers", "bars", "D_B", "retention (%)", _mixers, "trials with a retention"),
    "forgetting": FigureKind(
        "Forgetting",
        "lines",
        "epoch of the later stage",
        "D_A accuracy (%)",
        _forgetting,
        "D_A's accuracy along later stages",
    ),
    "training": FigureKind("Training", "lines", "step", "loss", _training, "curves of finished stages", log_y=True),
}
NEEDS_CURVES = ("forgetting", "training")


# ---- values


def _spread(told: pd.DataFrame, value: str) -> pd.DataFrame:
    """Mean and sample standard deviation over whatever is neither panel nor series nor x: the seeds."""
    keys = ["_panel", "_series", "_x"]
    if value not in told:
        return _nothing()
    once = told.dropna(subset=[value]).drop_duplicates([*keys, "trial"])
    grouped = once.groupby(keys, observed=True, sort=False)[value]
    found = pd.DataFrame(
        {"y": grouped.mean().astype(float), "std": grouped.std(ddof=1).astype(float), "n": grouped.count()}
    )
    return _named(found.reset_index())


def _averaged(told: pd.DataFrame, value: str) -> pd.DataFrame:
    """As `_spread`, but of the averages over D_B that each seed has."""
    once = told.dropna(subset=[value]).drop_duplicates(["_panel", "_series", "_x", "trial"])
    per_set = once.groupby(["_panel", "_series", "_x", "seed", "d_b"], observed=True, sort=False)[value].mean()
    per_seed = per_set.groupby(level=["_panel", "_series", "_x", "seed"], sort=False).mean().reset_index()
    return _spread(per_seed.assign(trial=per_seed["seed"]), value)


def _named(found: pd.DataFrame) -> pd.DataFrame:
    named = found.rename(columns={"_panel": "panel", "_series": "series", "_x": "x"})
    return named[list(_FOUND)]


def _thinned(values: pd.DataFrame) -> pd.DataFrame:
    """At most _POINTS points a series, evenly; the last one stays."""
    place = values.groupby(["panel", "series"], sort=False).cumcount(ascending=False)
    size = values.groupby(["panel", "series"], sort=False)["x"].transform("size")
    every = (size / _POINTS).clip(lower=1).apply(lambda ratio: -int(-ratio // 1))
    return values[place % every == 0].reset_index(drop=True)


def _nothing() -> pd.DataFrame:
    return pd.DataFrame(columns=list(_FOUND))


def _words(frame: pd.DataFrame, column: str) -> pd.Series:
    return frame[column].astype(str)


def _lengths(frame: pd.DataFrame) -> pd.Series:
    """How many stages each trial has; a chain of a shorter grid beside a longer one has no words where that goes on."""
    stages = frame[_stage_axes(frame)].astype(object)
    return (stages.notna() & stages.ne("none")).sum(axis=1)


def _stage_axes(frame: pd.DataFrame) -> list[str]:
    return sorted(column for column in frame.columns if column.startswith("d_") and len(column) == 3)


def _route(frame: pd.DataFrame) -> pd.Series:
    """`kvr → id`: the sets of a trial's stages."""
    stages = _stage_axes(frame)
    routes: dict[tuple[Any, ...], str] = {}
    rows: Sequence[tuple[Any, ...]] = list(frame[stages].itertuples(index=False, name=None))
    for row in set(rows):
        routes[row] = " → ".join(str(value) for value in row if value != "none")
    return pd.Series([routes[row] for row in rows], index=frame.index, dtype=object)


def _kind_of(name: Any) -> str:
    """The group of a D_B: own sets count by what they are called nowhere else, so they are told as others."""
    known = DATASETS.get(str(name))
    return "factoid D_B" if name == "id" or (known is not None and known.factoid) else "non-factoid D_B"
