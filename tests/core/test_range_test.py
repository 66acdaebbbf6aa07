"""The learning-rate range test: where the loss falls, and that nothing else is touched."""

from __future__ import annotations

import itertools
import json
import math

import matplotlib as mpl
import numpy as np
import pytest
import torch

import mira_core as mira
from mira_core.errors import NotFitted, OptionError, TrainingError
from mira_core.plots.learning_rates import curve_info
from mira_core.training import range_test, step
from mira_core.training.range_options import RangeOptions
from mira_core.training.range_test import LearningRateCurve, read_curve
from tests.helpers import FAMILIES, arrays, global_states, make, make_cells, read_cells, same, with_columns

mpl.use("Agg")
TRIM = (0.0, 0.5)
QUICK = {"num_steps": 40, "eval_every": 1, "progress": False}


def sigmoid(x: np.ndarray, begins: float, ends: float) -> np.ndarray:
    """Rise from 0 to 1, all but a hundredth at either end between two rates."""
    low, high = np.log([begins, ends])
    return 1 / (1 + np.exp(-2 * math.log(99) * (x - (low + high) / 2) / (high - low)))


def points(
    begins: float = 1e-3,
    ends: float = 0.3,
    *,
    high: float = 5.0,
    climb: float = 0.5,
    noise: float = 0.0,
    last: float = 0.0,
) -> list[tuple[float, float]]:
    """A loss that starts at 3, falls to 2 between two rates, and climbs after; `last` is added to its end."""
    rates = np.geomspace(1e-6, high, 100)
    x = np.log(rates)
    losses = 3 - sigmoid(x, begins, ends) + climb * np.maximum(0, np.expm1(x - np.log(ends)))
    losses += noise * np.random.default_rng(0).standard_normal(100)
    losses[-1] += last
    return list(zip(rates.tolist(), losses.tolist(), strict=True))


def bounds(model: mira.topics.TopicModel) -> tuple[float, float]:
    return model.min_learning_rate, model.max_learning_rate


# --- reading the curve ----------------------------------------------------------------------------


@pytest.mark.parametrize("last", [0.0, 10.0, 1e3, 1e8])
@pytest.mark.parametrize(("begins", "ends"), [(1e-3, 0.3), (1e-5, 1e-3), (0.01, 1.0)])
@pytest.mark.parametrize("noise", [0.0, 0.03, 0.06])
def test_the_bounds_lie_where_the_loss_falls(begins, ends, noise, last):
    """However far it runs away at the end."""
    curve = read_curve(points(begins, ends, noise=noise, last=last), 100, TRIM)
    low, high = np.log(curve.bounds)
    within = min(high, math.log(ends)) - max(low, math.log(begins))
    assert within > 0.7 * (high - low)  # nearly all of the bounds' stretch
    assert within > 0.75 * (math.log(ends / begins) - TRIM[1])  # and of the falling one


def test_the_falling_stretch_is_of_rates_that_were_measured():
    told = points()
    curve = read_curve(told, 100, TRIM)
    assert set(curve.falling) < {rate for rate, _ in told}
    assert (curve.rates, curve.losses) == tuple(zip(*told, strict=True))


@pytest.mark.parametrize("depth", [0.3, 0.6])
def test_the_longest_of_several_stretches_is_taken(depth):
    """The loss falls in a short dip, comes back, and falls for long."""
    told = np.array(points(2e-3, 2.0, climb=0.0))
    x = np.log(told[:, 0])
    told[:, 1] -= depth * (sigmoid(x, 5e-6, 2e-5) - sigmoid(x, 5e-5, 2e-4))
    low, high = read_curve(told.tolist(), 100, TRIM).falling
    assert 1e-4 < low < 5e-3
    assert high > 1.0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shift", [-100.0, 0.0])
def test_the_bounds_do_not_depend_on_the_unit_of_the_loss(scale, shift):
    plain = read_curve(points(noise=0.05), 100, TRIM).bounds
    told = [(rate, scale * loss + scale * shift) for rate, loss in points(noise=0.05)]
    np.testing.assert_allclose(read_curve(told, 100, TRIM).bounds, plain, rtol=1e-6)


def test_the_smoothed_curve_follows_the_losses_and_stays_flat_where_they_ran_away():
    told = points(noise=0.05, last=1e6)
    curve = read_curve(told, 100, TRIM)
    rates, clean = np.array(points()).T
    smoothed = curve.smoothed(rates)
    np.testing.assert_allclose(smoothed[:-5], clean[:-5], atol=0.35)
    assert smoothed[-1] == smoothed[-2] < 12


def test_a_loss_that_only_climbs_has_no_bounds():
    told = [(rate, rate) for rate in np.geomspace(1e-6, 5, 100)]
    with pytest.raises(TrainingError, match="falls at none of the learning rates tried. Widen the range"):
        read_curve(told, 100, TRIM)


@pytest.mark.parametrize("n", [0, 1, 11])
def test_too_few_rates_say_so_with_a_remedy(n):
    with pytest.raises(TrainingError, match=f"ran away after {n} of 100 learning rates. Start lower by lower_bound_lr"):
        read_curve(points()[:n], 100, TRIM)


def test_a_curve_that_ended_early_diverged():
    assert not read_curve(points(), 100, TRIM).diverged
    assert read_curve(points()[:60], 100, TRIM).diverged


# --- trims ----------------------------------------------------------------------------------------


def test_trims_move_the_bounds_inwards_in_natural_log_units():
    curve = read_curve(points(), 100, (0.0, 0.0))
    assert curve.bounds == pytest.approx(curve.falling)
    low, high = curve.trimmed(0.3, 0.9).bounds
    assert low == pytest.approx(curve.falling[0] * math.exp(0.3))
    assert high == pytest.approx(curve.falling[1] * math.exp(-0.9))
    assert curve.bounds == pytest.approx(curve.falling)  # as it was


def test_trims_that_cross_meet_in_the_middle_between_them():
    curve = LearningRateCurve((1e-3, 1.0), (1.0, 0.0), (0.01, 1.0))
    low, high = curve.trimmed(math.log(50), math.log(50)).bounds
    assert low == pytest.approx(high) == pytest.approx(0.1)
    low, high = curve.trimmed(math.log(1000), 0.0).bounds
    assert low == pytest.approx(high) == pytest.approx(math.sqrt(10))


def test_trimming_a_models_bounds_sets_its_rates(cells):
    model = make(cells)
    found = model.get_learning_rate_bounds(cells, **QUICK)
    falling = model.learning_rate_curve.falling
    assert found == bounds(model) == pytest.approx((falling[0], falling[1] * math.exp(-0.5)))
    trimmed = model.trim_learning_rate_bounds(0.2, 1.0)
    assert trimmed == bounds(model) == pytest.approx((falling[0] * math.exp(0.2), falling[1] * math.exp(-1.0)))
    assert model.learning_rate_curve.trim == (0.2, 1.0)
    assert model.trim_learning_rate_bounds() == pytest.approx(found)  # from the same curve, not further and further
    other = make(cells)
    assert other.get_learning_rate_bounds(cells, lower_bound_trim=0.2, upper_bound_trim=1.0, **QUICK) == trimmed


def test_learning_rates_can_be_set_by_hand(cells):
    model = make(cells)
    assert model.set_learning_rates(0.002, 0.3) == (0.002, 0.3) == bounds(model)
    assert {model.options[f"{end}_learning_rate"].source for end in ("min", "max")} == {"yours"}
    with pytest.raises(OptionError, match="min_learning_rate must not exceed max_learning_rate; got 2 and 1"):
        model.set_learning_rates(2, 1)
    assert bounds(model) == (0.002, 0.3)


# --- the test itself ------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "highest"), [("expression", 5.0), ("fast", 5.0), ("CODAL", 1.0), ("process", 5.0)])
def test_rates_rise_in_geometric_progression_over_the_documented_range(cells, family, highest):
    adata = with_columns(cells)
    model = make(adata, **FAMILIES[family])
    low, high = model.get_learning_rate_bounds(adata, progress=False)
    curve = model.learning_rate_curve
    np.testing.assert_allclose(curve.rates, np.geomspace(1e-6, highest, 100))
    assert not curve.diverged
    assert 1e-6 <= low < high < highest
    losses = np.array(curve.losses)
    between = losses[(np.array(curve.rates) >= low) & (np.array(curve.rates) <= high)]
    assert between[-10:].mean() < between[:10].mean()


@pytest.mark.parametrize(("steps", "every"), [(20, 1), (13, 4)])
def test_every_rate_is_held_for_some_minibatches_and_few_minibatches_go_round(cells, monkeypatch, steps, every):
    """40 cells make one minibatch of 32; the test takes many."""
    adata = cells[:40].copy()
    taken = []
    honest = step.Stepper.step

    def watch(self, batch, setting):
        told = honest(self, batch, setting)
        taken.append((setting.learning_rate, told[0].item(), batch.n_cells, setting.momentum, setting.kl_weight))
        return told

    monkeypatch.setattr(step.Stepper, "step", watch)
    model = make(adata, cost_beta=1.3, max_momentum=0.9)
    found = range_test.range_test(
        model._begin(read_cells(adata)).network, read_cells(adata), model.get_params(), 0,
        RangeOptions(steps, every, 1e-5, 1e-2),
    )  # fmt: skip
    told = [(r.learning_rate, r.loss) for r in found]
    assert len(taken) == steps * every
    assert [rate for rate, *_ in taken] == [rate for rate, _ in told for _ in range(every)]
    for i, (_, mean) in enumerate(told):  # in nats per cell and feature
        assert mean == pytest.approx(np.mean([loss for _, loss, *_ in taken[i * every : (i + 1) * every]]) / 120)
    assert {tuple(rest) for _, _, *rest in taken} == {(32, 0.9, 1.3)}


def test_going_round_shuffles_anew(cells):
    read = read_cells(cells[:40].copy())
    order = range_test._round_and_round(len(read), 20, np.random.default_rng(0))
    cells_of = [tuple(sorted(rows.tolist())) for rows in itertools.islice(order, 6)]
    for i in (0, 2, 4):
        assert sorted(cells_of[i] + cells_of[i + 1]) == list(range(40))
    assert len(set(cells_of)) == 6


@pytest.mark.parametrize("upper", [1e4, 1e8, 1e25])
def test_a_loss_that_runs_away_ends_the_test_early_and_keeps_what_was_measured(cells, upper):
    model = make(cells)
    low, high = model.get_learning_rate_bounds(cells, upper_bound_lr=upper, progress=False)
    curve = model.learning_rate_curve
    assert curve.diverged
    assert 12 <= len(curve.rates) == len(curve.losses) < 100
    assert np.isfinite(curve.losses).all()
    np.testing.assert_allclose(curve.rates, np.geomspace(1e-6, upper, 100)[: len(curve.rates)])
    assert 1e-6 <= low < high < 1
    assert bounds(model) == (low, high)
    assert math.isfinite(model.fit(cells, progress=False).training_loss[-1])


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e12])
@pytest.mark.parametrize("family", ["expression", "process", "CODAL"])
def test_a_network_that_explodes_ends_the_test_early(cells, monkeypatch, loss, family):
    honest = step.Stepper.step

    def explode(self, batch, setting):
        if setting.learning_rate > 0.2 and not math.isfinite(loss):
            with torch.no_grad():
                for p in self.network.parameters():
                    p.fill_(loss)
        told = honest(self, batch, setting)
        if setting.learning_rate > 0.2:
            told[0] = loss
        return told

    monkeypatch.setattr(step.Stepper, "step", explode)
    model = make(with_columns(cells), **FAMILIES[family])
    low, high = model.get_learning_rate_bounds(cells, upper_bound_lr=5, num_steps=60, eval_every=1, progress=False)
    curve = model.learning_rate_curve
    assert curve.diverged
    measured = [rate for rate, mean in zip(curve.rates, curve.losses, strict=True) if mean < 1e6]
    assert measured == [rate for rate in np.geomspace(1e-6, 5, 60).tolist() if rate <= 0.2]
    assert 1e-6 <= low < high <= 0.2


def test_a_network_that_explodes_at_once_is_an_error_and_leaves_the_model_alone(cells, monkeypatch):
    def explode(self, batch, setting):
        return torch.tensor([math.nan, 0.0, 0.0, 0.0])

    monkeypatch.setattr(step.Stepper, "step", explode)
    model = make(cells)
    before = model.get_params()
    with pytest.raises(TrainingError, match="ran away after 0 of 100 learning rates"):
        model.get_learning_rate_bounds(cells, progress=False)
    assert model.get_params() == before
    assert model.learning_rate_curve is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lower_bound_lr": 5.0}, "lower_bound_lr must be above 0 and below 5; got 5.0"),
        ({"lower_bound_lr": 0.0}, "lower_bound_lr must be above 0"),
        ({"lower_bound_lr": -1e-3}, "lower_bound_lr must be above 0"),
        ({"lower_bound_lr": math.nan}, "lower_bound_lr must be above 0"),
        ({"lower_bound_lr": 0.1, "upper_bound_lr": 0.01}, "below 0.01; got 0.1"),
        ({"upper_bound_lr": -1.0}, "lower_bound_lr must be above 0 and below -1"),
        ({"num_steps": 11}, "num_steps must be at least 12 and eval_every 1; got 11, 3"),
        ({"eval_every": 0}, "num_steps must be at least 12 and eval_every 1; got 100, 0"),
    ],
)
def test_wrong_ranges_are_refused_before_anything_is_trained(cells, given, message):
    model = make(cells)
    before = model.get_params()
    with pytest.raises(OptionError, match=message):
        model.get_learning_rate_bounds("no such file", **given)
    assert model.get_params() == before


def test_before_the_test_there_are_no_bounds_to_trim_or_draw(cells):
    model = make(cells)
    for ask in (model.trim_learning_rate_bounds, model.plot_learning_rate_bounds):
        with pytest.raises(NotFitted, match=r"no learning rates were tested; call get_learning_rate_bounds\(data\)"):
            ask()


def test_wrong_data_are_refused_as_by_fit(cells):
    with pytest.raises(mira.data.anndata_io.DataError, match="at least 2 cells"):
        make(cells).get_learning_rate_bounds(cells[:1].copy())


def test_progress_is_shown_only_if_wanted(cells, capfd):
    make(cells).get_learning_rate_bounds(cells, **QUICK)
    assert capfd.readouterr() == ("", "")
    make(cells).get_learning_rate_bounds(cells, **{**QUICK, "progress": True})
    out, err = capfd.readouterr()
    assert out == ""
    assert "40/40" in err


# --- what it leaves alone -------------------------------------------------------------------------


def test_a_fitted_model_is_not_touched(cells):
    model = make(cells).fit(cells, progress=False)
    before, score, history = arrays(model), model.score(cells), list(model.history)
    theta = model.predict(cells).obsm["X_topic_compositions"]
    fitted_options = dict(model._fit.options)
    model.get_learning_rate_bounds(cells, **QUICK)
    assert same(before, arrays(model))
    assert model.score(cells) == score
    assert model.history == history
    assert model._fit.options == fitted_options  # of the fit there is, not of the next
    assert np.array_equal(model.predict(cells).obsm["X_topic_compositions"], theta)


@pytest.mark.parametrize("family", ["expression", "CODAL", "fast", "process"])
def test_models_trained_after_a_test_are_as_those_trained_without_one(cells, family):
    adata = with_columns(cells)
    rates = {"min_learning_rate": 0.002, "max_learning_rate": 0.08}
    alone = [make(adata, seed=s, **rates, **FAMILIES[family]).fit(adata, progress=False) for s in (0, 1)]
    tested = [make(adata, seed=s, **FAMILIES[family]) for s in (0, 1)]
    for model in tested:
        model.get_learning_rate_bounds(adata, **QUICK)
        model.set_learning_rates(*rates.values())
    for model, other in zip(tested, alone, strict=True):
        assert same(arrays(model.fit(adata, progress=False)), arrays(other))


def test_the_test_repeats_itself_and_leaves_the_global_generators_alone(cells):
    before = global_states()
    curves = []
    for _ in range(2):
        model = make(cells)
        model.get_learning_rate_bounds(cells, **QUICK)
        curves.append(model.learning_rate_curve)
    assert curves[0] == curves[1]
    assert global_states() == before


def test_training_uses_the_rates_that_were_found(cells):
    model = make(cells)
    low, high = model.get_learning_rate_bounds(cells, **QUICK)
    rates = [r.learning_rate for r in model.fit_records(cells)]
    assert rates[0] == pytest.approx(low)
    assert max(rates) == pytest.approx(high, rel=0.1)
    assert model.history[-1].loss < model.history[0].loss


# --- files and figures ----------------------------------------------------------------------------


def test_the_curve_is_saved_and_loaded_with_the_model(cells, tmp_path):
    model = make(cells)
    model.get_learning_rate_bounds(cells, upper_bound_lr=1e8, progress=False)
    model.fit(cells, progress=False).save(tmp_path / "m.safetensors")
    loaded = mira.topics.load_model(tmp_path / "m.safetensors")
    assert loaded.learning_rate_curve == model.learning_rate_curve
    assert bounds(loaded) == bounds(model)
    assert loaded.trim_learning_rate_bounds(0.1, 0.2) == model.trim_learning_rate_bounds(0.1, 0.2)


def test_a_model_without_a_curve_is_loaded_without_one(fitted, tmp_path):
    fitted.save(tmp_path / "m.safetensors")
    assert mira.topics.load_model(tmp_path / "m.safetensors").learning_rate_curve is None


def test_a_curve_survives_json():
    curve = read_curve(points(), 100, (0.1, 0.2))
    assert LearningRateCurve.from_dict(json.loads(json.dumps(curve.to_dict(), allow_nan=False))) == curve


def test_the_figure_shows_the_losses_the_spline_and_the_bounds():
    import matplotlib.pyplot as plt

    model = make(make_cells(20, 5))
    model.learning_rate_curve = curve = read_curve(points(noise=0.05), 100, TRIM)
    info = curve_info(curve)
    np.testing.assert_array_equal(info.rates, curve.rates)
    np.testing.assert_array_equal(info.losses, curve.losses)
    np.testing.assert_allclose(info.spline, curve.smoothed(info.spline_rates))
    assert info.bounds == curve.bounds
    ax = model.plot_learning_rate_bounds(figsize=(4, 3))
    assert isinstance(ax, mpl.axes.Axes)
    assert tuple(ax.figure.get_size_inches()) == (4, 3)
    (dots,) = ax.collections
    np.testing.assert_allclose(dots.get_offsets(), np.column_stack([curve.rates, curve.losses]))
    spline, *uprights = ax.lines
    np.testing.assert_allclose(spline.get_xydata(), np.column_stack([info.spline_rates, info.spline]))
    assert [line.get_xdata()[0] for line in uprights] == list(curve.bounds)
    assert [text.get_text() for text in ax.texts] == [f"{bound:.2g}" for bound in curve.bounds]
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "learning rate"
    assert "nats per cell and feature" in ax.get_ylabel()
    ax.figure.canvas.draw()
    plt.close(ax.figure)


def test_the_figure_goes_where_it_is_told_with_or_without_the_spline():
    import matplotlib.pyplot as plt

    model = make(make_cells(20, 5))
    model.learning_rate_curve = read_curve(points(last=1e9), 100, TRIM)
    figure, (left, right) = plt.subplots(1, 2)
    assert model.plot_learning_rate_bounds(ax=left, show_spline=False) is left
    assert len(left.lines) == 2
    assert not right.lines
    assert left.get_ylim()[1] < 10  # a loss that ran away does not flatten the rest
    figure.canvas.draw()
    plt.close(figure)
