"""Figures, without a browser."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from bokeh.models import BoxAnnotation

from mira_app.figures.colours import categories
from mira_app.figures.curves import MAX_POINTS, TrainingCurves, at_step
from mira_app.figures.embedding import Embedding
from mira_app.figures.quality import QualityPlots
from mira_app.series import Series
from mira_core.records import EpochRecord, StepRecord


def steps(first: int, last: int) -> list[dict]:
    return [
        StepRecord(s, 1 + (s - 1) // 10, 10.0 / s, 8.0, 2.0, 0.5, 0.1, 0.9).to_dict() for s in range(first, last + 1)
    ]


def series(n: int) -> Series:
    out = Series()
    out.append(steps(1, n))
    return out


def epoch(number: int, **values: float) -> dict:
    return EpochRecord(number, 10 * number, 1.0, 0.8, 0.2, 0.5, 0.1, 0.9, 2.0, 100.0, 0.1).to_dict() | values


def test_curves_take_points_as_they_come():
    curves, points = TrainingCurves(), series(30)
    assert not curves.root.visible
    curves.update(points)
    points.append([*steps(31, 40), epoch(4)])
    curves.update(points)
    assert list(curves.source.data["step"]) == list(range(1, 41))
    assert curves.source.data["loss"][-1] == pytest.approx(0.25)
    assert list(curves.epochs.data["step"]) == [40]
    assert curves.root.visible


def test_long_trainings_are_thinned_evenly_and_keep_their_beginning():
    curves, points = TrainingCurves(), Series()
    for first in range(1, 100_001, 1000):
        points.append(steps(first, first + 999))
        curves.update(points)
    shown = np.array(curves.source.data["step"])
    assert MAX_POINTS / 2 <= len(shown) <= MAX_POINTS
    assert len(set(np.diff(shown))) == 1
    assert shown[0] <= 64
    assert shown[-1] > 99_900
    assert np.allclose(curves.source.data["loss"], 10.0 / shown)


def test_where_it_is_zoomed_in_every_step_is_there_and_stays_as_it_grows():
    curves, points = TrainingCurves(), series(50_000)
    curves.update(points)
    curves.show_window(20_000, 21_000)
    within = [s for s in curves.source.data["step"] if 20_000 <= s < 21_000]
    assert within == list(range(20_000, 21_000))
    points.append(steps(50_001, 50_200))
    curves.update(points)
    assert [s for s in curves.source.data["step"] if 20_000 <= s < 21_000] == within
    assert (np.diff(curves.source.data["step"]) > 0).all()
    assert len(curves.source.data["step"]) < 2 * MAX_POINTS
    curves.show_window(-10, 60_000)  # out again
    assert len(curves.source.data["step"]) <= MAX_POINTS


def test_a_longer_run_widens_the_axis_and_a_shorter_one_narrows_it():
    curves = TrainingCurves()
    for n in (50, 1000, 20):
        curves.clear()
        curves.expect(n, 5)
        assert (curves._x.start, curves._x.end) == (0, n)


def test_the_step_axis_spans_the_whole_training_and_is_set_once():
    curves = TrainingCurves()
    curves.expect(500, 50)
    assert (curves._x.start, curves._x.end) == (0, 500)
    curves._x.start, curves._x.end = 100, 200  # somebody zooms
    curves.expect(500, 50)
    curves.update(series(10))
    assert (curves._x.start, curves._x.end) == (100, 200)


def test_epochs_in_place_of_steps():
    curves, points = TrainingCurves(), series(40)
    points.append([epoch(1), epoch(2)])
    curves.update(points)
    curves.set_view(0.0, False, True)
    curves.expect(40, 4)
    assert curves._x.end == 4
    assert list(curves.source.data["x"][[9, 39]]) == [1.0, 4.0]
    assert list(curves.epochs.data["x"]) == [1.0, 2.0]


def test_epochs_are_told_right_from_before_the_first_has_ended():
    curves, points = TrainingCurves(), Series()
    curves.set_view(0.0, False, True)
    for first in (1, 6):
        points.append(steps(first, first + 4))
        curves.update(points)
    assert (np.diff(curves.source.data["x"]) > 0).all()
    curves.pin(0.6)
    points.append([*steps(11, 20), epoch(1)])
    curves.update(points)
    np.testing.assert_allclose(curves.source.data["x"], np.arange(1, 21) / 10)
    assert [span.location for _, span in curves._spans[:1]] == [curves.pins[0] / 10]
    assert curves._reads[0].args["names"][0] == ["epoch", "x"]
    curves.set_view(0.0, False, False)
    assert curves._reads[0].args["names"][0] == ["step", "x"]


def test_the_nearest_step_is_pinned():
    curves, points = TrainingCurves(), Series()
    points.append(steps(1, 30))
    curves.update(points)
    for x in (10.3, 10.7, -5, 99):
        curves.pin(x)
    assert curves.pins == [10, 11, 1, 30]


def test_values_that_are_not_finite_leave_gaps():
    curves, points = TrainingCurves(), Series()
    points.append([StepRecord(1, 1, float("nan"), 8.0, 2.0, 0.5, 0.1, 0.9).to_dict()])
    curves.update(points)
    assert np.isnan(curves.source.data["loss"]).all()


def legend(curves: TrainingCurves) -> list[str]:
    """What the legend shows."""
    return [i.label.value for i in curves.figures["loss"].legend[0].items if i.visible]


def test_losses_on_log_axes():
    curves, points = TrainingCurves(), series(30)
    curves.update(points)
    curves.compare({"a": ("first", series(20))})
    curves.expect(500, 50)
    curves._x.start, curves._x.end = 100, 200  # somebody zooms
    curves.set_view(0.0, True, False)
    assert list(curves.source.data["step"]) == list(range(1, 31))
    assert legend(curves) == ["first", "each step", "mean of each epoch"]
    assert (curves._x.start, curves._x.end, curves._x.reset_end) == (100, 200, 500)
    types = {name: type(figure.yaxis[0]).__name__ for name, figure in curves.figures.items()}
    assert [n for n, t in types.items() if t == "LogAxis"] == ["loss", "distortion", "rate", "dependence",
                                                              "learning_rate"]  # fmt: skip


def test_the_panel_of_dependence_is_there_for_codal_only():
    curves = TrainingCurves()
    curves.update(series(5))
    assert not curves.boxes["dependence"].visible
    points = Series()
    points.append([StepRecord(1, 1, 9.0, 8.0, 2.0, 0.5, 0.1, 0.9, dependence=0.3, dependence_weight=1.0).to_dict()])
    curves.update(points)
    assert curves.boxes["dependence"].visible


def test_held_out_cells_have_a_line_once_there_are_any():
    curves, points = TrainingCurves(), series(20)
    points.append([epoch(1)])
    curves.update(points)
    assert legend(curves) == ["each step", "mean of each epoch"]
    points = series(20)
    points.append([epoch(1, held_out_loss=5.0)])
    curves.update(points)
    assert "held-out cells, after each epoch" in legend(curves)
    assert all(r.visible for r in curves._held_out)
    assert list(curves.epochs.data["held_out_loss"]) == [5.0]


def test_other_runs_are_drawn_beside_and_keep_their_colours():
    curves = TrainingCurves()
    curves.update(series(20))
    curves.compare({"a": ("first", series(30)), "b": ("second", series(5000))})
    a, b = curves.beside[:2]
    assert (len(a.source.data["x"]), len(b.source.data["x"]) <= 1000) == (30, True)
    assert a.colour != b.colour
    assert legend(curves)[:2] == ["first", "second"]
    curves.compare({"b": ("second", series(60)), "c": ("third", series(7))})
    assert [x.key for x in curves.beside] == ["c", "b"]
    assert len(b.source.data["x"]) == 60
    curves.compare({})
    assert legend(curves) == ["each step", "mean of each epoch"]
    assert not len(b.source.data["x"])
    curves.compare({str(i): (f"run {i}", series(9)) for i in range(12)})  # more than can be told apart
    assert len(legend(curves)) == 8 + 2
    assert len({x.colour for x in curves.beside}) == 8


def test_a_live_run_beside_sends_its_points_alone_and_nothing_when_none_came():
    curves, live, still = TrainingCurves(), series(30), series(40)
    curves.update(series(20))
    curves.compare({"live": ("live", live), "still": ("still", still)})
    a, b = curves.beside[:2]
    drawn, sent = [p.renderers for p in curves.figures.values()], []
    for each in (a, b):
        each.source.on_change("data", lambda attr, old, new, each=each: sent.append(each.key))
    live.append(steps(31, 50))
    curves.update_beside(["live", "still"])
    assert (sent, len(a.source.data["x"])) == (["live"], 50)
    curves.update_beside(["live", "still"])
    assert sent == ["live"]
    curves.set_view(0.5, False, False)  # which all are drawn anew for
    assert sent == ["live", "live", "still"]
    assert [p.renderers for p in curves.figures.values()] == drawn


def test_a_pin_stays_where_it_was_put():
    curves, points = TrainingCurves(), series(40)
    points.append([epoch(1)])
    curves.update(points)
    curves.pin(12.2)
    assert curves.pins == [12]
    assert at_step(points, 12)["loss"] == pytest.approx(10 / 12)
    curves.set_view(0.9, False, True)
    assert {s.location for _, s in curves._spans} == {1.2}
    assert len(curves._spans) == len(curves.figures)
    points.append(steps(41, 60))
    curves.update(points)
    assert curves.pins == [12]
    curves.unpin()
    assert curves._spans == []


def test_smoothing_is_the_weighted_mean_of_what_came_before():
    points = Series()
    values = np.random.default_rng(0).normal(5, 1, 300)
    values[17] = np.nan
    for part in np.split(values, [1, 7, 150]):  # as it comes
        points.append([{"kind": "step", "step": 1, "loss": v} for v in part])
        points.smoothed("loss", 0.9)
    got = points.smoothed("loss", 0.9)
    for n in (0, 5, 17, 30, 299):
        weights = 0.9 ** np.arange(n, -1, -1) * np.isfinite(values[: n + 1])
        assert got[n] == pytest.approx(np.nansum(weights * values[: n + 1]) / weights.sum())
    assert (points.smoothed("loss", 0.0) == values)[np.isfinite(values)].all()


def test_cells_are_coloured_by_numbers_and_by_categories():
    figure = Embedding(np.random.default_rng(0).normal(size=(5, 2)), pd.Index(list("abcde")))
    figure.update("share", pd.Series([0.0, 0.25, 0.5, 1.0, np.nan]))
    colours = figure.source.data["colour"]
    assert colours[0] != colours[3]
    assert colours[4] == "#bbbbbb"
    assert figure.legend == []
    figure.update("type", pd.Series(["x", "y", "x", None, "y"]))
    colours = figure.source.data["colour"]
    assert colours[0] == colours[2] != colours[1]
    assert colours[3] == "#bbbbbb"
    assert [label for label, _ in figure.legend] == ["x", "y"]
    assert dict(figure.legend)["x"] == colours[0]


def test_a_constant_column_has_a_scale():
    figure = Embedding(np.zeros((3, 2)), pd.Index(list("abc")))
    figure.update("constant", pd.Series([2.0, 2.0, 2.0]))
    assert figure._mapper.high > figure._mapper.low


@pytest.mark.parametrize("n", [1, 7, 8, 40, 300])
def test_there_is_a_colour_for_every_category(n):
    colours = categories(n)
    assert len(colours) == n
    assert len(set(colours)) == min(n, len(set(categories(10_000))))
    assert colours == categories(n + 5)[:n]  # a topic keeps its colour, however many there are
    assert all(c.startswith("#") and len(c) == 7 for c in colours)


# --- quality of cells -----------------------------------------------------------------------------


def quality(**limits) -> QualityPlots:
    rng = np.random.default_rng(0)
    counts = np.round(rng.lognormal(7, 1, 1000)).astype(np.float32)
    counts[:10] = 0
    cells = pd.DataFrame({
        "total_counts": counts,
        "n_genes_by_counts": np.round(counts / 3),
        "pct_counts_mt": np.where(counts > 0, rng.uniform(0, 20, 1000), np.nan).astype(np.float32),
    })  # fmt: skip
    plots = QualityPlots()
    plots.show(cells, limits)
    plots.frame = cells
    return plots


def box_of(plots: QualityPlots, name: str) -> BoxAnnotation:
    return next(a for a in plots.panes[name].object.center if isinstance(a, BoxAnnotation))


def kept_bars(plots: QualityPlots, name: str) -> np.ndarray:
    return plots.panes[name].object.renderers[1].data_source.data["kept"]


def test_cells_within_all_limits_are_counted_and_drawn():
    plots = quality(total_counts=(500, 5000), pct_counts_mt=(None, 10))
    x = plots.frame
    keep = x.total_counts.between(500, 5000) & ~(x.pct_counts_mt > 10)
    assert (plots.kept, plots.of) == (keep.sum(), 1000)
    for name in x:
        assert kept_bars(plots, name).sum() == keep.sum()
        every = plots.panes[name].object.renderers[0].data_source.data["all"]
        assert every.sum() == 1000
        assert (kept_bars(plots, name) <= every).all()
    assert plots.options() == {"min_counts": 500, "max_counts": 5000, "max_pct_mt": 10}
    assert plots.of_options(plots.options())["total_counts"] == (500, 5000)


def test_without_limits_cells_without_counts_are_kept_too():
    plots = quality()
    assert plots.kept == 1000
    assert plots.options() == {}


def test_edges_that_are_dragged_are_limits_and_none_beyond_the_cells():
    plots, moved = quality(), []
    plots.moved = lambda: moved.append(dict(plots.limits))
    plots._count_soon = plots._count
    box = box_of(plots, "total_counts")
    box.left = 700.4
    assert plots.limits["total_counts"] == (700, None)
    box.right = 3000.2
    assert plots.options() == {"min_counts": 700, "max_counts": 3000}
    box.left = 0.001
    assert plots.options() == {"max_counts": 3000}
    share = box_of(plots, "pct_counts_mt")
    share.right = 7.77
    assert plots.options() == {"max_counts": 3000, "max_pct_mt": 7.8}
    assert plots.kept == (~(plots.frame.total_counts > 3000) & ~(plots.frame.pct_counts_mt > 7.8)).sum()
    assert len(moved) == 4
    plots.place({"total_counts": (900, None)})
    assert (box.left, len(moved)) == (900, 4)


def test_suggested_limits_are_those_that_drop_cells_and_what_they_say_is_kept():
    plots = quality()
    thresholds = pd.DataFrame(
        {"lower": [10.6, np.nan, np.nan], "upper": [900.2, 5.0, 8.03], "n_below": [3, 0, 0], "n_above": [2, 0, 7]},
        index=["total_counts", "n_genes_by_counts", "pct_counts_mt"],
    )
    assert plots.suggested(thresholds) == {
        "total_counts": (11, 900), "n_genes_by_counts": (None, None), "pct_counts_mt": (None, 8.1),
    }  # fmt: skip


def test_peaks_and_cells_that_are_all_alike_are_shown_too():
    plots = QualityPlots()
    plots.show(pd.DataFrame({"total_counts": np.full(5, 7.0), "n_genes_by_counts": np.zeros(5)}), {})
    assert list(plots.panes) == ["total_counts", "n_genes_by_counts"]
    assert plots.kept == 5
