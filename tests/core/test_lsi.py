"""The LSI of peaks, against scipy's singular value decomposition."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.linalg import subspace_angles

from mira_core.data import counts
from mira_core.data.counts import CountMatrix
from mira_core.data.lsi import learn_lsi, weigh
from mira_core.data.statistics import learn
from tests.helpers import make, read_cells


def peaks(n: int, g: int, n_types: int = 6, seed: int = 0) -> np.ndarray:
    """Open peaks of cells of some types; every cell has some, every peak is open somewhere."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(0.4, 2, (n_types, g))
    x = (rng.random((n, g)) < chance[np.arange(n) % n_types]).astype(np.float32)
    x[np.arange(n), np.arange(n) % g] = 1
    x[np.arange(g) % n, np.arange(g)] = 1
    return x


def lsi(x: np.ndarray, n_components: int, seed: int = 0, endogenous: np.ndarray | None = None):
    seen = np.ones(x.shape[1], bool) if endogenous is None else endogenous
    return learn_lsi(CountMatrix.from_scipy(sp.csr_array(x)), seen, n_components, seed)


def tf_idf(x: np.ndarray) -> np.ndarray:
    """Term frequency times inverse document frequency, rows of length one, in plain numpy."""
    x = x.astype(float)
    tf = x / np.maximum(x.sum(1, keepdims=True), 1)
    w = tf * np.log(1 + len(x) / np.maximum(x.sum(0), 1))
    return w / np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-300)


def coordinates(x: np.ndarray, learned) -> np.ndarray:
    return weigh(sp.csr_array(x), learned.idf) @ learned.components / learned.deviations


def test_weights_are_tf_idf_of_length_one():
    x = peaks(40, 25)
    x[7] = 0
    learned = lsi(x, 3)
    got = weigh(sp.csr_array(x), learned.idf).toarray()
    np.testing.assert_allclose(got, tf_idf(x), rtol=1e-12, atol=1e-15)
    assert not got[7].any()


def leading(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest singular values and their right vectors, as columns."""
    _, values, vectors = sp.linalg.svds(sp.csr_array(tf_idf(x)), k=k)
    order = np.argsort(-values)
    return values[order], vectors[order].T


@pytest.mark.parametrize(("n", "g"), [(300, 80), (80, 300), (400, 200)])
@pytest.mark.parametrize("k", [1, 6])
def test_components_span_the_leading_singular_vectors(n, g, k):
    """As nearly as noise of two thirds of the last one's size allows in so few passes."""
    x = peaks(n, g)
    learned = lsi(x, k)
    values, vectors = leading(x, k)
    assert learned.components.shape == (g, k)
    assert subspace_angles(learned.components, vectors).max() < 0.05
    np.testing.assert_allclose(learned.deviations, values / np.sqrt(n), rtol=1e-3)


def test_components_without_noise_beside_them_are_the_singular_vectors_themselves():
    x = np.repeat(peaks(7, 60, n_types=7), [40, 30, 20, 12, 7, 4, 2], axis=0)
    learned = lsi(x, 7)
    values, vectors = leading(x, 7)
    np.testing.assert_allclose(learned.deviations, values / np.sqrt(len(x)), rtol=1e-9)
    np.testing.assert_allclose(abs((learned.components * vectors).sum(0)), 1, rtol=1e-9)


def test_components_are_orthonormal_and_the_largest_comes_first():
    learned = lsi(peaks(200, 90), 20)
    np.testing.assert_allclose(learned.components.T @ learned.components, np.eye(20), atol=1e-10)
    assert (np.diff(learned.deviations) <= 0).all()


def test_coordinates_of_the_training_cells_have_unit_mean_square():
    x = peaks(150, 70)
    np.testing.assert_allclose((coordinates(x, lsi(x, 12)) ** 2).mean(0), 1, rtol=1e-9)


def test_the_seed_fixes_the_result_and_hardly_moves_it():
    x = peaks(400, 200)
    one, same, other = lsi(x, 6, 1), lsi(x, 6, 1), lsi(x, 6, 2)
    assert np.array_equal(one.components, same.components)
    assert np.array_equal(one.deviations, same.deviations)
    np.testing.assert_allclose(other.components, one.components, atol=0.01)  # signs included
    assert (one.components[np.abs(one.components).argmax(0), range(6)] > 0).all()


@pytest.mark.parametrize(("n", "g"), [(7, 40), (40, 7), (5, 5), (2, 3)])
def test_there_are_no_more_components_than_cells_or_peaks(n, g):
    x = peaks(n, g, n_types=min(n, 6))
    learned = lsi(x, 128)
    assert 0 < learned.components.shape[1] <= min(n, g)
    _, values, _ = np.linalg.svd(tf_idf(x), full_matrices=False)
    np.testing.assert_allclose(learned.deviations, values[: len(learned.deviations)] / np.sqrt(n), rtol=1e-6)
    np.testing.assert_allclose((coordinates(x, learned) ** 2).mean(0), 1, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_going_through_the_cells_in_chunks_changes_nothing(monkeypatch, size):
    x = peaks(200, 90)
    whole = lsi(x, 6)
    monkeypatch.setattr(counts, "CHUNK", size)
    parts = lsi(x, 6)
    assert np.array_equal(parts.idf, whole.idf)
    np.testing.assert_allclose(parts.components, whole.components, atol=1e-8)
    np.testing.assert_allclose(parts.deviations, whole.deviations, rtol=1e-10)


def test_only_peaks_that_the_encoder_sees_count():
    x, seen = peaks(100, 60), np.arange(60) % 3 > 0
    learned, wanted = lsi(x, 5, endogenous=seen), lsi(x[:, seen], 5)
    assert np.array_equal(learned.components, wanted.components)
    assert np.array_equal(learned.idf, wanted.idf)


def test_peaks_that_are_never_open_in_training_leave_coordinates_finite_and_moderate():
    x = peaks(60, 30)
    x[:, 20:] = 0
    x[:, 0] = 1
    learned = lsi(x, 128)
    assert learned.components.shape[1] <= 20
    assert np.abs(learned.components[20:]).max() < 1e-10
    np.testing.assert_allclose(learned.idf[20:], np.log1p(60))
    new = x[:3].copy()
    new[:, 20:] = 1
    assert np.abs(coordinates(new, learned)).max() < 100


def test_cells_that_are_alike_leave_coordinates_finite_and_moderate():
    """Fewer different cells than components: some directions have no extent."""
    x = np.repeat(peaks(8, 50), 10, axis=0)
    learned = lsi(x, 40)
    assert learned.components.shape[1] <= 8
    assert np.abs(coordinates(peaks(8, 50, seed=1), learned)).max() < 100


def test_statistics_hold_an_lsi_of_the_encoders_peaks_where_one_is_asked_for():
    adata = ad.AnnData(sp.csr_matrix(peaks(60, 30) * 2))
    adata.var["seen"] = np.arange(30) < 25
    options = {"feature_type": "accessibility", "atac_encoder": "fast", "endogenous_key": "seen"}
    cells = read_cells(adata, **options)
    assert learn(cells).lsi is None
    learned = learn(cells, 7, seed=3).lsi
    wanted = lsi((adata.X.toarray()[:, :25] > 0).astype(float), 7, seed=3)
    np.testing.assert_allclose(learned.components, wanted.components)


def test_a_model_predicts_cells_with_peaks_that_were_never_open_in_training():
    x = peaks(70, 40)
    x[:, 30:] = 0
    x[:, 0] = 1
    adata = ad.AnnData(sp.csr_matrix(x))
    model = make(adata, feature_type="accessibility", atac_encoder="fast").fit(adata, progress=False)
    new = ad.AnnData(np.c_[x[:5, :30], np.ones((5, 10), np.float32)])
    theta = model.predict(new).obsm["X_topic_compositions"]
    known = model.predict(ad.AnnData(sp.csr_matrix(x[:5]))).obsm["X_topic_compositions"]
    assert np.isfinite(theta).all()
    assert np.abs(theta - known).max() < 0.6  # ten of some twenty open peaks are new; the others still speak
    assert np.isfinite(model.score(new))
