"""Batches that mix and that do not, and two modalities of the same cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

import mira_core as mira
from mira_core.analysis import mixing
from mira_core.errors import DataError, OptionError
from tests.helpers import predicted


def cells_of(kinds: np.ndarray, batches: np.ndarray, shift: float, seed: int = 0) -> ad.AnnData:
    """Cells of some kinds, one topic each, whose batches lie apart along a topic of their own."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 0.3, (len(kinds), 5))
    z[np.arange(len(kinds)), kinds] += 3
    z[:, 4] += shift * batches
    adata = predicted(np.exp(z) / np.exp(z).sum(1, keepdims=True))
    adata.obs["type"] = [f"t{k}" for k in kinds]
    adata.obs["batch"] = [f"b{b}" for b in batches]
    return adata


def design(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, n), rng.integers(0, 2, n)


# --- mixing ---------------------------------------------------------------------------------------


def test_batches_that_are_mixed_and_batches_that_are_apart():
    kinds, batches = design()
    mixed, apart = (mira.analysis.batch_mixing(cells_of(kinds, batches, s), "batch", "type") for s in (0, 4))
    assert mixed.mixing == pytest.approx(0.975, abs=0.03)  # of 30 neighbours, whose shares scatter
    assert 0.4 < mixed.auc < 0.6
    assert apart.mixing < 0.05
    assert apart.auc > 0.98
    assert apart.accuracy > 0.95
    assert apart.by_label["mixing"].max() < 0.1
    assert mixed.by_label["mixing"].min() > 0.9
    assert mixed.before is None  # there are no counts
    assert mixed.warnings == []


def test_the_entropy_is_that_of_the_nearest_cells():
    rng = np.random.default_rng(0)
    x, code = rng.normal(size=(80, 3)), rng.integers(0, 3, 80)
    distance = cdist(x, x, "cityblock")
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1)[:, :10]
    expected = []
    for row in near:
        p = np.bincount(code[row], minlength=3) / 10
        expected.append(-(p[p > 0] * np.log(p[p > 0])).sum())
    np.testing.assert_allclose(mixing.near_entropy(x, np.eye(3)[code], 10), expected, atol=1e-12)


def test_batches_of_different_composition_are_measured_within_labels():
    """A type that is mostly in one batch does not mix evenly, and need not."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 900)
    batches = (rng.random(900) < np.array([0.15, 0.5, 0.85])[kinds]).astype(int)
    adata = cells_of(kinds, batches, 0)
    with_labels = mira.analysis.batch_mixing(adata, "batch", "type")
    without = mira.analysis.batch_mixing(adata, "batch")
    assert with_labels.mixing == pytest.approx(0.97, abs=0.03)
    assert without.mixing < 0.85
    assert "no labels were given" in without.warnings[0]
    assert with_labels.auc == pytest.approx(with_labels.auc_of_labels, abs=0.04)
    assert np.isnan(without.auc_of_labels)


def test_a_type_in_one_batch_only_cannot_be_judged_and_this_is_said():
    kinds, batches = design()
    batches[kinds == 2] = 1
    told = mira.analysis.batch_mixing(cells_of(kinds, batches, 0), "batch", "type")
    assert told.by_label["can_be_judged"].to_dict() == {"t0": True, "t1": True, "t2": False}
    assert told.by_label.loc["t2", "batches"] == 1
    assert np.isnan(told.by_label.loc["t2", "mixing"])
    assert told.warnings[0].startswith("t2: in one batch only")
    assert told.mixing > 0.9


def test_before_is_measured_on_counts_where_there_are_some():
    kinds, batches = design(400)
    adata = cells_of(kinds, batches, 0)
    rng = np.random.default_rng(1)
    rate = rng.gamma(1, 2, (3, 60))[kinds] * np.exp(rng.normal(0, 0.8, (2, 60)))[batches]
    counts = ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=adata.obs)
    counts.obsm.update(adata.obsm)
    told = mira.analysis.batch_mixing(counts, "batch", "type")
    assert told.representation == "PCA"
    assert told.before["mixing"] < 0.4 < 0.9 < told.mixing
    assert told.before["auc"] > 0.95
    assert told.to_frame().index.tolist() == ["PCA", "topics"]
    assert mira.analysis.batch_mixing(counts, "batch", "type", before=False).before is None

    counts.var_names = [f"chr1:{100 * j}-{100 * j + 50}" for j in range(60)]
    counts.layers["counts"] = counts.X.copy()
    counts.X = np.log1p(counts.X)
    assert mira.analysis.batch_mixing(counts, "batch", "type").before is None  # X holds no counts
    told = mira.analysis.batch_mixing(counts, "batch", "type", counts_layer="counts")
    assert told.representation == "LSI"
    assert told.before["mixing"] < 0.9
    with pytest.raises(DataError, match="fractions"):
        mira.analysis.batch_mixing(counts, "batch", before=True)


def test_what_cannot_be_measured_is_told():
    kinds, batches = design(50)
    adata = cells_of(kinds, batches, 0)
    adata.obs["one"] = "a"
    with pytest.raises(DataError, match="has 1 where"):
        mira.analysis.batch_mixing(adata, "one")
    with pytest.raises(OptionError, match="n_neighbors must be from 1 to 49"):
        mira.analysis.batch_mixing(adata, "batch", n_neighbors=50)
    with pytest.raises(DataError, match="no column 'bath'; did you mean 'batch'"):
        mira.analysis.batch_mixing(adata, "bath")
    adata.obs["type"] = adata.obs["type"].where(np.arange(50) > 4, None)
    assert "5 of 50 cells have no batch or label" in mira.analysis.batch_mixing(adata, "batch", "type").warnings[-1]


# --- two modalities -------------------------------------------------------------------------------


def two_modalities(n: int = 500, seed: int = 0) -> tuple[ad.AnnData, ad.AnnData]:
    """Two noisy views of the same compositions, the second with its topics turned and cells in another order."""
    rng = np.random.default_rng(seed)
    truth = np.log(rng.dirichlet(np.full(4, 0.6), n) + 1e-3)

    def view(noise: float) -> np.ndarray:
        z = truth + rng.normal(0, noise, truth.shape)
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    order = rng.permutation(n)
    rna, atac = predicted(view(0.5)), predicted(view(0.9)[:, [2, 0, 3, 1]])[order].copy()
    return rna, atac


@pytest.mark.parametrize("method", ["log-ratio", "shares"])
def test_topics_of_the_same_cells_are_found_in_both_modalities(method):
    rna, atac = two_modalities()
    told = mira.analysis.correlate_topics(rna, atac, method=method)
    assert told.shape == (4, 4)
    assert told.to_numpy().argmax(1).tolist() == [1, 3, 0, 2]
    same = atac[rna.obs_names].obsm["X_topic_compositions"]
    theta = rna.obsm["X_topic_compositions"]
    if method == "log-ratio":
        theta, same = (np.log(np.maximum(x, 1e-3)) for x in (theta, same))
        theta, same = (x - x.mean(1, keepdims=True) for x in (theta, same))
    np.testing.assert_allclose(told, np.corrcoef(theta.T, same.T)[:4, 4:], atol=1e-5)


def test_joint_coordinates_weigh_both_modalities_alike_whatever_their_scale():
    rna, atac = two_modalities()
    atac.obsm["X_umap_features"] = 50 * atac.obsm["X_umap_features"] + 3
    one, two = mira.analysis.make_joint_representation(rna, atac)
    assert one.obs_names.equals(two.obs_names)
    joint = one.obsm["X_joint_umap_features"]
    np.testing.assert_array_equal(joint, two.obsm["X_joint_umap_features"])
    assert joint.shape == (500, 6)
    np.testing.assert_allclose((joint[:, :3] ** 2).sum(1).mean(), 0.5, rtol=1e-4)
    np.testing.assert_allclose((joint[:, 3:] ** 2).sum(1).mean(), 0.5, rtol=1e-4)
    alone, _ = mira.analysis.make_joint_representation(one, two, weight=0.9)
    assert alone is one  # the same cells in the same order are written to, not copied
    np.testing.assert_allclose((one.obsm["X_joint_umap_features"][:, :3] ** 2).sum(1).mean(), 0.9, rtol=1e-4)


def test_neighbours_in_the_joint_space_are_truer_than_in_either():
    rng = np.random.default_rng(0)
    n = 600
    truth = rng.normal(size=(n, 4))
    views = [truth + rng.normal(0, 0.7, truth.shape) for _ in range(2)]
    rna, atac = (predicted(np.exp(v) / np.exp(v).sum(1, keepdims=True)) for v in views)
    mira.analysis.make_joint_representation(rna, atac)
    centred = truth - truth.mean(1, keepdims=True)

    def error(x: np.ndarray) -> float:
        distance = cdist(x, x, "cityblock")
        np.fill_diagonal(distance, np.inf)
        near = np.argsort(distance, axis=1)[:, :10]
        return float(np.linalg.norm(centred[near] - centred[:, None], axis=2).mean())

    joint = error(rna.obsm["X_joint_umap_features"])
    assert joint < 0.93 * min(error(rna.obsm["X_umap_features"]), error(atac.obsm["X_umap_features"]))


def test_cells_that_are_in_one_modality_only_are_left_out_or_refused():
    rna, atac = two_modalities()
    with pytest.warns(UserWarning, match="400 of 450 and 450 cells are in both"):
        one, two = mira.analysis.make_joint_representation(rna[:450].copy(), atac[atac.obs_names.isin(
            [f"cell{i}" for i in range(50, 500)])].copy())  # fmt: skip
    assert one.n_obs == two.n_obs == 400
    assert one.obs_names.equals(two.obs_names)
    other = atac.copy()
    other.obs_names = other.obs_names + "-1"
    with pytest.raises(DataError, match=r"0 are shared. They are named like 'cell0' and 'cell\d+-1'"):
        mira.analysis.correlate_topics(rna, other)
    other.obs_names = ["a"] * other.n_obs
    with pytest.raises(DataError, match="in the second data 'a' repeats"):
        mira.analysis.make_joint_representation(rna, other)
    with pytest.raises(DataError, match="call model.predict"):
        mira.analysis.make_joint_representation(rna, ad.AnnData(obs=pd.DataFrame(index=["a"])))
    with pytest.raises(OptionError, match="weight must be between"):
        mira.analysis.make_joint_representation(rna, atac, weight=1)
    with pytest.raises(OptionError, match="method must be"):
        mira.analysis.correlate_topics(rna, atac, method="rank")
