"""The figures of a tuning."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import optuna
import pytest

from mira_core.errors import OptionError
from mira_core.plots import trials as plots
from mira_core.plots import trials_info
from tests.helpers import make_tuner

mpl.use("Agg")
optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore:the best model has")


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


# --- further figures ------------------------------------------------------------------------------


def frozen(n: int, loss, state=optuna.trial.TrialState.COMPLETE, seed: int = 0) -> list[optuna.trial.FrozenTrial]:
    """Trials of three parameters, of which the last one changes nothing."""
    rng = np.random.default_rng(seed)
    space = {
        "num_topics": optuna.distributions.IntDistribution(3, 60, log=True),
        "decoder_dropout": optuna.distributions.FloatDistribution(0.001, 0.3, log=True),
        "nothing": optuna.distributions.FloatDistribution(0, 1),
    }
    out = []
    for _ in range(n):
        params = {"num_topics": int(np.exp(rng.uniform(np.log(3), np.log(60)))),
                  "decoder_dropout": float(np.exp(rng.uniform(np.log(0.001), np.log(0.3)))),
                  "nothing": float(rng.uniform())}  # fmt: skip
        value = loss(params) + rng.normal(0, 0.1)
        out.append(optuna.create_trial(state=state, params=params, distributions=space, value=float(value)))
    return out


def by_topics(params) -> float:
    return math.log(params["num_topics"] / 18) ** 2 + 0.3 * (math.log(params["decoder_dropout"] / 0.03) / 2) ** 2


def test_who_is_on_the_front_is_found_as_by_comparing_all_pairs():
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 5, 30, 200):
        x, y = rng.integers(0, 12, (2, n)).astype(float)  # with many that are alike
        y[rng.random(n) < 0.1] = np.nan
        able = rng.random(n) < 0.7
        ok = able & np.isfinite(x) & np.isfinite(y)
        beaten = [any(ok[j] and x[j] <= x[i] and y[j] <= y[i] and (x[j] < x[i] or y[j] < y[i]) for j in range(n))
                  for i in range(n)]  # fmt: skip
        assert trials_info.front(x, y, able).tolist() == (ok & ~np.array(beaten, bool)).tolist()


def test_the_history_tells_the_best_so_far_and_where_others_were_last():
    info = plots.history_info(TRIALS, {**CURVES, 4: {1: 30.0, 2: 29.0}})
    assert info.values.tolist() == [10, 10.5, 12, 9, 29]
    assert (info.best_numbers.tolist(), info.best_values.tolist()) == ([0, 2], [10, 10])
    better = [{**t, "state": "COMPLETE"} for t in TRIALS]
    assert plots.history_info(better).best_values.tolist() == [10, 9]
    assert plots.history_info(better).best_numbers.tolist() == [0, 3]


def test_losses_by_number_of_topics_and_their_medians():
    more = [*TRIALS, {**TRIALS[0], "number": 5, "value": 14.0}, {**TRIALS[0], "number": 6, "value": None}]
    info = plots.topics_info(more)
    assert info.topics.tolist() == [5, 9, 7, 8, 8, 5, 5]
    assert (info.by_topics.tolist(), info.medians.tolist()) == ([5, 7, 9], [12, 12, 10.5])
    assert info.trials.tolist() == [2, 1, 1]


def test_parallel_coordinates_lie_between_the_ends_of_their_axes():
    rows = [{**t, "min_learning_rate": 10.0 ** -(5 - i)} for i, t in enumerate(TRIALS)]
    info = plots.parallel_info(rows)
    assert [a.name for a in info.axes] == ["num_topics", "min_learning_rate", "distortion", "rate", "value"]
    assert [a.log for a in info.axes] == [False, True, False, False, False]
    topics, rate_of_learning = info.positions[:, 0], info.positions[:, 1]
    assert topics.tolist() == [0, 1, 0.5, 0.75, 0.75]
    assert rate_of_learning == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert np.isnan(info.positions[4, 2:]).all()
    assert np.isfinite(info.positions[:4]).all()
    assert np.nanmin(info.positions) == 0
    assert np.nanmax(info.positions) == 1
    assert plots.parallel_info(rows, ["rate"], "state").hue.categories == ["COMPLETE", "FAIL", "PRUNED"]
    with pytest.raises(OptionError, match="no attribute 'nope'"):
        plots.parallel_info(rows, ["nope"])


def test_a_trial_that_went_astray_does_not_flatten_the_rest():
    values = np.array([*np.linspace(500, 520, 30), 1e6, np.nan])
    assert trials_info.extent(values) == (500, 520)
    axis = trials_info.axis_of("value", values)
    assert axis.beyond == 1
    assert axis.along(values)[30] == 1
    assert trials_info.extent(np.array([7.0])) == (7, 7)
    assert trials_info.extent(np.array([np.nan])) == (0, 1)


def test_how_trainings_begin_does_not_flatten_the_rest():
    curves = [[1e5, 1000, 600 + i, np.nan, 550, 500, 490 + i] for i in range(10)]
    low, high = trials_info.extent_of_curves([*curves, [], [np.nan], [3.0, np.inf]])
    assert low == 490
    assert high == pytest.approx(604.5)  # where the median curve is after a third
    assert trials_info.extent_of_curves([]) == (0, 1)


@pytest.mark.parametrize("n", [8, 12, 100])
def test_the_parameter_that_matters_most_is_found(n):
    info = plots.importance_info(frozen(n, by_topics))
    assert next(iter(info.shares)) == "num_topics"
    assert sum(info.shares.values()) == pytest.approx(1)
    assert (info.trials, info.why) == (n, "")


def test_one_training_that_went_astray_does_not_explain_everything():
    trials = frozen(30, by_topics)
    trials[3].value = 1e9
    assert plots.importance_info(trials).shares["num_topics"] > 0.6


def test_ranges_that_were_narrowed_meanwhile_are_weighed_with_the_rest():
    trials = frozen(20, by_topics)
    for t in trials[10:]:
        t.distributions = {**t.distributions, "num_topics": optuna.distributions.IntDistribution(2, 80, log=True)}
    assert set(plots.importance_info(trials).shares) == {"num_topics", "decoder_dropout", "nothing"}


def test_what_matters_is_not_told_where_nobody_can_know():
    pruned = frozen(30, by_topics, optuna.trial.TrialState.PRUNED)
    info = plots.importance_info([*frozen(7, by_topics), *pruned])
    assert (info.shares, info.trials) == ({}, 7)
    assert info.why == "8 completed trials tell what matters; there are 7"
    alike = frozen(10, by_topics)
    for t in alike:
        t.value = 3.0
    assert "losses are all the same" in plots.importance_info(alike).why
    alike = frozen(10, by_topics)
    for t in alike:
        t.params = dict(alike[0].params)
    assert "the same parameters" in plots.importance_info(alike).why
    ax = plots.plot_importance(alike)
    assert "the same parameters" in ax.texts[-1].get_text()
    mpl.pyplot.close("all")


def test_further_figures_are_drawn(folder, cells):
    tuner = make_tuner(cells)
    for draw in (tuner.plot_history, tuner.plot_topic_counts, tuner.plot_parallel_coordinates, tuner.plot_importance):
        draw()  # of nothing
    tuner.fit(cells)
    told = tuner.trial_attrs
    assert tuner.plot_history().get_xlabel() == "trial"
    shown = sum(len(c.get_offsets()) for c in tuner.plot_topic_counts().collections)
    assert shown == len(told)
    ax = tuner.plot_parallel_coordinates(hue="num_topics", lw=2)
    names = [t.get_text().replace("\n", "") for t in ax.get_xticklabels()]
    assert names == ["num_topics", "decoder_dropout", "distortion", "rate", "value"]
    assert tuner.plot_history(ax=ax) is ax
    tuner.plot_importance()
    mpl.pyplot.close("all")
