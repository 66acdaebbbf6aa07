"""Figures, without a browser."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mira_app.figures.colours import categories
from mira_app.figures.curves import MAX_POINTS, TrainingCurves
from mira_app.figures.embedding import Embedding
from mira_core.records import EpochRecord, StepRecord


def steps(first: int, last: int) -> list[dict]:
    return [StepRecord(s, 1, 10.0 / s, 8.0, 2.0, 0.5, 0.1, 0.9).to_dict() for s in range(first, last + 1)]


def test_curves_take_records_as_they_come():
    curves = TrainingCurves()
    assert not curves.root.visible
    curves.update(steps(1, 30))
    curves.update([*steps(31, 40), EpochRecord(1, 40, 1.0, 0.8, 0.2, 0.5, 0.1, 0.9, 2.0, 100.0, 0.1).to_dict()])
    assert list(curves.source.data["step"]) == list(range(1, 41))
    assert curves.source.data["loss"][-1] == pytest.approx(0.25)
    assert list(curves.epochs.data["step"]) == [40]
    assert curves.root.visible


def test_long_trainings_are_thinned_evenly_and_keep_their_beginning():
    curves = TrainingCurves()
    for first in range(1, 100_001, 1000):
        curves.update(steps(first, first + 999))
    shown = np.array(curves.source.data["step"])
    assert MAX_POINTS / 2 <= len(shown) <= MAX_POINTS
    assert len(set(np.diff(shown))) == 1
    assert shown[0] <= 64
    assert shown[-1] > 99_900
    assert np.allclose(curves.source.data["loss"], 10.0 / shown)


def test_a_longer_run_widens_the_axis_and_a_shorter_one_narrows_it():
    curves = TrainingCurves()
    for n in (50, 1000, 20):
        curves.clear()
        curves.expect(n)
        assert (curves._steps.start, curves._steps.end, curves._steps.bounds) == (0, n, (0, n))


def test_the_step_axis_spans_the_whole_training_and_is_set_once():
    curves = TrainingCurves()
    curves.expect(500)
    assert (curves._steps.start, curves._steps.end) == (0, 500)
    curves._steps.start, curves._steps.end = 100, 200  # somebody zooms
    curves.expect(500)
    curves.update(steps(1, 10))
    assert (curves._steps.start, curves._steps.end) == (100, 200)


def test_values_that_are_not_finite_leave_gaps():
    curves = TrainingCurves()
    curves.update([StepRecord(1, 1, float("nan"), 8.0, 2.0, 0.5, 0.1, 0.9).to_dict()])
    assert curves.source.data["loss"] == [None]


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
