"""Figures: each draws the values that it says, in every format, and the same values give the same bytes."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from filling import commit_stages, filled, rows

import raysweep
from raysweep.errors import BadInput
from raysweep.report.figures import COLUMNS, KINDS, make_figure


def trials() -> pd.DataFrame:
    """Trials that every kind of figure of trials finds something in."""
    points = [
        (d_b, mixer, ratio, words, seed)
        for d_b in ("lama", "gsm8k")
        for mixer in ("none/none", "none/replay", "random/none", "none/knowledge_pile")
        for ratio in (0.1, 2.0)
        for words in (25, 50)
        for seed in (0, 1)
    ]
    d_b, mixer, ratio, words, seed = zip(*points, strict=True)
    values = [float(place) for place in range(len(points))]
    return rows(
        d_b=d_b, mixer=mixer, ratio=ratio, seed=seed, retention=values, familiar_popqa=values, **{"mixing.words": words}
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("forgetting", "training")])
def test_a_figure_draws_means_over_seeds(kind: str) -> None:
    figure = make_figure(kind, trials())
    assert tuple(figure.values.columns) == COLUMNS
    assert figure.values["n"].gt(0).all() and figure.values["y"].notna().all()
    assert not figure.values.duplicated(["panel", "series", "x"]).any()


def test_values_are_those_of_the_trials() -> None:
    frame = rows(d_b=["a", "a", "b"], mixer="random/none", seed=[0, 1, 0], retention=[10.0, 20.0, 5.0])
    values = make_figure("mixers", frame).values.set_index("x")
    assert values["y"].to_dict() == {"a": 15.0, "b": 5.0} and values["n"].to_dict() == {"a": 2, "b": 1}
    assert values.loc["a", "std"] == pytest.approx(50**0.5)


def test_bars_say_what_they_are_and_never_pass_the_ends() -> None:
    frame = rows(d_b=["a", "a", "b", "b"], mixer="random/none", seed=[0, 1, 0, 1], retention=[100.0, 80.0, 0.0, 4.0])
    figure = make_figure("mixers", frame)
    assert figure.values["low"].tolist() == pytest.approx([90 - 200**0.5, 0.0])
    assert figure.values["high"].tolist() == pytest.approx([100.0, 2 + 8**0.5])
    assert "bars: ± one standard deviation over runs, cut at 0 and 100, n = 2" in figure.svg(inline=True)
    assert "no bars: n = 1" in make_figure("mixers", frame.iloc[:1]).svg(inline=True)
    uneven = make_figure("ratio", frame.iloc[:3].assign(retention=[50.0, 60.0, 20.0])).svg(inline=True)
    assert "bars: ± one standard deviation over runs, n = 1 to 2" in uneven


@pytest.mark.parametrize("kind", ["mixers", "ratio"])
def test_what_is_drawn_is_what_the_values_hold(kind: str) -> None:
    """The bars that matplotlib has, in the figure's own numbers."""
    from matplotlib.figure import Figure as Canvas

    from raysweep.report.drawing import _draw

    figure = make_figure(kind, rows(d_b="a", mixer="random/none", seed=[0, 1], retention=[100.0, 80.0]))
    canvas = Canvas()
    _draw(canvas, figure.about, figure.values)
    bars = [segment for axis in canvas.axes for lines in axis.collections for segment in lines.get_segments()]
    assert [sorted(y for _, y in bar) for bar in bars] == [pytest.approx([90 - 200**0.5, 100.0])]


def test_replay_begins_without_and_averages_over_sets_for_each_seed() -> None:
    frame = rows(
        d_b=["lama", "webqa"] * 4,
        mixer=["none/none"] * 4 + ["none/replay"] * 4,
        ratio=[0.01] * 8,
        seed=[0, 0, 1, 1] * 2,
        retention=[10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0],
    )
    values = make_figure("replay", frame).values
    assert values["x"].tolist() == [0.0, 0.01] and values["y"].tolist() == [25.0, 65.0]
    assert values["n"].tolist() == [2, 2] and values["std"].tolist() == pytest.approx([200**0.5, 200**0.5])
    assert values["panel"].unique().tolist() == ["factoid D_B"]


def test_stages_are_drawn_in_the_order_of_the_chain() -> None:
    chain = {"d_b": "webqa", "mixer": "none/none/none", "seed": [0, 1]}
    frame = rows(**chain, d_c="math", accuracy_a1=[100.0, 90.0], retention_2=[60.0, 50.0], retention=[20.0, 30.0])
    values = make_figure("stages", frame).values.sort_values("x")
    assert values["x"].tolist() == [1.0, 2.0, 3.0] and values["y"].tolist() == [95.0, 55.0, 25.0]
    assert values["panel"].unique().tolist() == ["kvr → webqa → math"]


def test_points_that_share_a_trial_count_once() -> None:
    frame = rows(ratio=[1.0, 2.0], retention=[10.0, 10.0]).assign(trial="one")
    assert make_figure("mixers", frame).values["n"].tolist() == [1]


def test_a_figure_without_anything_to_draw_is_bad_input() -> None:
    with pytest.raises(BadInput, match="replay.*none/replay"):
        make_figure("replay", rows(retention=[1.0]))
    with pytest.raises(BadInput, match="no figure 'pie'; there are replay"):
        make_figure("pie", rows(retention=[1.0]))


@pytest.mark.parametrize(("suffix", "magic"), [(".svg", b"<?xml"), (".pdf", b"%PDF"), (".png", b"\x89PNG")])
@pytest.mark.parametrize("kind", ["mixers", "ratio"])
def test_every_format_is_written_and_twice_the_same(tmp_path: Path, kind: str, suffix: str, magic: bytes) -> None:
    contents = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}{suffix}"
        make_figure(kind, trials()).save(path)
        contents.append(path.read_bytes())
    assert contents[0].startswith(magic) and contents[0] == contents[1]


def test_other_ends_and_places_are_bad_input(tmp_path: Path) -> None:
    figure = make_figure("mixers", trials())
    with pytest.raises(BadInput, match=r"\.svg, \.pdf, \.png"):
        figure.save(tmp_path / "figure.gif")
    with pytest.raises(BadInput, match="cannot be written"):
        figure.save(tmp_path / "nowhere" / "figure.svg")


def test_a_figure_on_a_page_is_one_labelled_element_in_the_pages_colour() -> None:
    svg = make_figure("ratio", trials()).svg(inline=True)
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img" and "Mixing ratio" in root.attrib["aria-label"]
    assert "currentColor" in svg and "#101112" not in svg and "knowledge_pile" in svg
    assert "<?xml" not in svg and not re.search(r'(?:href|src)="https?:', svg)


def test_every_series_can_be_told_without_colour() -> None:
    from raysweep.report.drawing import _COLOURS, _DASHES, _HATCHES, _MARKERS

    assert len(set(_COLOURS)) == len(set(_MARKERS)) == len(set(_HATCHES)) == 8
    assert len(set(zip(_MARKERS, _DASHES * 2, strict=False))) == 8


def test_curves_are_drawn_by_stage_and_thinned(tmp_path: Path) -> None:
    grid = {"d_a": ["kvr"], "d_b": ["id"], "mixer": ["none/none", "random/none"], "seed": [0, 1]}
    sweep, store = filled(tmp_path, lambda point: {"retention": 1.0}, grid=grid)
    commit_stages(sweep, store)
    training = raysweep.figure("small", "training", store=store.url).values
    assert training["panel"].unique().tolist() == ["kvr → id, stage 1", "kvr → id, stage 2"]
    assert training.groupby(["panel", "series"])["x"].apply(list).map(tuple).unique().tolist() == [(1, 2, 3, 4, 5, 6)]
    assert training["n"].eq(2).all() and training["y"].tolist()[:2] == [1.0, 0.5]
    forgetting = raysweep.figure("small", "forgetting", store=store.url).values
    assert forgetting.groupby("series")["y"].apply(list).tolist() == [[100.0, 70.0, 40.0]] * 2
    assert forgetting.groupby("series")["x"].apply(list).tolist() == [[0.0, 1.0, 2.0]] * 2


def test_stages_of_a_longer_chain_are_not_drawn_over_each_other(tmp_path: Path) -> None:
    grid = {"d_a": ["kvr"], "d_b": ["id"], "d_c": ["id"], "mixer": ["none/none/none"], "seed": [0]}
    sweep, store = filled(tmp_path, lambda point: {"retention": 1.0}, grid=grid)
    commit_stages(sweep, store)
    values = raysweep.figure("small", "forgetting", store=store.url).values
    assert values.groupby("panel")["x"].apply(list).to_dict() == {
        "kvr → id → id, stage 2": [0.0, 1.0, 2.0],
        "kvr → id → id, stage 3": [1.0, 2.0],
    }


def test_a_long_curve_keeps_its_end() -> None:
    from raysweep.report.figures import _POINTS, _thinned

    values = pd.DataFrame({"panel": "p", "series": "s", "x": range(10_000), "y": 1.0, "std": 0.0, "n": 1})
    thin = _thinned(values)
    assert _POINTS / 2 < len(thin) <= _POINTS and thin["x"].iloc[-1] == 9_999
    short = values.head(20)
    assert len(_thinned(short)) == 20


def test_every_kind_can_be_asked_for_by_its_command() -> None:
    """The parser does not load pandas, so it has the list a second time."""
    from raysweep.cli import parser

    for kind in KINDS:
        assert parser().parse_args(["figure", "small", kind]).kind == kind
