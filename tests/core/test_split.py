"""Training and test cells: at random, in proportion, each cell once."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from mira_core.data.on_disk import OnDiskDataset
from mira_core.errors import DataError, OptionError
from tests.helpers import make, make_cells, with_columns


@pytest.fixture
def told() -> ad.AnnData:
    """200 cells: uneven batches, donors that cross them, and a measure."""
    adata = make_cells(200, 8)
    rng = np.random.default_rng(2)
    adata.obs["batch"] = rng.choice(["a", "b", "c"], 200, p=[0.7, 0.25, 0.05])
    adata.obs["donor"] = rng.choice([1, 2], 200)
    adata.obs["quality"] = rng.normal(5, 2, 200)
    return adata


def names(part: ad.AnnData) -> list[str]:
    return list(part.obs_names)


def test_every_cell_is_on_one_side_with_all_that_it_has(told):
    told.layers["counts"], told.obsm["X_pca"] = told.X.copy(), np.arange(400.0).reshape(200, 2)
    train, test = make(told).train_test_split(told)
    assert (train.n_obs, test.n_obs) == (160, 40)
    assert sorted(names(train) + names(test)) == sorted(told.obs_names)
    for part in (train, test):
        assert not part.is_view
        at = told.obs_names.get_indexer(part.obs_names)
        assert np.array_equal(part.X.toarray(), told.X.toarray()[at])
        assert np.array_equal(part.layers["counts"].toarray(), told.X.toarray()[at])
        assert np.array_equal(part.obsm["X_pca"], told.obsm["X_pca"][at])
        assert (part.obs["batch"] == told.obs["batch"].to_numpy()[at]).all()


def test_both_sides_are_in_random_order(told):
    train, test = make(told).train_test_split(told)
    for part in (train, test):
        at = told.obs_names.get_indexer(part.obs_names)
        assert (np.diff(at) < 0).sum() > len(at) / 3


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.93])
@pytest.mark.parametrize("seed", range(3))
def test_each_combination_of_covariates_is_divided_in_proportion(told, share, seed):
    model = make(told, categorical_covariates=["batch", "donor"])
    train, test = model.train_test_split(told, train_size=share, seed=seed)
    assert train.n_obs == round(share * 200)
    columns = ["batch", "donor"]
    whole, kept = told.obs.groupby(columns).size(), train.obs.groupby(columns).size()
    assert len(whole) == 6
    assert (abs(kept.reindex(whole.index, fill_value=0) - share * whole) <= 1).all()
    assert train.n_obs + test.n_obs == 200


@pytest.mark.parametrize("option", ["continuous_covariates", "covariates_keys"])
def test_continuous_covariates_are_binned_by_z_score(told, option):
    model = make(told, **{option: "quality"})
    x = told.obs["quality"].to_numpy()
    told.obs["bin"] = np.clip(np.rint((x - x.mean()) / x.std()), -3, 3)
    train, _ = model.train_test_split(told, train_size=0.7)
    whole, kept = told.obs.groupby("bin").size(), train.obs.groupby("bin").size()
    assert len(whole) >= 5
    assert (abs(kept.reindex(whole.index, fill_value=0) - 0.7 * whole) <= 1).all()


def test_a_stratum_of_one_cell_is_no_obstacle(told):
    told.obs["batch"] = ["alone", *["a"] * 199]
    train, test = make(told, categorical_covariates="batch").train_test_split(told)
    assert (train.obs["batch"] == "alone").sum() + (test.obs["batch"] == "alone").sum() == 1
    assert train.n_obs == 160


def test_the_seed_decides_the_split(told):
    model = make(told)
    first = [names(p) for p in model.train_test_split(told)]
    assert first == [names(p) for p in model.train_test_split(told, seed=0)]
    assert first != [names(p) for p in model.train_test_split(told, seed=1)]


@pytest.mark.parametrize("wrong", [0, 1, -0.1, 1.5, float("nan"), 0.001, 0.999, 150])
def test_both_sides_must_have_cells(told, wrong):
    with pytest.raises(
        OptionError, match="train_size must be between 0 and 1 and leave cells on both sides; got .* of 200"
    ):
        make(told).train_test_split(told, train_size=wrong)


def test_a_covariate_that_is_missing_or_incomplete_is_refused(told):
    with pytest.raises(DataError, match="no column of obs 'batc'; did you mean 'batch'"):
        make(told, categorical_covariates="batc").train_test_split(told)
    told.obs["batch"] = [None, *["a"] * 199]
    with pytest.raises(DataError, match=r"obs\['batch'\] must have a value in every cell"):
        make(told, categorical_covariates="batch").train_test_split(told)


def test_a_path_and_backed_cells_are_split_as_the_cells_in_memory(told, tmp_path):
    model = make(told, categorical_covariates="batch")
    wanted = [names(p) for p in model.train_test_split(told)]
    told.write_h5ad(tmp_path / "a.h5ad")
    assert [names(p) for p in model.train_test_split(tmp_path / "a.h5ad")] == wanted
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    try:
        parts = model.train_test_split(backed)
        assert [names(p) for p in parts] == wanted
        at = told.obs_names.get_indexer(parts[1].obs_names)
        assert np.array_equal(parts[1].X.toarray(), told.X.toarray()[at])
    finally:
        backed.file.close()


def test_the_parts_of_a_folder_stand_for_the_parts_of_the_cells(tmp_path):
    adata = with_columns(make_cells(90, 14))
    model = make(adata, categorical_covariates="batch", continuous_covariates="quality", num_epochs=2)
    model.write_ondisk_dataset(adata, tmp_path / "set")
    train, test = model.train_test_split(tmp_path / "set")
    in_memory = model.train_test_split(adata)
    assert isinstance(train, OnDiskDataset)
    assert [names(p.table()) for p in (train, test)] == [names(p) for p in in_memory]
    model.fit(train, progress=False)
    told = model.score(test)
    assert told == model.fit(in_memory[0], progress=False).score(in_memory[1])
    again = model.train_test_split(train, seed=3)
    assert set(names(again[0].table())) | set(names(again[1].table())) == set(names(in_memory[0]))
