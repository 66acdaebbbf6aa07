"""The figures of a tuning."""

from __future__ import annotations

import math

import matplotlib as mpl
import optuna
import pytest

import mira_core as mira
from mira_core.errors import OptionError
from mira_core.plots import trials as plots
from tests.helpers import make_tuner

mpl.use("Agg")
optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore:the best model has")


@pytest.fixture(scope="module")
def cells():
    return mira.data.simulate_expression(150, 40, 4, seed=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRIALS = [
    {"number": 0, "state": "COMPLETE", "value": 10.0, "elbo": 10.0, "num_topics": 5, "distortion": 8.0, "rate": 2.0},
    {"number": 1, "state": "COMPLETE", "value": 10.5, "elbo": 10.5, "num_topics": 9, "distortion": 7.0, "rate": 3.5},
    {"number": 2, "state": "COMPLETE", "value": 12.0, "elbo": 12.0, "num_topics": 7, "distortion": 8.5, "rate": 3.5},
    {"number": 3, "state": "PRUNED", "value": 9.0, "elbo": 9.0, "num_topics": 8, "distortion": 7.0, "rate": 2.0},
    {"number": 4, "state": "FAIL", "value": None, "elbo": None, "num_topics": 8, "distortion": None, "rate": None},
]
CURVES = {0: {1: 20.0, 2: 10.0}, 1: {1: 19.0, 2: 10.5}, 2: {1: 12.0}, 3: {1: 9.0}, 4: {}}


def test_what_the_pareto_figure_shows():
    info = plots.pareto_info(TRIALS)
    assert info.numbers.tolist() == [0, 1, 2, 3]
    assert info.x.tolist() == [5, 9, 7, 8]
    assert info.y.tolist() == [10, 10.5, 12, 9]
    assert info.on_front.tolist() == [True, True, False, False]  # pruned ones did not end
    assert plots.pareto_info(TRIALS, include_pruned_trials=False).numbers.tolist() == [0, 1, 2]
    with pytest.raises(OptionError, match="did you mean 'distortion'"):
        plots.pareto_info(TRIALS, x="distorsion")


def test_what_the_figure_of_intermediate_values_shows():
    info = plots.curves_info(TRIALS, CURVES)
    assert info.numbers == [0, 1, 2, 3]
    assert info.curves[0][1].tolist() == [20, 10]
    assert info.hue.values.tolist() == [10, 10.5, 12, 9]
    assert plots.curves_info(TRIALS, CURVES, "state").hue.categories == ["COMPLETE", "PRUNED"]
    assert plots.curves_info(TRIALS, CURVES, "value", True).hue.values[0] == pytest.approx(math.log(10))


def test_the_figures_are_drawn_with_every_documented_option(folder, cells):
    tuner = make_tuner(cells)
    tuner.fit(cells)
    ax = tuner.plot_pareto_front(x="rate", y="distortion", hue="state", label_pareto_front=True, size=30, alpha=0.5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rate", "distortion")
    shown = len(plots.pareto_info(tuner.trial_attrs).numbers)
    assert len(tuner.plot_pareto_front().texts) == shown
    curves = tuner.plot_intermediate_values(hue="num_topics", log_hue=True, vmin=0.5, vmax=3, lw=3, palette="viridis")
    assert len(curves.lines) == shown
    assert curves.lines[0].get_linewidth() == 3
    assert tuner.plot_intermediate_values(ax=curves, add_legend=False) is curves
    mpl.pyplot.close("all")


def test_figures_of_a_study_without_trials(folder, cells):
    tuner = make_tuner(cells)
    tuner.plot_pareto_front()
    tuner.plot_intermediate_values()
    mpl.pyplot.close("all")
