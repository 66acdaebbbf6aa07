"""Columns of obs as numbers: how they are coded, what is refused, and that other cells are coded alike."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import mira_core as mira
from mira_core.data.covariates import Coding, learn_coding
from mira_core.errors import DataError, OptionError
from mira_core.topics import load_model
from tests.helpers import arrays, make, make_cells, read_cells, same

BATCHES = ["b", "a", "c"]


@pytest.fixture
def told() -> ad.AnnData:
    """36 cells of three batches with measures of quality."""
    adata = make_cells(36, 15)
    rng = np.random.default_rng(1)
    adata.obs["batch"] = [BATCHES[i % 3] for i in range(36)]
    adata.obs["quality"] = rng.lognormal(2, 1, 36)
    adata.obs["percent"] = rng.random(36)
    return adata


def fitted_to(adata: ad.AnnData, **options: object) -> mira.topics.TopicModel:
    return make(adata, num_epochs=1, **options).fit(adata, progress=False)


def column(values: object, n: int = 36) -> ad.AnnData:
    """Cells with one column, `x`."""
    adata = make_cells(n, 15)
    adata.obs["x"] = values if not isinstance(values, pd.Series) else values.set_axis(adata.obs_names)
    return adata


def without(adata: ad.AnnData, key: str) -> ad.AnnData:
    return ad.AnnData(adata.X, obs=adata.obs.drop(columns=key), var=adata.var)


# --- coding ---------------------------------------------------------------------------------------


def test_categories_become_one_column_each_in_alphabetical_order(told):
    cells = read_cells(told, categorical_covariates="batch")
    assert cells.coding.names == ["batch=a", "batch=b", "batch=c"]
    wanted = np.array([[b == c for c in "abc"] for b in told.obs["batch"]], np.float32)
    assert np.array_equal(cells.covariates, wanted)
    assert cells.covariates.dtype == np.float32


def test_continuous_covariates_are_standardised_over_the_cells(told):
    cells = read_cells(told, continuous_covariates=["quality", "percent"])
    x = told.obs[["quality", "percent"]].to_numpy()
    np.testing.assert_allclose(cells.covariates, (x - x.mean(0)) / x.std(0), rtol=1e-6)
    assert cells.coding.names == ["quality", "percent"]


def test_standardised_covariates_stay_within_ten():
    outlying = np.r_[np.zeros(300), 1e6, -1e6]
    cells = read_cells(column(outlying, 302), continuous_covariates="x")
    assert (outlying.max() - outlying.mean()) / outlying.std() > 10
    assert cells.covariates[300:, 0].tolist() == [10, -10]


def test_other_covariates_are_used_as_they_are(told):
    told.obs["large"] = np.arange(36) * 100.0
    cells = read_cells(told, covariates_keys=["large", "percent"])
    assert np.array_equal(cells.covariates, told.obs[["large", "percent"]].to_numpy().astype(np.float32))
    assert cells.coding.names == ["large", "percent"]


def test_columns_stand_in_the_order_categorical_continuous_as_they_are(told):
    cells = read_cells(told, covariates_keys="percent", continuous_covariates="quality", categorical_covariates="batch")
    assert cells.coding.names == ["batch=a", "batch=b", "batch=c", "quality", "percent"]
    assert cells.covariates.shape == (36, 5)
    batch = cells.batch(np.array([7, 2]))
    assert np.array_equal(batch.covariates_BC.numpy(), cells.covariates[[7, 2]])
    assert np.array_equal(cells.take(np.array([7, 2])).covariates, cells.covariates[[7, 2]])


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (np.arange(36) % 2 == 0, ["x=False", "x=True"]),
        (np.arange(36) % 3, ["x=0", "x=1", "x=2"]),
        ((np.arange(36) % 3).astype(np.int8), ["x=0", "x=1", "x=2"]),
        ((np.arange(36) % 3).astype(float), ["x=0", "x=1", "x=2"]),
        ((np.arange(36) % 3).astype(np.float32) / 2, ["x=0", "x=0.5", "x=1"]),
        (pd.Categorical(np.arange(36) % 3), ["x=0", "x=1", "x=2"]),
        (pd.Categorical((np.arange(36) % 3).astype(float)), ["x=0", "x=1", "x=2"]),
        (pd.Categorical(["u", "v"] * 18, categories=["v", "unused", "u"]), ["x=u", "x=v"]),
        (pd.array([1, 2] * 18, dtype="Int64"), ["x=1", "x=2"]),
        (pd.array([True, False] * 18, dtype="boolean"), ["x=False", "x=True"]),
        (pd.array(["u", "v"] * 18, dtype="string"), ["x=u", "x=v"]),
        (np.array([1, "1b"] * 18, object), ["x=1", "x=1b"]),
        (["Spänder 1", ""] * 18, ["x=", "x=Spänder 1"]),
    ],
    ids=lambda v: str(getattr(v, "dtype", ""))[:12] or None,
)
def test_categories_may_be_of_any_type(values, names):
    cells = read_cells(column(values), categorical_covariates="x")
    assert cells.coding.names == names
    assert (cells.covariates.sum(1) == 1).all()
    assert (cells.covariates.sum(0) >= 12).all()


@pytest.mark.parametrize(
    "values",
    [
        np.arange(36) % 2 == 0,
        np.array([True, False] * 18, object),
        np.arange(36) % 5,
        pd.Categorical(np.arange(36) % 5),
        pd.array([1, 2] * 18, dtype="Int64"),
        pd.array([True, False] * 18, dtype="boolean"),
        [str(i / 4) for i in range(36)],
        np.arange(36, dtype=np.float16),
    ],
    ids=lambda v: str(getattr(v, "dtype", "text")),
)
@pytest.mark.parametrize("option", ["continuous_covariates", "covariates_keys", "extra_features_keys"])
def test_numbers_may_be_of_any_type(values, option):
    adata = column(values)
    x = np.asarray(adata.obs["x"].astype(object)).astype(float)
    cells = read_cells(adata, **{option: "x"})
    got = cells.extra if option == "extra_features_keys" else cells.covariates
    wanted = (x - x.mean()) / x.std() if option == "continuous_covariates" else x
    np.testing.assert_allclose(got[:, 0], wanted, rtol=1e-6, atol=1e-6)


def test_a_coding_goes_through_json_and_back(told):
    options = make(
        told, categorical_covariates="batch", continuous_covariates="quality", covariates_keys="percent"
    ).get_params()
    coding = learn_coding(lambda key: told.obs[key], options)
    assert Coding.from_dict(coding.to_dict()) == coding


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT], ids=str)
def test_cells_without_a_category_are_counted(missing):
    values = pd.Series(["u", "v"] * 17 + [missing] * 2, dtype=object)
    for stored in (values, values.astype("category")):
        with pytest.raises(DataError, match=r"obs\['x'\] must have a value in every cell to be a covariate; 2 have"):
            read_cells(column(stored), categorical_covariates="x")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None, "high", pd.NA, 1e39], ids=str)
@pytest.mark.parametrize(
    ("option", "role"),
    [
        ("continuous_covariates", "a continuous covariate"),
        ("covariates_keys", "a covariate"),
        ("extra_features_keys", "an extra feature"),
    ],
)
def test_numbers_must_be_finite(bad, option, role):
    adata = column(pd.Series([1.0, 2.0] * 17 + [3.0, bad], dtype=object))
    with pytest.raises(DataError, match=rf"obs\['x'\] must hold finite numbers to be {role}"):
        read_cells(adata, **{option: "x"})


def test_dates_may_be_continuous_covariates_if_none_is_missing():
    dates = pd.Series(pd.date_range("2020-01-01", periods=36))
    cells = read_cells(column(dates), continuous_covariates="x")
    assert np.allclose(np.diff(cells.covariates[:, 0]), cells.covariates[1, 0] - cells.covariates[0, 0], atol=1e-6)
    dates[7] = pd.NaT
    with pytest.raises(DataError, match=r"obs\['x'\] must hold finite numbers to be a continuous covariate"):
        read_cells(column(dates), continuous_covariates="x")


@pytest.mark.parametrize("option", ["categorical_covariates", "continuous_covariates", "covariates_keys"])
def test_a_missing_covariate_suggests_the_near_column(told, option):
    with pytest.raises(DataError, match="no column of obs 'qualty'; did you mean 'quality'"):
        read_cells(told, **{option: "qualty"})


def test_measurements_named_as_categories_are_refused_with_the_option_to_use(told):
    with pytest.raises(
        DataError, match=r"obs\['quality'\] has 36 different values in 36 cells.*name it in continuous_covariates"
    ):
        read_cells(told, categorical_covariates="quality")


def test_a_category_for_every_second_cell_is_still_accepted():
    assert read_cells(column(np.arange(36) // 2), categorical_covariates="x").covariates.shape == (36, 18)
    with pytest.raises(DataError, match="19 different values in 36 cells"):
        read_cells(column(np.minimum(np.arange(36), 18)), categorical_covariates="x")


@pytest.mark.parametrize(
    "two", [("categorical_covariates", "continuous_covariates"), ("continuous_covariates", "covariates_keys")]
)
def test_a_column_named_in_two_options_is_refused(told, two):
    with pytest.raises(OptionError, match=f"named once; 'quality' is in {two[0]} and in {two[1]}"):
        make(told, **dict.fromkeys(two, "quality"))


def test_a_column_named_twice_in_one_option_is_refused(told):
    with pytest.raises(OptionError, match="named once; 'batch' is in"):
        make(told, categorical_covariates=["batch", "batch"])


# --- constant covariates --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("categorical_covariates", "one", 1),
        ("continuous_covariates", 0.1, 0),
        ("continuous_covariates", 1e9, 0),
        ("continuous_covariates", 0, 0),
        ("covariates_keys", 2.5, 2.5),
    ],
)
def test_a_constant_covariate_warns_and_does_no_harm(option, value, wanted):
    adata = column([value] * 36)
    with pytest.warns(UserWarning, match="covariate 'x' has the same value in all cells and explains nothing"):
        cells = read_cells(adata, **{option: "x"})
    np.testing.assert_allclose(cells.covariates, np.full((36, 1), wanted), atol=1e-12)
    with pytest.warns(UserWarning, match="explains nothing"):
        model = fitted_to(adata, **{option: "x"})
    assert np.isfinite(model.predict(adata).obsm["X_topic_compositions"]).all()
    assert np.isfinite(model.get_batch_effect(adata)).all()


def test_covariates_that_vary_do_not_warn(told):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_cells(told, categorical_covariates="batch", continuous_covariates="quality", covariates_keys="percent")


# --- other cells ----------------------------------------------------------------------------------


def test_other_cells_are_coded_as_the_training_cells_were(told):
    model = fitted_to(told, categorical_covariates="batch", continuous_covariates="quality")
    other = told[told.obs["batch"] == "b"].copy()  # one batch of the three, and another mean
    other.obs["quality"] *= 3
    cells = model._cells(other)
    assert np.array_equal(cells.covariates[:, :3], np.tile(np.float32([0, 1, 0]), (12, 1)))
    x, z = told.obs["quality"].to_numpy(), other.obs["quality"].to_numpy()
    np.testing.assert_allclose(cells.covariates[:, 3], np.clip((z - x.mean()) / x.std(), -10, 10), rtol=1e-6)


def test_numbers_as_categories_are_known_again_when_their_type_has_changed():
    """As when tables with missing values are joined."""
    model = fitted_to(column(np.arange(36) % 3), categorical_covariates="x")
    wanted = model._cells(column(np.arange(36) % 3)).covariates
    for other in (float, str, "category", "Int64", np.uint8):
        assert np.array_equal(model._cells(column(pd.Series(np.arange(36) % 3).astype(other))).covariates, wanted)


def test_a_category_that_was_not_trained_on_is_named_with_its_column(told):
    model = fitted_to(told, categorical_covariates="batch")
    told.obs["batch"] = ["new", "newer", "a"] * 12
    for call in (model.predict, model.score):
        with pytest.raises(
            DataError,
            match=r"obs\['batch'\] has values that the model was not trained on: new, newer \(24 cells\). "
            "It knows a, b, c. Leave these cells out, or train with them",
        ):
            call(told)
    assert "X_topic_compositions" not in told.obsm


def test_covariates_are_needed_at_predict(told):
    model = fitted_to(told, categorical_covariates="batch", continuous_covariates="quality")
    for key in ("batch", "quality"):
        with pytest.raises(DataError, match=f"no column of obs '{key}'"):
            model.predict(without(told, key))


def test_the_coding_is_saved_and_loaded(told, tmp_path):
    options = {"categorical_covariates": "batch", "continuous_covariates": "quality", "covariates_keys": "percent"}
    model = fitted_to(told, **options)
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded._fit.coding == model._fit.coding
    other = told[5:9].copy()
    assert np.array_equal(loaded._cells(other).covariates, model._cells(other).covariates)
    a, b = (m.predict(other.copy()) for m in (model, loaded))
    assert np.array_equal(a.obsm["X_topic_compositions"], b.obsm["X_topic_compositions"])
    assert np.array_equal(model.get_batch_effect(a), loaded.get_batch_effect(b))


def test_the_order_of_the_cells_does_not_matter(told):
    model = fitted_to(told, categorical_covariates="batch", continuous_covariates="quality")
    order = np.random.default_rng(0).permutation(36)
    shuffled = told[order].copy()
    assert np.array_equal(model._cells(shuffled).covariates, model._cells(told).covariates[order])
    one, two = (model.predict(a).obsm["X_topic_compositions"] for a in (told, shuffled))
    np.testing.assert_allclose(two, one[order], rtol=1e-4, atol=1e-6)
    learned = read_cells(shuffled, categorical_covariates="batch", continuous_covariates="quality").coding
    assert learned.categories == model._fit.coding.categories
    np.testing.assert_allclose(learned.scales["quality"], model._fit.coding.scales["quality"], rtol=1e-12)


def test_a_covariate_changes_the_model_and_an_unnamed_column_does_not(told):
    plain, codal = fitted_to(told), fitted_to(told, categorical_covariates="batch")
    assert same(arrays(plain), arrays(fitted_to(without(told, "batch"))))
    assert codal.network.technical is not None
    assert plain.network.technical is None
