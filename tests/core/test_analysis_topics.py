"""What topics are, who has them, how cells differ, and which topics of two models are the same."""

from __future__ import annotations

import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import mira_core as mira
from mira_core.analysis import differential, matching
from mira_core.errors import DataError, NotFitted, OptionError
from mira_core.tuning import summary
from tests.helpers import make, predicted


def dirichlet(n: int, K: int, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(K, spread), n)


@pytest.fixture(scope="module")
def trained():
    adata = mira.data.simulate_expression(300, 60, 4, seed=2)
    model = make(adata, num_topics=4, num_epochs=20, seed=0).fit(adata, progress=False)
    return model, model.predict(adata)


# --- descriptions ---------------------------------------------------------------------------------


def test_shares_and_counts_are_those_of_the_cells():
    theta = dirichlet(500, 5)
    told = mira.analysis.describe_topics(predicted(theta))
    assert told["topic"].tolist() == [f"topic_{k}" for k in range(5)]
    np.testing.assert_allclose(told["mean_share"], theta.mean(0), rtol=1e-5)
    np.testing.assert_allclose(told["largest_in"], [(theta.argmax(1) == k).mean() for k in range(5)])
    np.testing.assert_allclose(told["present_in"], (theta.astype(np.float32) >= 0.05).mean(0))
    assert not told["dead"].any()


def test_top_features_are_terms_of_the_divergence_from_the_average_cell():
    adata = predicted(dirichlet(50, 3), np.random.default_rng(1).normal(size=(3, 40)))
    p = adata.varm["topic_feature_compositions"].astype(float)
    q = p @ adata.obsm["X_topic_compositions"].mean(0, dtype=float)
    terms = p * np.log(p / q[:, None])
    expected = [adata.var_names[np.argsort(-terms[:, k])[:7]].tolist() for k in range(3)]
    assert mira.analysis.top_features(adata, 7) == expected
    assert mira.analysis.describe_topics(adata, 7)["top_features"].tolist() == [", ".join(e) for e in expected]
    np.testing.assert_allclose(terms.sum(0), stats.entropy(p, q[:, None]), rtol=1e-4)


def test_a_topic_that_hardly_any_cell_has_is_dead_and_a_double_is_redundant():
    theta = np.column_stack([dirichlet(2000, 3) * 0.97, np.full(2000, 0.03)])
    activations = np.random.default_rng(0).normal(size=(4, 200))
    activations[2] = activations[0] + np.random.default_rng(1).normal(0, 0.2, 200)
    told = mira.analysis.describe_topics(predicted(theta, activations))
    assert told["dead"].tolist() == [False, False, False, True]
    assert told["redundant_with"].tolist() == ["topic_2", None, "topic_0", None]
    theta[0] = [0.1, 0.1, 0.1, 0.7]  # one cell in 2,000 is below the limit, two are not
    assert mira.analysis.describe_topics(predicted(theta, activations))["dead"].tolist()[3]
    theta[1] = theta[0]
    assert not mira.analysis.describe_topics(predicted(theta, activations))["dead"].any()


def test_features_that_are_not_modelled_are_left_out_and_symbols_are_shown(trained):
    _, adata = trained
    wide = ad.AnnData(obs=adata.obs[:], var=pd.DataFrame(index=[*adata.var_names, "other"]))
    wide.obsm["X_topic_compositions"] = adata.obsm["X_topic_compositions"]
    for name in ("topic_feature_compositions", "topic_feature_activations"):
        wide.varm[name] = np.vstack([adata.varm[name], np.full((1, 4), np.nan)])
    assert mira.analysis.top_features(wide, 60) == mira.analysis.top_features(adata, 60)
    wide.var_names = [f"ENSG{i:011d}" for i in range(61)]
    wide.var["symbol"] = [*adata.var_names, "other"]
    assert mira.analysis.top_features(wide) == mira.analysis.top_features(adata)
    assert mira.analysis.rank_topics(wide, adata.var_names[3]).name == adata.var_names[3]


def test_a_model_and_its_cells_rank_topics_as_rank_modules_does(trained):
    model, adata = trained
    for source in (model, adata):
        ranked = mira.analysis.rank_topics(source, adata.var_names[5])
        known = model.rank_modules(adata.var_names[5])
        assert ranked.index.tolist() == [f"topic_{k}" for k, _ in known]
        np.testing.assert_allclose(ranked, [a for _, a in known], rtol=1e-5)
    for of_model, of_cells in zip(*(mira.analysis.top_features(source) for source in (model, adata)), strict=True):
        assert len(set(of_model) & set(of_cells)) >= 5  # the average cell is that of the training


def test_what_has_no_topics_is_told(trained):
    bare = ad.AnnData(np.ones((3, 2)))
    with pytest.raises(DataError, match=r"obsm\['X_topic_compositions'\] is missing; call model.predict"):
        mira.analysis.describe_topics(bare)
    bare.obsm["X_topic_compositions"] = np.array([[0.5, np.nan]] * 3)
    with pytest.raises(DataError, match="NaN"):
        mira.analysis.topics_by(bare, "x")
    bare.obsm["X_topic_compositions"] = np.full((3, 2), 0.5)
    with pytest.raises(DataError, match=r"varm\['topic_feature_compositions'\] is missing"):
        mira.analysis.describe_topics(bare)
    with pytest.raises(NotFitted):
        mira.analysis.rank_topics(make(bare), "0")
    with pytest.raises(DataError, match=r"did you mean 'gene3"):
        mira.analysis.rank_topics(trained[1], "gene_3")
    with pytest.raises(DataError, match="got list"):
        mira.analysis.top_features([1, 2])
    with pytest.raises(OptionError, match="top must be"):
        mira.analysis.top_features(trained[1], 0)


# --- by a column ----------------------------------------------------------------------------------


def test_means_by_category_are_pandas_means():
    theta = dirichlet(400, 3)
    adata = predicted(theta)
    adata.obs["type"] = pd.Categorical(np.random.default_rng(0).choice(["b", "a"], 400), ["b", "a", "none"])
    adata.obs["cluster"] = np.random.default_rng(1).integers(0, 12, 400)
    adata.obs["flag"] = theta[:, 0] > 0.5
    for column in ("type", "cluster", "flag"):
        told = mira.analysis.topics_by(adata, column)
        expected = pd.DataFrame(theta).groupby(adata.obs[column].to_numpy()).mean()
        np.testing.assert_allclose(told.drop(columns="cells").reindex(expected.index), expected, rtol=1e-5)
        assert told["cells"].sum() == 400
    assert mira.analysis.topics_by(adata, "type").index.tolist() == ["b", "a"]
    assert mira.analysis.topics_by(adata, "flag").index.tolist() == [False, True]


def test_numbers_are_divided_into_quantiles_and_cells_without_values_left_out():
    adata = predicted(dirichlet(400, 3))
    adata.obs["depth"] = np.where(np.arange(400) < 40, np.nan, np.arange(400) / 7)
    told = mira.analysis.topics_by(adata, "depth", bins=4)
    assert told["cells"].tolist() == [90] * 4
    np.testing.assert_allclose(told["topic_1"].iloc[0], adata.obsm["X_topic_compositions"][40:130, 1].mean(), rtol=1e-5)
    adata.obs["mostly"] = np.where(np.arange(400) < 390, 0.5, np.arange(400) / 7)
    assert mira.analysis.topics_by(adata, "mostly")["cells"].sum() == 400
    adata.obs["empty"] = np.nan
    with pytest.raises(DataError, match="has no values"):
        mira.analysis.topics_by(adata, "empty")
    with pytest.raises(DataError, match="did you mean 'depth'"):
        mira.analysis.topics_by(adata, "dept")


# --- differences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("decimals", [7, 1])  # without ties, and with many
def test_the_rank_sum_is_scipys(share, decimals):
    rng = np.random.default_rng(3)
    values, one = rng.normal(size=400).round(decimals).astype(np.float32), rng.random(400) < share
    values[one] += np.float32(0.1)
    auc, z, p = differential.rank_sum(values, one)
    expected = stats.mannwhitneyu(values[one], values[~one], method="asymptotic")
    assert auc == pytest.approx(expected.statistic / one.sum() / (~one).sum())
    assert p == pytest.approx(expected.pvalue)
    assert (z > 0) == (auc > 0.5)


def test_a_column_without_any_difference_says_so():
    assert differential.rank_sum(np.ones(9, np.float32), np.arange(9) < 4) == (0.5, 0.0, 1.0)


def test_log_ratios_are_the_logarithms_over_the_geometric_mean():
    theta = dirichlet(9000, 4)
    z = differential.log_ratios(theta, 1e-3)
    floored = np.maximum(theta, 1e-3)
    np.testing.assert_allclose(z.T, np.log(floored / stats.gmean(floored, axis=1)[:, None]), atol=1e-5)


def test_where_nothing_differs_few_p_values_are_small():
    """Of 400 comparisons of random cells, 5 % have p < 0.05, within what chance allows."""
    small, found = [], 0
    for seed in range(80):
        adata = predicted(dirichlet(300, 5, seed))
        told = mira.analysis.differential_topics(adata, np.random.default_rng(seed).random(300) < 0.3)
        small += (told["p_value"] < 0.05).tolist()
        found += int((told["q_value"] < 0.05).any())
    assert 0.025 < np.mean(small) < 0.08
    assert found <= 10  # 5 % of 80, and chance


def test_a_topic_that_gains_is_found_and_the_others_are_not_said_to_lose_as_much():
    rng = np.random.default_rng(0)
    one = rng.random(3000) < 0.3
    z = rng.normal(size=(3000, 10))
    z[one, 4] += 1.0
    theta = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    told = mira.analysis.differential_topics(predicted(theta), one).set_index("topic")
    assert told.index[0] == "topic_4"
    assert told.loc["topic_4", "log_ratio"] == pytest.approx(0.9, abs=0.1)  # 1 less the tenth by which the mean moves
    others = told.drop("topic_4")
    assert others["log_ratio"].abs().max() < 0.25
    shares = [stats.mannwhitneyu(theta[one, k], theta[~one, k]).statistic / one.sum() / (~one).sum() for k in range(10)]
    assert np.abs(np.delete(shares, 4) - 0.5).mean() > 1.2 * np.abs(others["auc"] - 0.5).mean()
    np.testing.assert_allclose(told.loc["topic_4", "mean_selected"], theta[one, 4].mean(), rtol=1e-4)
    np.testing.assert_allclose(told["q_value"], stats.false_discovery_control(told["p_value"]))


def test_positions_truth_values_and_the_other_side_can_be_given():
    adata = predicted(dirichlet(60, 3))
    mask = np.arange(60) < 20
    told = mira.analysis.differential_topics(adata, mask)
    pd.testing.assert_frame_equal(told, mira.analysis.differential_topics(adata, np.flatnonzero(mask)))
    pd.testing.assert_frame_equal(told, mira.analysis.differential_topics(adata, pd.Series(mask, adata.obs_names)))
    part = mira.analysis.differential_topics(adata, mask, np.arange(30, 50))
    again = mira.analysis.differential_topics(adata[np.r_[:20, 30:50]].copy(), np.arange(20))
    pd.testing.assert_frame_equal(part, again)
    assert part.attrs["test"] == "rank-sum test of 20 cells against 20"
    for wrong, said in [
        (np.zeros(60, bool), "cells on both sides; 0 are selected"),
        ([], "0 are selected"),
        (np.ones(60, bool), "60 are selected, 0"),
        (np.ones(5, bool), "each of the 60 cells"),
        ([60], "from 0 to 59"),
        ([-1], "from 0 to 59"),
        ([0.5], "positions of cells"),
        (["cell1"], "positions of cells"),
    ]:
        with pytest.raises(OptionError, match=said):
            mira.analysis.differential_topics(adata, wrong)
    with pytest.raises(OptionError, match="one side only; 1 are"):
        mira.analysis.differential_topics(adata, [0, 1], [1, 2])
    with pytest.raises(OptionError, match="floor must be"):
        mira.analysis.differential_topics(adata, mask, floor=0.5)


def samples(seed: int, effect: float, paired: bool, n: int = 8, cells: int = 60) -> ad.AnnData:
    """Cells of samples with levels of their own; half of the samples, or of the cells of each, are selected."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 0.7, (n, 4))
    sample = np.repeat(np.arange(n), cells)
    one = np.arange(n * cells) % 2 == 0 if paired else sample < n // 2
    z = level[sample] + rng.normal(0, 0.5, (n * cells, 4))
    z[one, 0] += effect
    adata = predicted(np.exp(z) / np.exp(z).sum(1, keepdims=True))
    adata.obs["donor"] = [f"d{s}" for s in sample]
    adata.obs["one"] = one
    return adata


def test_samples_are_the_replicates_where_they_are_named():
    """Cells of few donors tell differences that donors do not: p-values of cells are small where nothing differs."""
    by_cell, by_sample = [], []
    for seed in range(40):
        adata = samples(seed, 0, paired=False)
        one = adata.obs["one"].to_numpy()
        by_cell += mira.analysis.differential_topics(adata, one)["p_value"].tolist()
        told = mira.analysis.differential_topics(adata, one, sample="donor")
        by_sample += told["p_value"].tolist()
        assert told.attrs["test"] == "Welch's t-test of 4 samples against 4"
    assert np.mean(np.array(by_cell) < 0.05) > 0.5
    assert np.mean(np.array(by_sample) < 0.05) < 0.1
    z = pd.DataFrame(differential.log_ratios(adata.obsm["X_topic_compositions"]).T).groupby(adata.obs["donor"].values)
    means = z.mean().to_numpy()
    expected = stats.ttest_ind(means[:4], means[4:], equal_var=False)
    order = told["topic"].str.removeprefix("topic_").astype(int)
    np.testing.assert_allclose(told["p_value"], expected.pvalue[order], rtol=1e-4)


def test_samples_on_both_sides_are_compared_with_themselves():
    adata = samples(0, 0.6, paired=True)
    told = mira.analysis.differential_topics(adata, adata.obs["one"], sample="donor").set_index("topic")
    assert told.attrs["test"] == "paired t-test of 8 samples that have cells on both sides"
    assert told.loc["topic_0", "p_value"] < 1e-4
    assert told.loc["topic_0", "log_ratio"] == pytest.approx(0.45, abs=0.1)
    only = adata.obs["one"] & (adata.obs["donor"] != "d0")
    told = mira.analysis.differential_topics(adata, only, sample="donor")
    assert "1 with cells on one side only are left out" in told.attrs["test"]
    with pytest.raises(DataError, match="at least 2 are on each side"):
        mira.analysis.differential_topics(adata, adata.obs["donor"] == "d0", sample="donor")
    adata.obs["donor"] = adata.obs["donor"].where(adata.obs["donor"] != "d0", None)
    with pytest.raises(DataError, match="60 have none"):
        mira.analysis.differential_topics(adata, adata.obs["one"], sample="donor")


def test_many_cells_take_little_time():
    n = 200_000
    adata = ad.AnnData(obs=pd.DataFrame(index=pd.RangeIndex(n).astype(str)))
    adata.obsm["X_topic_compositions"] = dirichlet(n, 10).astype(np.float32)
    began = time.process_time()
    mira.analysis.differential_topics(adata, np.arange(20_000))
    assert time.process_time() - began < 3


# --- matches --------------------------------------------------------------------------------------


def test_models_and_their_cells_are_matched_alike(trained):
    model, adata = trained
    told = mira.analysis.match_topics(adata, model)
    assert told["topic"].tolist() == told["other"].tolist()
    np.testing.assert_allclose(told["correlation"], 1, rtol=1e-4)
    pd.testing.assert_frame_equal(summary.compare(model, model), mira.analysis.match_topics(model, model))
    assert summary.correlations is matching.correlations


def test_topics_are_matched_by_the_names_of_features_in_any_order():
    rng = np.random.default_rng(0)
    activations = rng.normal(size=(4, 80))
    one = predicted(dirichlet(20, 4), activations)
    two = predicted(dirichlet(30, 4, 1), 2 * activations[[2, 0, 3, 1]] + 1)[:, rng.permutation(80)].copy()
    told = mira.analysis.match_topics(one, two)
    assert dict(zip(told["topic"], told["other"], strict=True)) == {
        "topic_0": "topic_1", "topic_1": "topic_3", "topic_2": "topic_0", "topic_3": "topic_2",
    }  # fmt: skip
    np.testing.assert_allclose(told["correlation"], 1, rtol=1e-4)
    other = two[:, :60].copy()
    other.var_names = [f"x{i}" for i in range(60)]
    with pytest.raises(DataError, match="these share 0 of 80 and 60"):
        mira.analysis.match_topics(one, other)
