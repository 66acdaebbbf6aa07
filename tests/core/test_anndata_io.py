"""AnnData in: what is accepted, what is refused and in which words; results out."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from mira_core.data import anndata_io
from mira_core.data.anndata_io import check_counts, open_data
from mira_core.errors import DataError, MiraError
from tests.helpers import make, make_cells, read_cells


def with_x(x: object) -> ad.AnnData:
    out = ad.AnnData(x)
    out.obs_names = [f"cell{i}" for i in range(out.n_obs)]
    out.var_names = [f"gene{j}" for j in range(out.n_vars)]
    return out


def refused(adata: ad.AnnData, message: str, **options: object) -> str:
    """Check that training refuses with a DataError, before any training, and leaves no model."""
    model = make(adata, **options)
    with pytest.raises(DataError, match=message) as told:
        next(model.fit_records(adata))
    assert model.network is None
    return str(told.value)


# --- opening --------------------------------------------------------------------------------------


def test_an_anndata_is_returned_as_it_is(tiny):
    assert open_data(tiny) is tiny


@pytest.mark.parametrize("as_path", [str, lambda p: p])
def test_a_path_is_read(tiny, tmp_path, as_path):
    tiny.write_h5ad(tmp_path / "a.h5ad")
    assert (open_data(as_path(tmp_path / "a.h5ad")).X != tiny.X).nnz == 0


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nothing\.h5ad"):
        open_data(tmp_path / "nothing.h5ad")


def test_a_folder_of_anything_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no data set: it has neither matrix.mtx"):
        open_data(tmp_path)


def test_another_kind_of_file_is_refused_by_name(tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"must be \.h5ad, .*; got a\.csv\. Read it by"):
        open_data(tmp_path / "a.csv")


def test_a_damaged_file_is_named(tmp_path, tiny):
    tiny.write_h5ad(tmp_path / "a.h5ad")
    whole = (tmp_path / "a.h5ad").read_bytes()
    for name, data in {
        "text.h5ad": b"hello",
        "torn.h5ad": whole[: len(whole) // 2],
        "empty.h5ad": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(
            DataError, match=rf"{name} (is no HDF5 file|cannot be read: it is cut off|cannot be read as \.h5ad: .)"
        ):
            open_data(tmp_path / name)


@pytest.mark.parametrize("data", [None, np.ones((2, 2)), 3], ids=lambda d: type(d).__name__)
def test_other_objects_are_refused_by_type(data):
    with pytest.raises(
        DataError, match=f"AnnData, the path of an .h5ad file or of a folder .*; got {type(data).__name__}"
    ):
        open_data(data)


def test_data_errors_are_value_errors():
    assert issubclass(DataError, ValueError)
    assert issubclass(DataError, MiraError)


# --- missing names --------------------------------------------------------------------------------


def test_a_missing_layer_suggests_the_near_one(tiny):
    tiny.layers["counts"] = tiny.X
    refused(tiny, "no layer 'count'; did you mean 'counts'", counts_layer="count")
    refused(tiny, "no layer 'zzz'. There are: counts", counts_layer="zzz")


def test_a_missing_layer_says_when_there_are_none(tiny):
    refused(tiny, "no layer 'counts'. There are: none", counts_layer="counts")


@pytest.mark.parametrize("option", ["highly_variable_key", "exogenous_key", "endogenous_key"])
def test_a_missing_column_of_var_suggests_the_near_one(tiny, option):
    tiny.var["highly_variable"] = True
    message = "no column of var 'highly_varable'; did you mean 'highly_variable'"
    refused(tiny, message, **{option: "highly_varable"})


def test_a_missing_column_of_obs_suggests_the_near_one(tiny):
    tiny.obs["frip"] = 1.0
    refused(tiny, "no column of obs 'fripp'; did you mean 'frip'", extra_features_keys="fripp")


def test_a_data_set_without_x_says_which_option_names_a_layer(tiny):
    bare = ad.AnnData(obs=tiny.obs, var=tiny.var, layers={"counts": tiny.X})
    refused(bare, "has no X; name the layer with raw counts by counts_layer")
    read_cells(bare, counts_layer="counts")


# --- counts that are none -------------------------------------------------------------------------

STORED = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix, "csr_array": sp.csr_array}


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "must hold counts; it has NaN or infinite values"),
        (np.inf, "must hold counts; it has NaN or infinite values"),
        (-np.inf, "must hold counts; it has NaN or infinite values"),
        (-1.0, "must hold raw counts; it has negative values such as -1. If another layer .* counts_layer"),
        (-0.5, "must hold raw counts; it has negative values such as -0.5"),
        (
            1.25,
            r"whole numbers; it has fractions such as 1.25 \(1 of .*looks normalised or logged.*counts_layer",
        ),
        (2.0**24 + 2, r"has a count of 1.678e\+07; counts above 2\^24 are not held exactly"),
    ],
)
def test_wrong_counts_are_refused_by_what_is_wrong(tiny, stored, value, message):
    x = tiny.X.toarray().astype(float)
    x[3, 2] = value
    assert refused(with_x(stored(x)), message).startswith("X ")
    layered = tiny.copy()
    layered.layers["raw"] = stored(x)
    assert refused(layered, message, counts_layer="raw").startswith("layer 'raw' ")


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_negative_integers_are_refused(dtype):
    x = np.ones((5, 4), dtype)
    x[0, 0] = -2
    refused(with_x(x), "X must hold raw counts; it has negative values such as -2")


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.uint64, np.float64])
def test_counts_too_large_to_hold_are_refused_in_every_dtype(dtype):
    x = np.ones((5, 4), dtype)
    x[0, 0] = 2**24 + 1
    refused(with_x(x), "counts above 2^24 are not held exactly".replace("^", r"\^"))
    x[0, 0] = 2**24
    assert read_cells(with_x(x)).counts.stored.data.max() == 2**24


@pytest.mark.parametrize("values", [np.array(["1", "2"]), np.array([1, 2], object), np.array([1j])])
def test_values_that_are_no_numbers_are_refused_by_type(values):
    with pytest.raises(DataError, match=f"X must hold numbers; got {re.escape(str(values.dtype))}"):
        check_counts(values, "X")


def test_wrong_values_outside_the_selected_features_do_not_matter(tiny):
    x = tiny.X.toarray().astype(float)
    x[:, 0] = np.nan
    adata = with_x(x)
    adata.var["chosen"] = np.arange(7) > 0
    assert read_cells(adata, highly_variable_key="chosen").counts.shape == (12, 6)


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_whole_numbers_of_any_dtype_and_storage_give_the_same_counts(stored, dtype):
    x = make_cells(20, 9).X.toarray().clip(0, 1)
    got = read_cells(with_x(stored(x.astype(dtype)))).counts
    assert np.array_equal(got.to_csr().toarray(), x)
    assert got.stored.data.dtype == np.float32


def test_dense_half_precision_is_read():
    x = make_cells(20, 9).X.toarray()
    assert np.array_equal(read_cells(with_x(x.astype(np.float16))).counts.to_csr().toarray(), x)


# --- selection of features ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        np.array([True, False] * 3 + [True]),
        np.array([1, 0] * 3 + [1]),
        np.array([1.0, 0.0] * 3 + [1.0]),
        np.array([True, False] * 3 + [True], object),
        pd.Categorical([True, False] * 3 + [True]),
        pd.array([True, False] * 3 + [True], dtype="boolean"),
    ],
    ids=lambda v: str(v.dtype),
)
@pytest.mark.parametrize("option", ["highly_variable_key", "exogenous_key"])
def test_flags_of_any_kind_select_features(tiny, values, option):
    tiny.var["chosen"] = values
    cells = read_cells(tiny, **{option: "chosen"})
    assert list(cells.features) == ["gene0", "gene2", "gene4", "gene6"]
    assert cells.endogenous.all()
    assert np.array_equal(cells.counts.to_csr().toarray(), tiny.X.toarray()[:, ::2])


@pytest.mark.parametrize(
    "values", [["yes", "no"] * 3 + ["yes"], [0.5] * 7, [2] * 7, [np.nan, 1.0] * 3 + [1.0], ["True"] * 7]
)
def test_columns_that_are_no_flags_are_refused_with_an_example(tiny, values):
    tiny.var["chosen"] = values
    refused(tiny, r"var\['chosen'\] must mark features by True and False; got", highly_variable_key="chosen")


@pytest.mark.parametrize(
    ("values", "example"),
    [
        ([True] * 6 + [np.nan], "nan"),
        (pd.array([True] * 6 + [None], dtype="boolean"), "<NA>"),
        ([1] * 6 + [3], "3"),
        (["True"] * 7, "'True'"),
        (pd.Categorical(["no"] * 6 + ["yes"]), "'no'"),
    ],
    ids=["NaN", "NA", "number", "text", "categories"],
)
def test_the_example_is_of_what_is_no_flag(tiny, values, example):
    tiny.var["chosen"] = values
    refused(tiny, rf"got values like {example}$", highly_variable_key="chosen")


@pytest.mark.parametrize("n", [0, 1])
def test_at_least_two_features_must_be_selected(tiny, n):
    tiny.var["chosen"] = np.arange(7) < n
    refused(
        tiny,
        rf"at least 2 features must be selected; var\['chosen'\] selects {n}",
        highly_variable_key="chosen",
    )


def test_a_data_set_of_one_feature_is_refused_without_naming_a_column():
    text = refused(with_x(np.ones((5, 1))), "at least 2 features")
    assert "None" not in text


def test_the_encoder_sees_only_endogenous_features(tiny):
    tiny.var["chosen"] = np.arange(7) >= 2
    tiny.var["seen"] = np.arange(7) % 2 == 0
    with pytest.warns(UserWarning, match=r"1 features of var\['seen'\] are not among the modelled ones"):
        cells = read_cells(tiny, highly_variable_key="chosen", endogenous_key="seen")
    assert list(cells.features[cells.endogenous]) == ["gene2", "gene4", "gene6"]


def test_no_endogenous_feature_is_refused(tiny):
    tiny.var["seen"] = False
    refused(tiny, r"the encoder has no features with counts: var\['seen'\] selects 0", endogenous_key="seen")


def test_endogenous_features_without_counts_are_refused(tiny):
    x = tiny.X.toarray()
    x[:, :2] = 0
    adata = with_x(x + np.eye(12, 7, 3, dtype=int) + 0)
    adata.X[:, :2] = 0
    adata.X[:, 6] = 1
    adata.var["seen"] = np.arange(7) < 2
    refused(adata, r"no features with counts: var\['seen'\] selects 2", endogenous_key="seen")


# --- cells ----------------------------------------------------------------------------------------


def test_empty_cells_are_refused_by_name(tiny):
    x = tiny.X.toarray()
    x[[2, 5]] = 0
    refused(with_x(x), "2 have none: cell2, cell5. Remove them, for example with scanpy.pp.filter_cells")
    x[3:] = 0
    refused(with_x(x), "have none: cell2, cell3, cell4, cell5, cell6 and 5 more")


def test_cells_empty_in_the_selected_features_are_refused(tiny):
    x = tiny.X.toarray()
    x[4, :3] = 0
    x[4, 6] = 5
    adata = with_x(x)
    adata.var["chosen"] = np.arange(7) < 3
    refused(adata, "counts in the modelled features; .* none: .*cell4", highly_variable_key="chosen")


def test_counts_that_are_all_zero_are_refused_as_empty_cells():
    refused(with_x(np.zeros((5, 4))), "every cell must have counts in the modelled features; 5 have none")


def test_a_single_cell_is_too_few_and_so_are_none(tiny):
    tiny.obs["a"] = 1.0
    for n in (0, 1):
        for options in ({}, {"continuous_covariates": "a"}):
            with pytest.raises(DataError, match=f"at least 2 cells are needed to train; got {n}"):
                make(tiny, **options).fit_records(tiny[:n].copy())


def test_repeated_feature_names_are_refused_and_say_what_to_call(tiny):
    tiny.var_names = ["a", "a", "b", "c", "d", "d", "e"]
    refused(tiny, r"must be unique; a, d repeat. Call adata.var_names_make_unique\(\)")
    tiny.var["chosen"] = [True, False, True, True, True, False, True]
    assert list(read_cells(tiny, highly_variable_key="chosen").features) == ["a", "b", "c", "d", "e"]


def test_repeated_cell_names_do_not_matter(tiny):
    tiny.obs_names = ["same"] * 12
    assert len(read_cells(tiny)) == 12


# --- extra features -------------------------------------------------------------------------------


def test_extra_features_are_used_as_they_are(tiny):
    tiny.obs["a"] = np.arange(12) * 10.0
    tiny.obs["b"] = np.arange(12) % 2 == 0
    cells = read_cells(tiny, extra_features_keys=["b", "a"])
    assert np.array_equal(cells.extra, np.c_[np.arange(12) % 2 == 0, np.arange(12) * 10].astype(np.float32))
    assert read_cells(tiny).extra.shape == (12, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, "high", None])
def test_extra_features_must_be_finite_numbers(tiny, bad):
    tiny.obs["a"] = pd.Series([1.0] * 11 + [bad], index=tiny.obs_names, dtype=object)
    refused(tiny, r"obs\['a'\] must hold finite numbers to be an extra feature", extra_features_keys="a")


@pytest.mark.filterwarnings("ignore:overflow")
def test_extra_features_beyond_single_precision_are_refused(tiny):
    tiny.obs["a"] = [1e300] * 12
    refused(tiny, r"obs\['a'\] must hold finite numbers", extra_features_keys="a")


# --- backed and views -----------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_backed_data_give_the_same_counts(tiny, tmp_path, stored):
    x = tiny.X.toarray().astype(np.float32)
    with_x(stored(x)).write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    try:
        backed.var["chosen"] = np.arange(7) != 3
        cells = read_cells(backed, highly_variable_key="chosen")
        assert np.array_equal(cells.counts.to_csr().toarray(), np.delete(x, 3, axis=1))
    finally:
        backed.file.close()


@pytest.mark.parametrize("layer", [None, "raw"])
def test_backed_data_without_x_say_so_or_are_read_from_a_layer(tiny, tmp_path, layer):
    bare = ad.AnnData(obs=tiny.obs, var=tiny.var, layers={"raw": tiny.X})
    bare.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    if layer is None:
        refused(backed, "has no X; name the layer with raw counts by counts_layer")
    else:
        assert np.array_equal(read_cells(backed, counts_layer=layer).counts.to_csr().toarray(), tiny.X.toarray())


def test_reading_changes_nothing_in_the_data(tiny):
    before = tiny.copy()
    read_cells(tiny)
    assert (before.X != tiny.X).nnz == 0
    assert before.X.dtype == tiny.X.dtype
    assert list(before.obs.columns) == list(tiny.obs.columns)


# --- results --------------------------------------------------------------------------------------


def test_topics_replace_those_of_an_earlier_model_and_nothing_else(tiny):
    tiny.obs["topic_7"], tiny.obs["topic_name"], tiny.obs["kind"] = 1.0, "x", pd.Categorical(["a"] * 12)
    theta = np.full((12, 3), 1 / 3, np.float32)
    anndata_io.write_topics(tiny, theta, np.zeros((12, 2)))
    assert list(tiny.obs.columns) == ["topic_name", "kind", "topic_0", "topic_1", "topic_2"]
    assert isinstance(tiny.obs["kind"].dtype, pd.CategoricalDtype)
    assert np.array_equal(tiny.obsm["X_topic_compositions"], theta)


def test_values_of_features_go_to_their_names_and_others_are_nan(tiny):
    anndata_io.write_features(tiny, np.array(["gene4", "gene1"]), "w", np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert tiny.varm["w"].shape == (7, 3)
    assert np.array_equal(tiny.varm["w"][[4, 1]], [[1, 3, 5], [2, 4, 6]])
    assert np.isnan(tiny.varm["w"][[0, 2, 3, 5, 6]]).all()


# --- real files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.5.0", "0.7.0", "0.7.8", "0.11.4"])
def test_files_of_old_anndata_open_and_fit_or_say_what_is_wrong(shared_data, version):
    adata = open_data(shared_data / "fixtures" / "anndata" / f"v{version}.h5ad")
    for layer in (None, *adata.layers):
        try:
            next(make(adata, counts_layer=layer, num_topics=2).fit_records(adata))
        except DataError as problem:
            assert len(str(problem)) > 20  # noqa: PT017


def test_a_real_file_of_counts_is_read_exactly(shared_data):
    adata = open_data(shared_data / "pbmc3k_hvg2000.h5ad")
    cells = read_cells(adata)
    assert cells.counts.shape == (2638, 2000)
    assert np.array_equal(cells.counts.depths(), np.asarray(adata.X.sum(1)).ravel())
