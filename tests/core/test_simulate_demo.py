"""Simulated counts have the structure that is promised; demonstration data open."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from mira_core.data import demo, load_demo, simulate_expression
from mira_core.errors import DataError
from tests.helpers import read_cells


def test_the_same_seed_gives_the_same_counts_and_another_others():
    a, b, c = (simulate_expression(50, 30, 3, seed=s) for s in (1, 1, 2))
    assert (a.X != b.X).nnz == 0
    assert np.array_equal(a.obsm["true_topics"], b.obsm["true_topics"])
    assert (a.X != c.X).nnz > 0


def test_simulating_leaves_the_global_generator_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    simulate_expression(20, 10, 3)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_topics_and_compositions_are_distributions():
    a = simulate_expression(200, 80, 5, n_types=6)
    assert a.obsm["true_topics"].shape == (200, 5)
    assert a.varm["true_topics"].shape == (80, 5)
    np.testing.assert_allclose(a.obsm["true_topics"].sum(1), 1)
    np.testing.assert_allclose(a.varm["true_topics"].sum(0), 1)
    assert (a.varm["true_topics"] > 0).all()
    assert a.X.dtype == np.int32
    assert sp.isspmatrix_csr(a.X)
    assert a.obs["cell_type"].nunique() == 6


def test_counts_have_the_mean_and_variance_of_their_negative_binomial():
    """One topic: the mean of a gene is depth times its share; the variance is mean + mean^2 / dispersion."""
    a = simulate_expression(4000, 40, 1, n_types=1, depth=2000, dispersion=4.0, seed=1)
    share = a.varm["true_topics"][:, 0]
    x = a.X.toarray()
    mean = 2000 * np.exp(0.3**2 / 2) * share
    np.testing.assert_allclose(x.mean(0), mean, rtol=0.1)
    depth_square = 2000**2 * np.exp(2 * 0.3**2)
    variance = mean + depth_square * share**2 * (1 + 1 / 4.0) - mean**2
    common = mean > 20
    np.testing.assert_allclose(x.var(0)[common], variance[common], rtol=0.25)


def test_batches_shift_a_third_of_the_genes_of_all_but_the_first():
    """Against the same seed without strength, so that everything else is drawn alike."""
    a = simulate_expression(3000, 300, 4, n_batches=2, batch_strength=1.0, depth=20_000, dispersion=100, seed=5)
    rho = a.obsm["true_topics"] @ a.varm["true_topics"].T
    x = a.X.toarray()
    ratio = [np.log(x[b].sum(0) / (rho[b] * x[b].sum(1, keepdims=True)).sum(0)) for b in
             (a.obs["batch"] == "batch 1", a.obs["batch"] == "batch 2")]  # fmt: skip
    assert np.abs(ratio[0]).mean() < 0.05
    moved = np.abs(ratio[1] - np.median(ratio[1])) > 0.1
    assert 0.2 < moved.mean() < 0.45


def test_every_topic_leads_some_type():
    a = simulate_expression(1000, 50, 6, n_types=8, seed=2)
    mean = np.array([a.obsm["true_topics"][a.obs["cell_type"] == t].mean(0) for t in a.obs["cell_type"].cat.categories])
    assert set(mean.argmax(1)) == set(range(6))


@pytest.mark.parametrize("name", demo.DEMOS)
def test_a_demo_opens_and_can_be_trained_on(name):
    a = load_demo(name)
    cells = read_cells(a, highly_variable_key="highly_variable")
    assert len(cells) >= 700
    assert a.obs["cell_type"].nunique() > 3
    assert a.uns["source"]


def test_the_bundled_cells_are_seven_hundred_with_whole_counts():
    a = load_demo()
    assert a.shape == (700, 765)
    assert a.X.dtype.kind == "i"
    assert a.X.data.min() == 1
    assert a.obs_names.is_unique
    assert a.var_names.is_unique
    assert 100 < a.var["highly_variable"].sum() < 765


def test_an_unknown_demo_is_refused_with_the_list():
    with pytest.raises(DataError, match="no demo 'nothing'; choose one of pbmc700, simulated"):
        load_demo("nothing")
