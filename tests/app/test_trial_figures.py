"""The figures of a study's trials, without a browser: what is sent, and what stays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from bokeh.document import Document
from bokeh.document.events import ColumnDataChangedEvent, ColumnsPatchedEvent, ColumnsStreamedEvent
from bokeh.models import CustomAction, FixedTicker, HoverTool, LogAxis, SaveTool

from mira_app.figures.colours import categories
from mira_app.figures.trials import TrialFigures
from mira_app.figures.trials_rows import MOST_LABELS, Rows, round_ends
from mira_core.errors import OptionError
from mira_core.plots import trials as plots
from mira_core.plots.trials_info import ImportanceInfo
from tests.benchmarks.trials import NAMES, a_little_later, synthetic


class Watched:
    """Figures in a document that remembers what is sent to the browser."""

    def __init__(self, n: int = 60, names=NAMES) -> None:
        self.figures, self.document = TrialFigures(), Document()
        for name in names:
            self.document.add_root(self.figures.pane(name).object)
        self.study = synthetic(n)
        self.figures.update(*self.study)
        self.sent: list[Any] = []
        self.document.on_change(self.sent.append)

    def of_source(self) -> list[Any]:
        """What was sent of the trials since."""
        kinds = ColumnDataChangedEvent, ColumnsPatchedEvent, ColumnsStreamedEvent
        source = self.figures.source
        return [e for e in self.sent if isinstance(e, kinds) and getattr(e, "model", None) is source]


def nan_equal(a, b) -> bool:
    return np.array_equal(np.asarray(a, float), np.asarray(b, float), equal_nan=True)


def same_columns(a: TrialFigures, b: TrialFigures) -> None:
    assert a.source.data.keys() == b.source.data.keys()
    for name, values in a.source.data.items():
        other = b.source.data[name]
        if isinstance(values, np.ndarray):
            assert nan_equal(values, other), name
        else:
            assert len(values) == len(other)
            for x, y in zip(values, other, strict=True):
                assert nan_equal(x, y) if isinstance(x, list) else x == y, name


# --- what is drawn --------------------------------------------------------------------------------


def test_what_is_drawn_is_what_the_librarys_figures_compute():
    trials, curves = synthetic(200)
    figures = TrialFigures()
    figures.update(trials, curves)
    figures.set_view(x="rate", y="distortion", hue="num_topics")
    data = figures.source.data
    info = plots.pareto_info(trials, "rate", "distortion", "num_topics")
    at = [list(data["number"]).index(n) for n in info.numbers]
    assert nan_equal(data["x"][at], info.x)
    assert nan_equal(data["y"][at], info.y)
    assert nan_equal(data["hue"][at], info.hue.values)
    assert data["front"][at].astype(bool).tolist() == info.on_front.tolist()
    assert figures.front.data["x"] == sorted(info.x[info.on_front])
    scores = {n: dict(enumerate(c["value"], 1)) for n, c in curves.items()}
    history = plots.history_info(trials, scores)
    assert nan_equal(data["loss"], history.values)
    assert figures.best.data["value"] == history.best_values.tolist()
    topics = plots.topics_info(trials, scores)
    assert figures.medians.data["k"] == topics.by_topics.tolist()
    assert figures.medians.data["value"] == pytest.approx(topics.medians)
    parallel = plots.parallel_info(trials)
    assert [a.name for a in figures._rows.axes] == [a.name for a in parallel.axes]
    tried = np.array([y[:3] for y in data["py"]])
    assert tried == pytest.approx(parallel.positions[:, :3], abs=6e-4)  # the ends of the outcomes are rounded


def test_curves_are_what_was_reported_or_distortion_and_rate():
    figures = TrialFigures()
    trials, curves = synthetic(20)
    figures.update(trials, curves)
    i = next(i for i, t in enumerate(trials) if t["state"] == "COMPLETE")
    expected = {k: curves[i][k] for k in ("value", "distortion", "rate")}
    expected["unweighted"] = np.add(curves[i]["distortion"], curves[i]["rate"]).tolist()
    for measure, y in expected.items():
        figures.set_view(measure=measure)
        assert figures.source.data["xs"][i] == list(range(1, len(y) + 1))
        assert figures.source.data["ys"][i] == pytest.approx(y, rel=1e-5)
    loss = figures.source.data["loss"]
    figures.set_view(measure="value")
    assert nan_equal(figures.source.data["loss"], loss)  # whatever the curves show
    assert figures.pane("curves").object.title.text == "Held-out loss after each epoch"


def test_every_figure_has_titles_hover_tips_and_can_be_saved():
    watched = Watched()
    for name in NAMES:
        p = watched.figures.made[name]
        assert p is getattr(watched.figures, name)
        assert p.title.text
        assert p.sizing_mode == "stretch_width"
        assert p.select_one(SaveTool) is not None
        assert p.select_one(CustomAction).description == "Save as SVG"
        assert any(isinstance(tool, HoverTool) for tool in p.tools)
    assert watched.figures.pareto.yaxis[0].axis_label == "held-out loss (nats per cell)"
    assert watched.figures.curves.xaxis[0].axis_label == "epoch"


def test_running_trials_are_open_and_where_they_were_last():
    figures = TrialFigures()
    trials, curves = synthetic(30)
    figures.update(trials, curves)
    running = [i for i, t in enumerate(trials) if t["state"] == "RUNNING"]
    assert running
    for i in running:
        assert figures.source.data["filled"][i] == 0
        assert figures.source.data["y"][i] == curves[i]["value"][-1]
        assert math.isnan(figures.source.data["value"][i])
    failed = [i for i, t in enumerate(trials) if t["state"] == "FAIL" and curves[i]["value"]]
    assert all(np.isfinite(figures.source.data["y"][i]) for i in failed)


def test_one_trial_and_none_and_trials_that_have_nothing_yet():
    watched = Watched(0)
    assert len(watched.figures.source.data["number"]) == 0
    bare = {"number": 0, "state": "RUNNING", "value": None, "elbo": None, "distortion": None, "rate": None}
    watched.figures.update([bare], {})
    assert list(watched.figures.source.data["number"]) == [0]
    assert np.isnan(watched.figures.source.data["y"]).all()
    done = {**bare, "state": "COMPLETE", "value": 5.0, "elbo": 5.0, "distortion": 4.0, "rate": 1.0, "num_topics": 7}
    watched.figures.update([done], {0: {"value": [6.0, 5.0], "distortion": [5.0, 4.0], "rate": [1.0, 1.0]}})
    assert watched.figures.marks.data["marker"] == ["star"]
    for name in NAMES[:4]:
        for r in (watched.figures.made[name].x_range, watched.figures.made[name].y_range):
            assert r.start < r.end
    watched.figures.update([], {})
    assert len(watched.figures.source.data["number"]) == 0
    assert watched.figures.selected == []


def test_values_that_are_missing_or_not_finite():
    figures = TrialFigures()
    figures.pane("pareto"), figures.pane("curves"), figures.pane("history")
    trials, curves = synthetic(12)
    trials[0] = {**trials[0], "value": math.nan, "elbo": math.nan, "distortion": math.inf, "rate": None}
    trials[1] = {k: v for k, v in trials[1].items() if k != "num_topics"}
    curves[0] = {"value": [math.nan, math.inf], "distortion": [], "rate": []}
    figures.update(trials, curves)
    figures.set_view(hue="num_topics", measure="unweighted", log_y=True, log_hue=True)
    assert math.isnan(figures.source.data["x"][1])
    assert math.isnan(figures.source.data["hue"][1])
    assert figures.mapper.nan_color == "lightgrey"
    assert np.isfinite([figures.mapper.low, figures.mapper.high]).all()
    assert all(np.isfinite([r.start, r.end]).all() for p in figures.made.values() for r in (p.x_range, p.y_range))


def test_a_loss_far_from_all_others_does_not_flatten_them_and_is_told():
    figures = TrialFigures()
    p = figures.pareto
    trials, curves = synthetic(60)
    trials[5] = {**trials[5], "state": "COMPLETE", "value": 1e7, "elbo": 1e7}
    figures.update(trials, curves)
    assert p.y_range.end < 2000
    assert "(1 beyond the axes)" in figures.notes["pareto"].text
    assert figures.mapper.high == 59


# --- what is sent ---------------------------------------------------------------------------------


def test_only_new_rows_and_changed_cells_are_sent():
    watched = Watched(200)
    begun = watched.study
    watched.study = a_little_later(begun, 10)
    watched.figures.update(*watched.study)
    events = watched.of_source()
    assert [type(e) for e in events] == [ColumnsPatchedEvent, ColumnsStreamedEvent]
    rows = {i for cells in events[0].patches.values() for i, _ in cells}
    ended = [i for i, (a, b) in enumerate(zip(begun[0], watched.study[0], strict=False)) if a is not b]
    assert rows >= set(ended)
    assert {i for name in ("ys", "state", "tip", "x") for i, _ in events[0].patches.get(name, [])} <= set(ended)
    assert len(events[1].data["number"]) == 1
    watched.sent.clear()
    watched.figures.update(*watched.study)  # nothing is new
    assert watched.sent == []
    copies = [dict(t) for t in watched.study[0]], {k: dict(v) for k, v in watched.study[1].items()}
    watched.figures.update(*copies)  # the same, told anew
    assert watched.sent == []


def test_after_many_updates_it_is_as_if_drawn_at_once():
    watched = Watched(40)
    for i in range(15):
        watched.study = a_little_later(watched.study, i + 10)
        watched.figures.update(*watched.study)
        if i == 5:
            watched.figures.set_view(x="rate", measure="rate", hue="device", curve_hue="state")
    at_once = TrialFigures()
    at_once.set_view(x="rate", measure="rate", hue="device", curve_hue="state")
    at_once.update(*watched.study)
    same_columns(watched.figures, at_once)


def test_selection_and_zoom_stay_over_updates_and_the_reset_tool_knows_where_to_go():
    watched = Watched(60)
    figures, p = watched.figures, watched.figures.pareto
    figures.select([3, 50])
    p.y_range.start, p.y_range.end = 730.5, 751.25  # somebody zooms
    followed = figures.history.x_range.end
    for i in range(30):
        watched.study = a_little_later(watched.study, i + 10)
        watched.study[0][-1]["value"] = 600.0 - i  # which would widen the axis
        watched.figures.update(*watched.study)
    assert figures.selected == [3, 50]
    assert (p.y_range.start, p.y_range.end) == (730.5, 751.25)
    assert p.y_range.reset_start < 600
    assert figures.history.x_range.end > followed  # nobody zoomed here
    p.y_range.start, p.y_range.end = p.y_range.reset_start, p.y_range.reset_end  # the reset tool
    watched.study[0][-1] = {**watched.study[0][-1], "state": "COMPLETE", "value": 400.0}
    watched.figures.update(*watched.study)
    assert p.y_range.start < 400  # follows again


def test_rows_that_vanish_take_no_selection_of_others_with_them():
    watched = Watched(30)
    figures, (trials, curves) = watched.figures, watched.study
    told = []
    figures.on_select = told.append
    figures.select([4, 9, 20])
    figures.update([t for t in trials if t["number"] not in (2, 9)], curves)
    assert figures.selected == [4, 20]
    assert figures.source.selected.indices == [3, 18]
    assert 9 not in figures.source.data["number"]
    figures.update(trials, curves)  # shown again
    assert figures.selected == [4, 20]
    assert figures.source.selected.indices == [4, 20]
    assert told == []  # nobody did anything in the browser
    at_once = TrialFigures()
    at_once.update(trials, curves)
    same_columns(figures, at_once)


# --- selection ------------------------------------------------------------------------------------


def test_what_the_browser_selects_is_told_by_number():
    watched = Watched(10)
    told = []
    watched.figures.on_select = told.append
    watched.figures.update(watched.study[0][2:], watched.study[1])
    watched.figures.source.selected.indices = [0, 3]  # as the browser does
    assert told == [[2, 5]]
    watched.figures.select([7, 99])  # as the page does; there is no 99
    assert watched.figures.selected == [7]
    assert told == [[2, 5]]


def test_all_figures_of_trials_share_the_selection():
    figures = Watched(10).figures
    for name in ("pareto", "curves", "history", "topics", "parallel"):
        assert any(r.data_source is figures.source for r in figures.made[name].renderers), name


def test_the_pinned_and_the_best_trial_are_marked():
    watched = Watched(40)
    figures, (trials, curves) = watched.figures, watched.study
    best = min((t for t in trials if t["state"] == "COMPLETE"), key=lambda t: t["value"])["number"]
    figures.pin(7)
    data = figures.source.data
    assert figures.marks.data["marker"] == ["star", "square"]
    assert figures.marks.data["x"] == [data["x"][best], data["x"][7]]
    assert figures.pinned_curve.data["y"] == pytest.approx(curves[7]["value"], rel=1e-5)
    figures.update([t for t in trials if t["number"] != 7], curves)  # hidden
    assert figures.marks.data["marker"] == ["star"]
    assert figures.pinned_curve.data["y"] == []
    figures.update(trials, curves)
    figures.pin(None)
    assert figures.marks.data["marker"] == ["star"]


# --- views ----------------------------------------------------------------------------------------


def test_log_axes_take_the_place_of_others_and_the_other_axis_stays_as_it_is():
    watched = Watched(60, names=("pareto", "curves"))
    figures, pane = watched.figures, watched.figures.pane("pareto")
    before = pane.object
    before.x_range.start, before.x_range.end = 10.5, 20.5  # somebody zooms
    figures.select([3])
    figures.set_view(log_y=True)
    p = pane.object
    assert p is figures.pareto is not before
    assert isinstance(p.yaxis[0], LogAxis)
    assert not isinstance(p.xaxis[0], LogAxis)
    assert (p.x_range.start, p.x_range.end) == (10.5, 20.5)
    assert 0 < p.y_range.start < p.y_range.end
    assert p.yaxis[0].axis_label == "held-out loss (nats per cell), log"
    assert figures.selected == [3]
    watched.study = a_little_later(watched.study, 10)
    figures.update(*watched.study)
    assert len(figures.source.data["number"]) == 61
    figures.set_view(log_y=False)
    assert not isinstance(pane.object.yaxis[0], LogAxis)
    assert len(figures.points) == 1  # none of a figure that is gone


def test_another_attribute_is_shown_whole_wherever_one_had_zoomed():
    figures = Watched(60).figures
    p = figures.pareto
    p.x_range.start, p.x_range.end = 10.5, 20.5
    figures.set_view(x="seconds")
    assert p is figures.pareto
    seconds = figures.source.data["x"]
    assert p.x_range.start <= np.nanmin(seconds)
    assert p.x_range.end >= np.nanmax(seconds)
    assert p.xaxis[0].axis_label == "time (s)"
    assert ("time (s)", "@x{0.[000]}") in figures.tips.tooltips


def test_text_colours_by_categories_that_keep_their_colours():
    figures = TrialFigures()
    figures.pane("pareto"), figures.pane("curves")
    trials, curves = synthetic(40)
    few = [t for t in trials if t["state"] in ("COMPLETE", "RUNNING")]
    figures.set_view(hue="state", curve_hue="device")
    figures.update(few, curves)
    colour = dict(zip(figures.source.data["state"], figures.source.data["hue"], strict=True))
    figures.update(trials, curves)  # now there are others, too
    for state, hue in zip(figures.source.data["state"], figures.source.data["hue"], strict=True):
        assert colour.get(state, hue) == hue
    bar = figures.bars_of["hue"]
    assert isinstance(bar.ticker, FixedTicker)
    assert list(bar.major_label_overrides.values()) == ["complete", "pruned", "running", "fail"]
    assert figures.mapper.palette == categories(4)
    assert set(figures.bars_of["curve_hue"].major_label_overrides.values()) == {"cuda:0", "cuda:1"}
    figures.set_view(hue="number", palette="viridis")
    assert bar.major_label_overrides == {}
    assert not isinstance(bar.ticker, FixedTicker)
    assert figures.names["device"] is False
    assert figures.names["num_topics"] is True


def test_colours_are_computed_in_the_browser_so_that_another_palette_sends_no_rows():
    watched = Watched(100)
    watched.figures.set_view(palette="Spectral_r", curve_palette="magma")
    assert watched.of_source() == []
    assert len(watched.figures.mapper.palette) == 128
    watched.figures.set_view(log_curve_hue=True)
    known = watched.figures.source.data["value"]
    assert watched.figures.source.data["curve_hue"] == pytest.approx(np.log(known), nan_ok=True)
    assert watched.figures.bars_of["curve_hue"].title == "value, log"


def test_pruned_trials_and_numbers_on_demand():
    figures = Watched(60).figures
    pruned = np.array([s == "PRUNED" for s in figures.source.data["state"]])
    figures.set_view(include_pruned_trials=False)
    assert np.isnan(figures.source.data["x"][pruned]).all()
    assert np.isfinite(figures.source.data["x"][~pruned]).all()
    on = figures.source.data["front"].astype(bool)
    assert [bool(label) for label in figures.source.data["label"]] == on.tolist()
    figures.set_view(label_pareto_front=False)
    assert figures.source.data["label"] == [str(i) for i in range(60)]


def test_labels_that_nobody_could_read_are_left_out():
    figures = TrialFigures()
    n = 400
    trials = [{"number": i, "state": "COMPLETE", "value": 1.0, "distortion": float(i), "rate": float(n - i)}
              for i in range(n)]  # fmt: skip
    figures.update(trials, {})
    assert figures.source.data["front"].all()
    labels = [label for label in figures.source.data["label"] if label]
    assert len(labels) == MOST_LABELS
    assert {"0", str(n - 1)} <= set(labels)


def test_what_cannot_be_shown_is_refused_and_nothing_changes():
    figures = Watched(20).figures
    before = dict(figures.view)
    with pytest.raises(OptionError, match="did you mean 'viridis'"):
        figures.set_view(x="rate", palette="virids")
    with pytest.raises(OptionError, match="'state' is text"):
        figures.set_view(x="state")
    with pytest.raises(OptionError, match="measure must be one of"):
        figures.set_view(measure="loss")
    with pytest.raises(TypeError, match="there is no colour"):
        figures.set_view(colour="rate")
    assert figures.view == before


def test_what_matters_is_drawn_or_why_it_is_not_known():
    figures = TrialFigures()
    p = figures.importance
    figures.update([], {}, ImportanceInfo({}, 3, "8 completed trials tell what matters; there are 3"))
    assert figures.notes["importance"].text == "8 completed trials tell what matters; there are 3"
    figures.update([], {}, ImportanceInfo({"num_topics": 0.9, "decoder_dropout": 0.1}, 20, ""))
    assert p.y_range.factors == ["decoder\ndropout", "num\ntopics"]  # the greatest above
    assert figures.bars.data["share"] == ["10%", "90%"]
    assert figures.notes["importance"].text == "of 20 completed trials"
    figures.update([], {})
    assert figures.bars.data["value"] == [0.1, 0.9]
    figures.show_importance({"a": 1.0})
    assert figures.bars.data["name"] == ["a"]


# --- small parts ----------------------------------------------------------------------------------


def test_a_trial_that_changes_is_the_only_row_that_is_computed_anew():
    rows = Rows()
    trials, curves = synthetic(30)
    rows.renew(trials, curves)
    before = rows.columns(TrialFigures().view)
    trials = [*trials]
    trials[4] = {**trials[4], "num_topics": trials[4]["num_topics"] + 1, "note": "late"}
    assert rows.renew(trials, curves) is False
    after = rows.columns(TrialFigures().view)
    assert rows.values("num_topics")[4] == trials[4]["num_topics"]
    assert rows.names["note"] is False
    assert all(a is b for i, (a, b) in enumerate(zip(before["py"], after["py"], strict=True)) if i != 4)
    assert all(a is b for a, b in zip(before["ys"], after["ys"], strict=True))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 17.9), (1e-6, 3e-6), (1e5, 1e5 + 7), (702.3, 1103.4)])
def test_round_ends_are_near_and_beyond(low, high):
    a, b = round_ends(low, high)
    gap = high - low
    assert low - 0.1 * gap <= a <= low + 1e-9 * gap
    assert high - 1e-9 * gap <= b <= high + 0.1 * gap
    assert round_ends(5.0, 5.0) == (5.0, 5.0)
