"""The topic model as a user holds it."""

from __future__ import annotations

import copy
import math
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.cluster.hierarchy
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import pdist, squareform

import mira_core as mira
from mira_core.data.loaders import in_order
from mira_core.errors import DataError, NotFitted, OptionError
from mira_core.estimators import interpretation
from mira_core.training import evaluation
from tests.helpers import FAMILIES, arrays, make, make_cells, read_cells, same, with_columns


def compositions(model, adata) -> np.ndarray:
    return model.predict(adata.copy()).obsm["X_topic_compositions"]


# --- options on the model -------------------------------------------------------------------------


def test_options_are_read_as_attributes_and_set_by_set_params(cells):
    model = make(cells, num_topics=7)
    assert model.num_topics == 7
    assert model.get_params()["num_topics"] == model.get_params(deep=True)["num_topics"] == 7
    assert model.set_params(hidden=9, num_topics=3) is model
    assert (model.hidden, model.num_topics, model.batch_size) == (9, 3, 32)
    assert model.given["hidden"] == 9


def test_assigning_an_option_says_how_to_set_it(cells):
    model = make(cells)
    with pytest.raises(AttributeError, match=r"set options by set_params\(num_topics=...\)"):
        model.num_topics = 3
    assert model.num_topics == 4


def test_an_unknown_attribute_is_named(cells):
    with pytest.raises(AttributeError, match="TopicModel has no attribute 'nonsense'"):
        make(cells).nonsense  # noqa: B018
    assert not hasattr(make(cells), "atac_encoder")


def test_wrong_options_leave_the_model_as_it_was(cells):
    model = make(cells)
    before = model.get_params()
    for wrong in ({"num_topics": 0}, {"num_topic": 3}, {"hidden": 8, "max_learning_rate": -1}):
        with pytest.raises(OptionError):
            model.set_params(**wrong)
        assert model.get_params() == before


def test_params_of_one_model_make_its_like(cells):
    model = make(cells)
    other = mira.topics.make_model(*cells.shape, **model.get_params())
    assert same(arrays(model.fit(cells, progress=False)), arrays(other.fit(cells, progress=False)))


def test_feature_type_must_be_given():
    with pytest.raises(TypeError, match="feature_type"):
        mira.topics.make_model(10, 10)


def test_repr_tells_kind_topics_and_state(cells, fitted):
    assert repr(make(cells)) == "<ExpressionTopicModel: 4 topics, not fitted>"
    assert repr(fitted) == "<ExpressionTopicModel: 4 topics, 8 epochs trained>"


def test_a_model_can_be_copied(fitted, cells):
    other = copy.deepcopy(fitted)
    assert np.array_equal(compositions(other, cells), compositions(fitted, cells))
    assert other.get_params() == fitted.get_params()


@pytest.mark.parametrize(
    "call",
    [
        lambda m, a: m.predict(a), lambda m, a: m.score(a), lambda m, a: m.impute(a), lambda m, a: m.rank_genes(0),
        lambda m, a: m.rank_modules("gene1"), lambda m, a: m.get_top_genes(0),
        lambda m, a: m.topic_feature_compositions(),
        lambda m, a: m.topic_feature_activations(), lambda m, a: m.device, lambda m, a: m.cluster_topics(),
        lambda m, a: m.get_umap_features(a), lambda m, a: m.get_hierarchical_umap_features(a),
        lambda m, a: m.get_batch_effect(a), lambda m, a: m.rank_peaks(0), lambda m, a: m.save("x"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_fitted_says_so(cells, call):
    with pytest.raises(NotFitted, match=r"not fitted; call fit\(data\) first, or load one by load_model"):
        call(make(cells), cells)


# --- predict --------------------------------------------------------------------------------------


def test_predict_writes_what_it_documents(fitted, cells):
    out = fitted.predict(cells)
    assert out is cells
    theta = cells.obsm["X_topic_compositions"]
    assert theta.shape == (300, 4)
    assert theta.dtype == np.float32
    np.testing.assert_allclose(theta.sum(1), 1, rtol=1e-5)
    assert (theta > 0).all()
    assert cells.obsm["X_umap_features"].shape == (300, 3)
    assert np.array_equal(cells.obs[[f"topic_{k}" for k in range(4)]].to_numpy(), theta)
    topics, activations = cells.varm["topic_feature_compositions"], cells.varm["topic_feature_activations"]
    assert topics.shape == activations.shape == (120, 4)
    np.testing.assert_allclose(topics.sum(0), 1, rtol=1e-5)
    assert np.array_equal(topics, fitted.topic_feature_compositions().T)
    assert np.array_equal(activations, fitted.topic_feature_activations().T)
    linkage = cells.uns["topic_dendogram"]
    assert linkage.shape == (3, 4)
    assert scipy.cluster.hierarchy.is_valid_linkage(linkage)
    assert not [c for c in cells.obs if c.startswith("topic_") and c not in {f"topic_{k}" for k in range(4)}]


def test_predict_leaves_counts_and_other_columns_alone(fitted, cells):
    before = cells.copy()
    fitted.predict(cells)
    assert (before.X != cells.X).nnz == 0
    pd.testing.assert_frame_equal(before.obs, cells.obs[before.obs.columns])
    pd.testing.assert_frame_equal(before.var, cells.var)


def test_results_survive_a_file(fitted, cells, tmp_path):
    fitted.predict(cells).write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    assert np.array_equal(back.obsm["X_topic_compositions"], cells.obsm["X_topic_compositions"])
    assert np.array_equal(back.uns["topic_dendogram"], cells.uns["topic_dendogram"])


def test_fit_predict_and_score_take_paths(fitted, cells, tmp_path):
    cells.write_h5ad(tmp_path / "a.h5ad")
    path = tmp_path / "a.h5ad"
    assert np.array_equal(fitted.predict(path).obsm["X_topic_compositions"], compositions(fitted, cells))
    assert fitted.score(str(path)) == fitted.score(cells)
    assert same(arrays(make(cells).fit(path, progress=False)), arrays(make(cells).fit(cells, progress=False)))


def test_predicting_again_gives_the_same(fitted, cells):
    first = compositions(fitted, cells)
    assert np.array_equal(first, compositions(fitted, cells))
    fitted.predict(cells)
    assert np.array_equal(first, compositions(fitted, cells))


def test_the_composition_is_the_posterior_mean(fitted, cells):
    """Against the mean of softmax over 20,000 independent draws for some cells."""
    network = fitted.network
    (batch,) = in_order(read_cells(cells[:6].copy()))
    q = network.encoder(batch)
    loc, scale = q.theta_loc_BK.detach().numpy(), q.theta_scale_BK.detach().numpy()
    z = loc[:, None] + scale[:, None] * np.random.default_rng(0).normal(size=(6, 20_000, 4))
    e = np.exp(z - z.max(2, keepdims=True))
    np.testing.assert_allclose(compositions(fitted, cells)[:6], (e / e.sum(2, keepdims=True)).mean(1), atol=0.01)


STORED = {
    "dense": lambda x: x.toarray(), "csc": sp.csc_matrix, "csr array": sp.csr_array, "csc array": sp.csc_array,
    "int64": lambda x: x.astype(np.int64), "float32": lambda x: x.astype(np.float32),
    "float64 dense": lambda x: x.toarray().astype(float), "uint16": lambda x: x.astype(np.uint16),
}  # fmt: skip


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_fit_and_predict_do_not_depend_on_how_counts_are_stored(fitted, cells, stored):
    other = ad.AnnData(stored(cells.X), obs=cells.obs, var=cells.var)
    assert np.array_equal(compositions(fitted, other), compositions(fitted, cells))
    assert fitted.score(other) == fitted.score(cells)
    one, two = (make(cells, num_epochs=1).fit(a, progress=False) for a in (cells, other))
    assert same(arrays(one), arrays(two))


def test_a_layer_gives_what_x_gives(cells):
    other = cells.copy()
    other.layers["counts"] = other.X
    other.X = np.full(other.shape, np.nan)
    one = make(cells).fit(cells, progress=False)
    two = make(cells, counts_layer="counts").fit(other, progress=False)
    assert same(arrays(one), arrays(two))
    assert np.array_equal(compositions(one, cells), compositions(two, other))


def test_features_are_found_by_name_in_any_order_among_others(fitted, cells):
    rng = np.random.default_rng(0)
    extra = ad.AnnData(sp.csr_matrix(rng.poisson(50, (300, 9))), obs=cells.obs)
    extra.var_names = [f"other{i}" for i in range(9)]
    wide = ad.concat([cells, extra], axis=1)[:, rng.permutation(129)].copy()
    assert np.array_equal(compositions(fitted, wide), compositions(fitted, cells))
    assert fitted.score(wide) == fitted.score(cells)
    fitted.predict(wide)
    unknown = wide.var_names.str.startswith("other")
    assert np.isnan(wide.varm["topic_feature_activations"][unknown]).all()
    at = wide.var_names.get_indexer(cells.var_names)
    assert np.array_equal(wide.varm["topic_feature_activations"][at], fitted.topic_feature_activations().T)
    imputed = fitted.impute(wide)
    assert np.isnan(imputed[:, unknown]).all()
    fitted.predict(cells)
    assert np.array_equal(imputed[:, at], fitted.impute(cells))


def test_the_column_of_the_features_is_not_needed_to_predict(cells):
    cells.var["chosen"] = np.arange(120) % 2 == 0
    model = make(cells, highly_variable_key="chosen").fit(cells, progress=False)
    wanted = compositions(model, cells)
    del cells.var["chosen"]
    assert np.array_equal(compositions(model, cells), wanted)


def test_a_view_can_be_predicted(fitted, cells):
    wanted = compositions(fitted, cells[50:90].copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ad.ImplicitModificationWarning)
        got = fitted.predict(cells[50:90]).obsm["X_topic_compositions"]
    assert np.array_equal(got, wanted)
    assert "X_topic_compositions" not in cells.obsm


def test_a_cells_topics_do_not_depend_on_the_other_cells(fitted, cells):
    whole = compositions(fitted, cells)
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_allclose(compositions(fitted, cells[order].copy()), whole[order], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(compositions(fitted, cells[7:8].copy()), whole[7:8], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 299, 300, 1000])
def test_topics_and_score_do_not_depend_on_the_inference_batch(fitted, cells, size):
    """299 leaves a last batch of one cell."""
    read = read_cells(cells)
    np.testing.assert_allclose(
        interpretation.compositions(fitted.network, read, size),
        compositions(fitted, cells),
        rtol=1e-4,
        atol=1e-6,
    )
    told = evaluation.mean_loss(fitted.network, read, n_draws=4, batch_size=size)
    wanted = evaluation.mean_loss(fitted.network, read, n_draws=4)
    assert told == pytest.approx(wanted, rel=1e-5)
    assert told["loss"] == pytest.approx(told["distortion"] + told["rate"], rel=1e-5)


def test_a_last_inference_batch_of_one_cell_predicts(fitted):
    many = mira.data.simulate_expression(513, 120, 4, seed=1)
    assert np.isfinite(compositions(fitted, many)).all()


def test_missing_features_are_counted_and_named(fitted, cells):
    for call in (fitted.predict, fitted.score):
        with pytest.raises(
            DataError,
            match="lacks 7 of the model's 120 features: gene1, gene2, gene3, gene4, gene5 and 2 more",
        ) as told:
            call(cells[:, 7:].copy())
        assert "Use data with all features that the model was fitted to" in str(told.value)


def test_repeated_names_matter_only_among_the_models_features(fitted, cells):
    extra = ad.AnnData(sp.csr_matrix(np.ones((300, 2))), obs=cells.obs)
    extra.var_names = ["twice", "twice"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        wide = ad.concat([cells, extra], axis=1)
        assert np.array_equal(compositions(fitted, wide), compositions(fitted, cells))
        fitted.impute(fitted.predict(wide))
        wide.var_names = [*cells.var_names, "gene3", "gene9"]
        with pytest.raises(
            DataError, match="names of the model's features must be unique in the data; gene3, gene9 repeat"
        ):
            fitted.predict(wide)


def test_cells_without_counts_in_the_models_features_are_refused_at_predict(fitted, cells):
    x = cells.X.toarray()
    x[11] = 0
    cells.X = x
    with pytest.raises(DataError, match="1 have none: cell12. Remove them"):
        fitted.predict(cells)
    assert "X_topic_compositions" not in cells.obsm


@pytest.mark.parametrize("value", [0.5, -1, np.nan])
def test_wrong_counts_are_refused_at_predict(fitted, cells, value):
    x = cells.X.toarray().astype(float)
    x[0, 0] = value
    cells.X = x
    with pytest.raises(DataError, match="X must hold"):
        fitted.predict(cells)


def test_a_layer_missing_at_predict_is_named(cells):
    cells.layers["counts"] = cells.X
    model = make(cells, counts_layer="counts").fit(cells, progress=False)
    del cells.layers["counts"]
    with pytest.raises(DataError, match="no layer 'counts'. There are: none"):
        model.predict(cells)


def test_extra_features_are_needed_at_predict(cells):
    cells.obs["a"] = np.linspace(0, 1, 300)
    model = make(cells, extra_features_keys="a").fit(cells, progress=False)
    assert compositions(model, cells).shape == (300, 4)
    del cells.obs["a"]
    with pytest.raises(DataError, match="no column of obs 'a'"):
        model.predict(cells)


def test_no_cells_cannot_be_predicted(fitted, cells):
    for call in (fitted.predict, fitted.score):
        with pytest.raises(DataError, match="the data has no cells"):
            call(cells[:0].copy())


def test_repeated_cell_names_do_not_matter_at_predict(fitted, cells):
    wanted = compositions(fitted, cells)
    cells.obs_names = ["same"] * 300
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        out = fitted.predict(cells)
        assert np.array_equal(out.obsm["X_topic_compositions"], wanted)
        assert np.array_equal(out.obs["topic_1"], wanted[:, 1])


# --- data at the edges of what can be ---------------------------------------------------------------

ONES = np.ones((40, 10), int)
EDGES = {
    "one cell over in the last batch": lambda: make_cells(33, 10),
    "two cells": lambda: make_cells(2, 10),
    "two features": lambda: make_cells(40, 2),
    "an empty feature": lambda: with_counts(ONES * (np.arange(10) != 3)),
    "cells of one feature each": lambda: with_counts(np.eye(10, dtype=int).repeat(4, 0) * 7),
    "one feature above all": lambda: with_counts(ONES + 100_000 * (np.arange(10) == 0)),
    "one cell above all": lambda: with_counts(ONES + 2**22 * (np.arange(40) == 0)[:, None]),
    "cells that are all alike": lambda: with_counts(ONES),
}


def with_counts(x: np.ndarray) -> ad.AnnData:
    adata = make_cells(*x.shape)
    adata.X = sp.csr_matrix(x)
    return adata


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("edge", EDGES)
def test_data_at_the_edges_of_what_can_be_train_predict_and_score(edge, family):
    adata = with_columns(EDGES[edge]())
    adata.obs["batch"] = ["a", "b"] * (adata.n_obs // 2) + ["a"] * (adata.n_obs % 2)
    model = make(adata, **FAMILIES[family], num_epochs=2).fit(adata, progress=False)
    theta = compositions(model, adata)
    assert np.isfinite(theta).all()
    np.testing.assert_allclose(theta.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(compositions(model, adata[:1].copy()), theta[:1], rtol=1e-4, atol=1e-6)
    assert math.isfinite(model.score(adata))
    # cells unlike any that were seen: all in a feature that may have been empty
    other = with_counts(5 * (np.arange(adata.n_vars) == min(3, adata.n_vars - 1)) * np.ones((4, 1), int))
    other.obs = adata.obs.iloc[[0, 0, 1, 1]].set_axis(other.obs_names)
    assert np.isfinite(compositions(model, other)).all()
    assert math.isfinite(model.score(other))


@pytest.mark.parametrize("family", ["expression", "fast", "skipDAN", "process", "CODAL"])
def test_there_may_be_more_topics_than_cells_and_features(family):
    adata = with_columns(make_cells(9, 7))
    model = make(adata, **FAMILIES[family], num_topics=10).fit(adata, progress=False)
    assert compositions(model, adata).shape == (9, 10)
    assert model.cluster_topics().shape == (9, 4)


# --- score ----------------------------------------------------------------------------------------


def test_score_is_the_mean_negative_elbo(fitted, cells):
    """Against Monte Carlo with other draws."""
    import torch

    from mira_core.training.objective import draw, loss_terms

    generator = torch.Generator().manual_seed(5)
    (batch,) = in_order(read_cells(cells))
    with torch.no_grad():
        losses = [
            loss_terms(fitted.network, batch, draw(fitted.network, batch, generator))[0].loss(1.0) / 300
            for _ in range(60)
        ]
    losses = torch.stack(losses)
    assert fitted.score(cells) == pytest.approx(losses.mean().item(), abs=5 * losses.std().item() / math.sqrt(8) + 0.5)


def test_score_is_better_than_before_training_and_worse_on_noise(fitted, cells):
    untrained = make(cells)
    next(untrained.fit_records(cells))
    assert fitted.score(cells) < untrained.score(cells)
    noise = cells.copy()
    rng = np.random.default_rng(0)
    noise.X = sp.csr_matrix(np.stack([rng.permutation(r) for r in cells.X.toarray()]))
    assert fitted.score(cells) < fitted.score(noise)


# --- features of the topics -----------------------------------------------------------------------


def test_rank_genes_orders_all_genes_by_activation(fitted):
    for k in range(4):
        ranked = fitted.rank_genes(k)
        assert set(ranked) == set(fitted.features)
        activation = dict(zip(fitted.features, fitted.topic_feature_activations()[k], strict=True))
        values = [activation[g] for g in ranked]
        assert values == sorted(values)


@pytest.mark.parametrize("topic", [-1, 4, 1.0, "1", True, None])
def test_a_topic_out_of_range_is_refused(fitted, topic):
    for call in (fitted.rank_genes, fitted.get_top_genes):
        with pytest.raises(OptionError, match="topic_num must be an integer from 0 to 3; got "):
            call(topic)


def test_numpy_integers_name_topics(fitted):
    assert np.array_equal(fitted.rank_genes(np.int64(2)), fitted.rank_genes(2))


def test_rank_modules_orders_topics_by_the_genes_activation(fitted):
    ranked = fitted.rank_modules("gene5")
    at = list(fitted.features).index("gene5")
    activation = fitted.topic_feature_activations()[:, at]
    assert [k for k, _ in ranked] == list(np.argsort(-activation))
    assert [a for _, a in ranked] == pytest.approx(sorted(activation.tolist(), reverse=True))


def test_rank_modules_refuses_an_unknown_gene(fitted):
    with pytest.raises(DataError, match="'XYZ' is not among the 120 modelled features"):
        fitted.rank_modules("XYZ")


def test_top_genes_are_the_end_of_the_ranking(fitted):
    ranked = fitted.rank_genes(1)
    assert np.array_equal(fitted.get_top_genes(1, 5), ranked[-5:])
    assert np.array_equal(fitted.get_top_genes(1, top_n=np.int64(1)), ranked[-1:])
    assert len(fitted.get_top_genes(1, 10_000)) == 120
    assert len(fitted.get_top_genes(1)) == 120
    assert len(fitted.get_top_genes(1, min_genes=7, max_genes=9)) in (7, 8, 9)


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "5"])
def test_a_wrong_number_of_top_genes_is_refused(fitted, n):
    with pytest.raises(OptionError, match="top_n must be an integer of at least 1; got"):
        fitted.get_top_genes(0, n)


def test_names_of_topic_columns_follow_the_fitted_model(cells):
    model = make(cells, num_epochs=1)
    assert model.topic_cols == ["topic_0", "topic_1", "topic_2", "topic_3"]
    model.fit(cells, progress=False).set_params(num_topics=7)
    assert model.topic_cols == ["topic_0", "topic_1", "topic_2", "topic_3"]
    assert set(model.topic_cols) <= set(model.predict(cells).obs.columns)
    assert len(make(cells, num_topics=7).topic_cols) == 7


def test_topics_are_clustered_by_what_they_are_made_of(fitted, cells):
    linkage = fitted.cluster_topics()
    assert np.array_equal(linkage, interpretation.dendrogram(fitted.topic_feature_compositions()))
    assert np.array_equal(linkage, fitted.predict(cells).uns["topic_dendogram"])


# --- impute ---------------------------------------------------------------------------------------


def test_impute_gives_frequencies_by_the_topics(fitted, cells):
    import torch

    fitted.predict(cells)
    out = fitted.impute(cells)
    assert np.array_equal(out, cells.layers["imputed"])
    np.testing.assert_allclose(out.sum(1), 1, rtol=1e-4)
    with torch.no_grad():
        wanted = fitted.network.decoder(torch.from_numpy(cells.obsm["X_topic_compositions"])).exp().numpy()
    np.testing.assert_allclose(out, wanted, rtol=1e-5)


def test_impute_and_umap_features_need_compositions_of_this_model(fitted, cells):
    for call in (fitted.impute, fitted.get_umap_features):
        with pytest.raises(DataError, match=r"obsm\['X_topic_compositions'\] is missing; call predict"):
            call(cells)
        cells.obsm["X_topic_compositions"] = np.full((300, 3), 1 / 3)
        with pytest.raises(DataError, match=r"must be cells x 4 topics; got shape \(300, 3\). Call predict"):
            call(cells)
        del cells.obsm["X_topic_compositions"]


def test_impute_names_missing_features(fitted, cells):
    fitted.predict(cells)
    with pytest.raises(DataError, match="lacks 5 of the model's features, such as gene1"):
        fitted.impute(cells[:, 5:].copy())


# --- coordinates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("box_cox", [0, 0.25, 1.0])
@pytest.mark.parametrize("K", [2, 3, 9])
def test_coordinates_keep_the_distances_of_the_transformed_compositions(K, box_cox):
    theta = np.random.default_rng(0).dirichlet(np.full(K, 0.7), 25)
    if box_cox == 0:
        transformed = np.log(theta) - np.log(theta).mean(1, keepdims=True)
    else:
        transformed = ((theta**box_cox / (theta**box_cox).mean(1, keepdims=True)) - 1) / box_cox
    out = interpretation.umap_features(theta, box_cox)
    assert out.shape == (25, K - 1)
    np.testing.assert_allclose(pdist(out.astype(float)), pdist(transformed), rtol=1e-5, atol=1e-5)


def test_coordinates_tend_to_those_of_the_logarithm():
    theta = np.random.default_rng(0).dirichlet(np.full(6, 2.0), 25)
    np.testing.assert_allclose(
        interpretation.umap_features(theta, 1e-6), interpretation.umap_features(theta, 0), atol=1e-4
    )


def test_coordinates_of_an_even_composition_are_the_origin_and_zeros_are_finite():
    np.testing.assert_allclose(interpretation.umap_features(np.full((1, 5), 0.2)), 0, atol=1e-6)
    pure = np.eye(5, dtype=np.float32)
    for box_cox in (0, 0.25):
        assert np.isfinite(interpretation.umap_features(pure, box_cox)).all()


def test_get_umap_features_is_what_predict_writes(fitted, cells):
    fitted.predict(cells)
    written = cells.obsm["X_umap_features"].copy()
    assert np.array_equal(fitted.get_umap_features(cells), written)
    other = fitted.get_umap_features(cells, box_cox=0.5)
    assert np.array_equal(cells.obsm["X_umap_features"], other)
    assert np.array_equal(fitted.predict(cells, box_cox=0.5).obsm["X_umap_features"], other)
    assert not np.array_equal(other, written)


@pytest.mark.parametrize("K", [2, 3, 12])
def test_balances_are_orthonormal_contrasts_of_the_two_sides_of_each_join(K):
    linkage = interpretation.dendrogram(np.random.default_rng(K).dirichlet(np.full(8, 0.5), K))
    basis = interpretation.balances(linkage)
    np.testing.assert_allclose(basis @ basis.T, np.eye(K - 1), atol=1e-12)
    np.testing.assert_allclose(basis.sum(1), 0, atol=1e-12)
    tree = scipy.cluster.hierarchy.to_tree(linkage, rd=True)[1]
    for row, node in zip(basis, tree[K:], strict=True):
        left, right = node.left.pre_order(), node.right.pre_order()
        assert set(np.flatnonzero(row > 1e-12)) == set(left)
        assert set(np.flatnonzero(row < -1e-12)) == set(right)


@pytest.mark.parametrize("box_cox", [0, 0.5])
def test_hierarchical_coordinates_are_the_balances_by_the_plain_formula(fitted, cells, box_cox):
    """sqrt(n m / (n + m)) times the difference of the two sides' means, of n and m topics."""
    theta = fitted.predict(cells).obsm["X_topic_compositions"].astype(float)
    got = fitted.get_hierarchical_umap_features(cells, box_cox=box_cox)
    assert np.array_equal(cells.obsm["X_umap_features"], got)
    y = np.log(theta) if box_cox == 0 else (theta**box_cox / (theta**box_cox).mean(1, keepdims=True) - 1) / box_cox
    tree = scipy.cluster.hierarchy.to_tree(fitted.cluster_topics(), rd=True)[1]
    assert got.shape == (300, 3)
    for i, node in enumerate(tree[4:]):
        left, right = node.left.pre_order(), node.right.pre_order()
        n, m = len(left), len(right)
        wanted = math.sqrt(n * m / (n + m)) * (y[:, left].mean(1) - y[:, right].mean(1))
        np.testing.assert_allclose(got[:, i], wanted, rtol=1e-4, atol=1e-5)
    plain = fitted.get_umap_features(cells, box_cox=box_cox)
    np.testing.assert_allclose(pdist(got.astype(float)), pdist(plain.astype(float)), rtol=1e-4, atol=1e-4)


def test_hierarchical_coordinates_need_compositions_and_take_paths(fitted, cells, tmp_path):
    with pytest.raises(DataError, match=r"obsm\['X_topic_compositions'\] is missing; call predict"):
        fitted.get_hierarchical_umap_features(cells)
    cells.write_h5ad(tmp_path / "a.h5ad")
    wanted = fitted.get_hierarchical_umap_features(fitted.predict(cells))
    assert np.array_equal(fitted.get_hierarchical_umap_features(tmp_path / "a.h5ad"), wanted)


def test_topics_are_joined_by_hellinger_distance():
    topics = np.random.default_rng(0).dirichlet(np.full(8, 0.5), 5)
    distance = np.array([[np.sqrt(max(0, 1 - np.sqrt(p * q).sum())) for q in topics] for p in topics])
    wanted = scipy.cluster.hierarchy.linkage(squareform(distance, checks=False), "ward")
    np.testing.assert_allclose(interpretation.dendrogram(topics), wanted, rtol=1e-6)


# --- accessibility --------------------------------------------------------------------------------

PEAKS = {"feature_type": "accessibility", "atac_encoder": "fast", "num_epochs": 3}


@pytest.fixture(scope="module")
def peaks_model() -> mira.topics.TopicModel:
    adata = make_cells(60, 25, seed=1)
    return make(adata, **PEAKS).fit(adata, progress=False)


@pytest.mark.parametrize("family", ["fast", "DAN", "skipDAN"])
def test_a_peak_is_open_or_not_however_many_reads_it_has(family):
    adata = make_cells(60, 25, seed=1)
    other = adata.copy()
    other.X = (adata.X > 0).astype(np.float32) * 6
    one, two = (make(a, **FAMILIES[family], num_epochs=2).fit(a, progress=False) for a in (adata, other))
    assert same(arrays(one), arrays(two))
    assert np.array_equal(compositions(one, adata), compositions(one, other))
    assert one.score(adata) == one.score(other)


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_reading_peaks_does_not_depend_on_their_storage_and_changes_nothing(peaks_model, stored):
    adata = make_cells(60, 25, seed=1)
    wanted = compositions(peaks_model, adata)
    m = stored(adata.X)
    if sp.issparse(m):  # in an order that reading has to sort, of which a part shares memory with the data
        for i in range(len(m.indptr) - 1):
            part = slice(m.indptr[i], m.indptr[i + 1])
            m.indices[part], m.data[part] = m.indices[part][::-1].copy(), m.data[part][::-1].copy()
        m.has_sorted_indices = False
    other = ad.AnnData(m, obs=adata.obs, var=adata.var)
    peaks_model.predict(other)
    assert np.array_equal(other.obsm["X_topic_compositions"], wanted)
    assert np.array_equal(other.X.toarray() if sp.issparse(other.X) else other.X, adata.X.toarray())
    next(make(other, **PEAKS).fit_records(other))
    assert np.array_equal(other.X.toarray() if sp.issparse(other.X) else other.X, adata.X.toarray())


def test_peaks_are_ranked_and_imputed_as_genes_are(peaks_model):
    adata = make_cells(60, 25, seed=1)
    assert repr(peaks_model) == "<AccessibilityTopicModel: 4 topics, 3 epochs trained>"
    activation = dict(zip(peaks_model.features, peaks_model.topic_feature_activations()[2], strict=True))
    ranked = peaks_model.rank_peaks(2)
    assert [activation[p] for p in ranked] == sorted(activation.values())
    assert np.array_equal(peaks_model.get_top_peaks(2, 4), ranked[-4:])
    imputed = peaks_model.impute(peaks_model.predict(adata))
    assert imputed.shape == (60, 25)
    np.testing.assert_allclose(imputed.sum(1), 1, rtol=1e-4)
    assert np.array_equal(adata.layers["imputed"], imputed)


def test_only_peaks_for_the_encoder_change_the_topics_of_a_cell():
    adata = make_cells(60, 25, seed=1)
    adata.var["seen"] = np.arange(25) < 15
    model = make(adata, **PEAKS, endogenous_key="seen").fit(adata, progress=False)
    other = adata.copy()
    other.X = sp.csr_matrix(np.where(np.arange(25) < 15, adata.X.toarray(), 1))
    assert np.array_equal(compositions(model, other), compositions(model, adata))
    assert model.score(other) != model.score(adata)


# --- technical effects ----------------------------------------------------------------------------


def test_batch_effects_need_a_model_with_covariates(fitted, cells):
    with pytest.raises(OptionError, match="has no covariates, and so no batch effect; name some, and fit it anew"):
        fitted.get_batch_effect(fitted.predict(cells))
    assert "batch_effect" not in cells.layers


@pytest.mark.parametrize("family", ["CODAL", "CODAL+fast"])
def test_imputed_frequencies_and_batch_effects_make_the_frequencies_of_the_model(family):
    import torch

    adata = with_columns(make_cells(50, 20))
    adata.var["chosen"] = np.arange(20) != 4
    model = make(adata, **FAMILIES[family], highly_variable_key="chosen").fit(adata, progress=False)
    with pytest.raises(DataError, match="X_topic_compositions'] is missing"):
        model.get_batch_effect(adata)
    imputed, effect = model.impute(model.predict(adata)), model.get_batch_effect(adata)
    assert np.array_equal(adata.layers["batch_effect"], effect, equal_nan=True)
    assert np.isnan(effect[:, 4]).all()
    combined = np.delete(imputed * np.exp(effect), 4, axis=1)
    theta = torch.from_numpy(adata.obsm["X_topic_compositions"])
    covariates = torch.from_numpy(model._cells(adata).covariates)
    with torch.no_grad():
        wanted = model.network.log_frequencies(theta, covariates).exp().numpy()
    np.testing.assert_allclose(combined / combined.sum(1, keepdims=True), wanted, rtol=1e-4)
    assert effect[:, 0].std() > 0


def test_batch_effects_are_of_the_covariates_that_the_cells_have_now():
    adata = with_columns(make_cells(50, 20))
    model = make(adata, categorical_covariates="batch").fit(adata, progress=False)
    model.predict(adata)
    theta = adata.obsm["X_topic_compositions"][:1].repeat(50, 0)
    adata.obsm["X_topic_compositions"] = theta
    effect = model.get_batch_effect(adata)
    in_a = (adata.obs["batch"] == "a").to_numpy()
    assert np.allclose(effect[in_a], effect[in_a][0], atol=1e-5)
    assert np.allclose(effect[~in_a], effect[~in_a][0], atol=1e-5)
    assert not np.allclose(effect[in_a][0], effect[~in_a][0], atol=1e-3)
    del adata.obs["batch"]
    with pytest.raises(DataError, match="no column of obs 'batch'"):
        model.get_batch_effect(adata)


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", 99, None, "meta"])
def test_a_device_that_is_not_there_is_refused_and_the_model_stays_where_it_is(fitted, cells, device):
    model = copy.deepcopy(fitted)
    with pytest.raises(OptionError, match=rf"there is no device '{device}'; there are the cpu and \d+ CUDA device"):
        model.set_device(device)
    assert model.device == fitted.device
    assert np.array_equal(compositions(model, cells), compositions(fitted, cells))


def test_a_model_moves_to_the_cpu_and_trains_there(cells):
    model = make(cells, num_epochs=1)
    assert model.to_cpu() is model
    assert model.set_device("cpu") is model
    assert model.fit(cells, progress=False).device.type == "cpu"
    wanted = compositions(model, cells)
    assert np.array_equal(compositions(model.to_cpu(), cells), wanted)


def test_a_gpu_is_named_where_there_is_none(cells):
    import torch

    if torch.cuda.is_available():
        assert make(cells).to_gpu()._training_device().type == "cuda"
        return
    with pytest.raises(OptionError, match="there is no device 'cuda'; there are the cpu and 0 CUDA devices"):
        make(cells).to_gpu()


# --- quality --------------------------------------------------------------------------------------


def matched_correlation(true: np.ndarray, found: np.ndarray) -> float:
    """Mean correlation of columns, matched one to one as well as can be."""
    K = true.shape[1]
    c = np.corrcoef(true.T, found.T)[:K, K:]
    rows, columns = linear_sum_assignment(-c)
    return float(c[rows, columns].mean())


def held_out(adata: ad.AnnData, seed: int = 0) -> tuple[ad.AnnData, ad.AnnData, np.ndarray]:
    """Training cells; half of the counts of the other cells; the other half of these counts."""
    rng = np.random.default_rng(seed)
    test = rng.random(adata.n_obs) < 0.25
    train, rest = adata[~test].copy(), adata[test].copy()
    shown = rest.X.copy()
    shown.data = rng.binomial(shown.data.astype(int), 0.5)
    hidden = (rest.X - shown).toarray()
    rest.X = sp.csr_matrix(shown)
    keep = np.asarray(rest.X.sum(1)).ravel() > 0
    return train, rest[keep].copy(), hidden[keep]


def perplexity(hidden: np.ndarray, rho: np.ndarray) -> float:
    return float(np.exp(-(hidden * np.log(rho)).sum() / hidden.sum()))


@pytest.mark.parametrize("data_seed", [0, 1])
def test_simulated_topics_are_recovered_with_recommended_options(data_seed):
    adata = mira.data.simulate_expression(800, 400, 5, seed=data_seed)
    model = mira.topics.make_model(*adata.shape, feature_type="expression", num_topics=5, seed=0)
    model.fit(adata, progress=False).predict(adata)
    assert matched_correlation(adata.obsm["true_topics"], adata.obsm["X_topic_compositions"]) >= 0.8
    assert matched_correlation(adata.varm["true_topics"], adata.varm["topic_feature_compositions"]) >= 0.8


@pytest.mark.slow
def test_topics_of_the_default_simulation_are_recovered_in_the_median_of_three_seeds():
    adata = mira.data.simulate_expression(seed=0)
    found = []
    for seed in range(3):
        model = mira.topics.make_model(*adata.shape, feature_type="expression", num_topics=6, seed=seed)
        theta = model.fit(adata, progress=False).predict(adata).obsm["X_topic_compositions"]
        found.append(matched_correlation(adata.obsm["true_topics"], theta))
    assert np.median(found) >= 0.8, found


def test_held_out_counts_are_told_better_than_by_the_background():
    train, rest, hidden = held_out(mira.data.simulate_expression(600, 300, 5, seed=2))
    model = mira.topics.make_model(*train.shape, feature_type="expression", num_topics=5, num_epochs=60, seed=0)
    model.fit(train, progress=False).predict(rest)
    background = np.asarray(train.X.sum(0)).ravel() + 0.5
    assert perplexity(hidden, model.impute(rest)) < 0.9 * perplexity(hidden, background / background.sum() + 0 * hidden)


def test_a_short_fit_on_real_cells_beats_the_background(shared_data):
    adata = ad.read_h5ad(shared_data / "pbmc3k_hvg2000.h5ad")[::2].copy()
    train, rest, hidden = held_out(adata)
    model = mira.topics.make_model(*train.shape, feature_type="expression", num_topics=8, num_epochs=15, seed=0)
    model.fit(train, progress=False).predict(rest)
    background = np.asarray(train.X.sum(0)).ravel() + 0.5
    assert perplexity(hidden, model.impute(rest)) < perplexity(hidden, background / background.sum() + 0 * hidden)


def test_models_with_extra_features_train_and_predict():
    adata = make_cells(40, 12)
    adata.obs["a"], adata.obs["b"] = np.arange(40.0), 1.0
    model = make(adata, extra_features_keys=["a", "b"]).fit(adata, progress=False)
    assert np.isfinite(compositions(model, adata)).all()
