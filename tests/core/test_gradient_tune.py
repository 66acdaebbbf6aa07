"""The number of topics by gradients."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

import mira_core as mira
from mira_core.errors import OptionError, TrainingError, TuningError
from mira_core.training import loop
from mira_core.tuning import gradient
from mira_core.tuning.gradient import most_topics
from tests.helpers import make, make_cells, with_columns

mpl.use("Agg")


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(gradient, "LEAST_STEPS", 100)


def test_it_returns_a_number_and_every_topics_greatest_contribution(few_steps):
    adata = mira.data.simulate_expression(300, 80, 4, seed=0)
    model = make(adata, hidden=32, num_epochs=40)
    n, contributions = mira.topics.gradient_tune(model, adata, max_topics=12)
    assert isinstance(n, int)
    assert contributions.shape == (12,)
    assert (np.diff(contributions) <= 0).all()
    assert (contributions >= 0).all()
    assert (contributions <= 1).all()
    assert n == (contributions > 0.05).sum()
    assert 1 <= n <= 12
    again = mira.topics.gradient_tune(model, adata, max_topics=12)
    assert again[0] == n
    assert (again[1] == contributions).all()
    assert model.network is None
    assert model.topic_prior == "dirichlet"


@pytest.mark.slow
@pytest.mark.parametrize("truth", [5, 10, 20])
def test_it_finds_the_number_of_topics_that_made_the_counts(truth):
    adata = mira.data.simulate_expression(2000, 1000, truth, depth=2000, seed=10)
    model = mira.topics.make_model(*adata.shape, feature_type="expression", seed=0)
    n, _ = mira.topics.gradient_tune(model, adata)
    assert n == pytest.approx(truth, rel=0.2)


def test_topics_that_rise_and_fall_together_are_one():
    rng = np.random.default_rng(0)
    theta = rng.dirichlet(np.full(4, 0.5), 300)
    split = np.column_stack([theta[:, 0] * 0.4, theta[:, 1:], theta[:, 0] * 0.6, np.full(300, 0.001)])
    out = gradient.merged(split)
    np.testing.assert_allclose(out[:, :4], theta)
    np.testing.assert_allclose(out[:, 4:], split[:, 4:] * [0, 1])
    np.testing.assert_array_equal(gradient.merged(theta), theta)
    np.testing.assert_array_equal(gradient.merged(np.ones((3, 2)) / 2), np.ones((3, 2)) / 2)


def test_few_cells_take_a_stronger_prior_and_dependence_its_own_weight():
    model = make(with_columns(make_cells(80, 30)), categorical_covariates="batch")
    few = gradient._strictness(model, 500)
    assert few["cost_beta"] == 16
    assert few["num_epochs"] == 200  # of 15 steps
    assert few["cost_beta"] * few["dependence_beta"] == pytest.approx(model.cost_beta * model.dependence_beta)
    assert gradient._strictness(model, 10_000)["cost_beta"] == 4


@pytest.mark.parametrize(("n_cells", "topics"), [(100, 50), (20_000, 61), (1_000_000, 206)])
def test_the_most_topics_by_the_documented_rule(n_cells, topics):
    assert most_topics(n_cells) == topics == max(50, int((n_cells**0.3 - 1) / 0.3))


@pytest.mark.parametrize(
    "options",
    [
        {"categorical_covariates": "batch"},
        {"feature_type": "accessibility", "atac_encoder": "fast"},
        {"initial_pseudocounts": 10, "max_learning_rate": 0.5, "min_learning_rate": 0.2},
    ],
)
def test_models_of_every_kind_can_be_tuned(options, few_steps):
    adata = with_columns(make_cells(80, 30))
    n, contributions = mira.topics.gradient_tune(make(adata, **options), adata, max_topics=6)
    assert 1 <= n <= 6 == len(contributions)


def diverging(times: int, seen: list):
    honest = loop.train

    def train(network, cells, options, seed):
        seen.append({**options, "seed": seed})
        if len(seen) <= times:
            raise TrainingError("the loss is no longer finite")
        yield from honest(network, cells, options, seed)

    return train


def test_a_training_that_diverges_is_begun_anew_with_more_care(monkeypatch, few_steps):
    adata, seen = make_cells(60, 20), []
    monkeypatch.setattr(loop, "train", diverging(2, seen))
    mira.topics.gradient_tune(make(adata, encoder_dropout=0.01, decoder_dropout=0.3), adata, max_topics=5)
    assert [o["seed"] for o in seen] == [0, 1, 2]
    assert [o["encoder_dropout"] for o in seen] == [0.01, 0.05, 0.05]
    assert [o["decoder_dropout"] for o in seen] == [0.3, 0.3, 0.3]
    assert all(o["max_learning_rate"] == 0.1 for o in seen)
    assert all(o["topic_prior"] == "dirichlet_process" for o in seen)


def test_if_all_attempts_diverge_the_error_says_what_to_try(monkeypatch):
    adata, seen = make_cells(60, 20), []
    monkeypatch.setattr(loop, "train", diverging(9, seen))
    with pytest.raises(TuningError, match="each of 2 attempts. Try a lower max_learning_rate.*max_topics lower than 5"):
        mira.topics.gradient_tune(make(adata), adata, max_attempts=2, max_topics=5)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("options", "said"), [({"max_attempts": 0}, "max_attempts"), ({"max_topics": 1}, "num_topics")]
)
def test_wrong_arguments(options, said):
    adata = make_cells(60, 20)
    with pytest.raises(OptionError, match=said):
        mira.topics.gradient_tune(make(adata), adata, **options)


def test_the_figure_shows_the_topics_and_the_number():
    ax = mira.topics.plot_topic_contributions(np.array([0.9, 0.5, 0.04]), 2)
    assert [round(p.get_height(), 2) for p in ax.patches] == [0.9, 0.5, 0.04]
    assert ax.texts[0].get_text() == "2 topics"
    mpl.pyplot.close("all")
