"""Data sets on the disk: written as the cells are, read as the cells would be, whole or absent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from mira_core.data import anndata_io, on_disk
from mira_core.data.anndata_io import StreamedCounts, open_data
from mira_core.data.file_array import FileArray
from mira_core.data.on_disk import OnDiskDataset
from mira_core.errors import DataError, OptionError
from tests.helpers import FAMILIES, arrays, make, make_cells, same, with_columns

FAST = {"feature_type": "accessibility", "atac_encoder": "fast"}
CODAL = {"categorical_covariates": "batch", "continuous_covariates": "quality", "extra_features_keys": "extra"}


@pytest.fixture
def told() -> ad.AnnData:
    """40 cells of 18 features, with columns for covariates and features to choose."""
    adata = with_columns(make_cells(40, 18))
    adata.var["chosen"], adata.var["seen"] = np.arange(18) % 4 != 1, np.arange(18) < 12
    return adata


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """A few cells, or two features, at a time."""
    monkeypatch.setattr(anndata_io, "CHUNK_VALUES", 100)


def stored(path: Path) -> np.ndarray:
    return OnDiskDataset(path).counts().to_csr().toarray()


def refused(call, message: str) -> str:
    with pytest.raises(DataError, match=message) as told:
        call()
    return str(told.value)


# --- writing --------------------------------------------------------------------------------------

STORED = {
    "csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray, "csr array": sp.csr_array,
    "csr float": lambda x: sp.csr_matrix(x.astype(np.float32)), "csc double": lambda x: sp.csc_matrix(x.astype(float)),
    "dense float": lambda x: x.astype(np.float32), "dense int64": lambda x: x.astype(np.int64),
    "csr uint16": lambda x: sp.csr_matrix(x.astype(np.uint16)),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, FAST], ids=["expression", "accessibility"])
@pytest.mark.parametrize("where", ["X", "layer"])
@pytest.mark.parametrize("kind", ["memory", "file", "backed"])
@pytest.mark.parametrize("convert", STORED.values(), ids=STORED)
@pytest.mark.usefixtures("small_chunks")
def test_the_counts_of_any_source_are_written_exactly(told, tmp_path, convert, kind, where, options):
    x = told.X.toarray()
    adata = ad.AnnData(convert(x), obs=told.obs, var=told.var)
    if where == "layer":
        adata.layers["raw"] = convert(x)
        adata.X = np.full(x.shape, 0.5, np.float32)
    model = make(adata, **options, counts_layer="raw" if where == "layer" else None)
    data: ad.AnnData | Path = adata
    if kind != "memory":
        adata.write_h5ad(tmp_path / "a.h5ad")
        data = tmp_path / "a.h5ad"
    if kind == "backed":
        data = ad.read_h5ad(data, backed="r")
    model.write_ondisk_dataset(data, tmp_path / "set")
    if kind == "backed":
        data.file.close()
    assert np.array_equal(stored(tmp_path / "set"), x > 0 if options else x)
    assert OnDiskDataset(tmp_path / "set").shape == (40, 18)
    assert sorted(os.listdir(tmp_path / "set")) == [
        "cells.h5ad", "dataset.json", "indices.i32", "starts.i64", "values.f32",
    ]  # fmt: skip


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_compressed_files_are_read(told, tmp_path, convert, compression):
    adata = ad.AnnData(convert(told.X.toarray()), obs=told.obs, var=told.var)
    adata.write_h5ad(tmp_path / "a.h5ad", compression=compression)
    make(told).write_ondisk_dataset(str(tmp_path / "a.h5ad"), str(tmp_path / "set"))
    assert np.array_equal(stored(tmp_path / "set"), told.X.toarray())


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.usefixtures("small_chunks")
def test_some_cells_and_features_of_data_are_written_as_such(told, tmp_path, convert, on_disk):
    x = told.X.toarray()
    adata = ad.AnnData(convert(x), obs=told.obs, var=told.var)
    adata.write_h5ad(tmp_path / "a.h5ad")
    whole = ad.read_h5ad(tmp_path / "a.h5ad", backed="r" if on_disk else None)
    rows, columns = np.array([31, 2, 30, 5, 4, 17]), np.array([9, 3, 4, 12])
    for name, part, wanted in [
        ("some cells", whole[rows], x[rows]),
        ("some features", whole[:, columns], x[:, columns]),
        ("both", whole[5:20, columns], x[5:20, columns]),
    ]:
        make(part).write_ondisk_dataset(part, tmp_path / "set")
        assert np.array_equal(stored(tmp_path / "set"), wanted), name
        train, test = make(part).train_test_split(part)
        assert train.n_obs + test.n_obs == len(wanted)


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.usefixtures("small_chunks")
def test_chosen_features_are_written_and_the_encoders_are_marked(told, tmp_path, convert, as_file):
    adata = data = ad.AnnData(convert(told.X.toarray()), obs=told.obs, var=told.var)
    if as_file:
        data = tmp_path / "a.h5ad"
        adata.write_h5ad(data)
    model = make(told, highly_variable_key="chosen", endogenous_key="seen")
    with pytest.warns(UserWarning, match="3 features .* are not among the modelled ones"):
        model.write_ondisk_dataset(data, tmp_path / "set")
    chosen = told.var["chosen"].to_numpy()
    assert np.array_equal(stored(tmp_path / "set"), told.X.toarray()[:, chosen])
    selection = OnDiskDataset(tmp_path / "set").selection()
    assert list(selection.features) == list(told.var_names[chosen])
    assert np.array_equal(selection.endogenous, told.var["seen"][chosen])
    table = OnDiskDataset(tmp_path / "set").table()
    pd.testing.assert_frame_equal(table.obs, told.obs, check_dtype=False, check_categorical=False)
    assert list(table.var.columns) == ["chosen", "seen", "endogenous"]


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix], ids=["csr", "csc"])
@pytest.mark.parametrize("as_file", [True, False])
def test_explicit_zeros_and_unsorted_columns_do_not_matter_and_the_data_stay_as_they_were(
    told, tmp_path, convert, as_file
):
    m = convert(told.X.astype(np.float32))
    m.data[::5] = 0
    for i in range(len(m.indptr) - 1):
        part = slice(m.indptr[i], m.indptr[i + 1])
        m.indices[part], m.data[part] = m.indices[part][::-1].copy(), m.data[part][::-1].copy()
    m.has_sorted_indices = False
    x = m.toarray()
    keep = x.sum(1) > 0
    assert keep.all()
    before = [a.copy() for a in (m.data, m.indices, m.indptr)]
    adata = data = ad.AnnData(m, obs=told.obs, var=told.var)
    if as_file:
        data = tmp_path / "a.h5ad"
        adata.write_h5ad(data)
    columns = adata.obs.dtypes.to_dict()
    for options in ({}, FAST):
        make(told, **options).write_ondisk_dataset(data, tmp_path / "set")
        assert np.array_equal(stored(tmp_path / "set"), x > 0 if options else x)
    assert all(
        np.array_equal(a, b) for a, b in zip(before, (adata.X.data, adata.X.indices, adata.X.indptr), strict=True)
    )
    assert adata.obs.dtypes.to_dict() == columns


@pytest.mark.filterwarnings("error")
def test_files_of_old_anndata_are_written_or_refused_in_words(shared_data, tmp_path):
    for path in sorted((shared_data / "fixtures" / "anndata").glob("*.h5ad")):
        adata = open_data(path)
        for layer in (None, *adata.layers):
            model = make(adata, counts_layer=layer, num_topics=2)
            try:
                model.write_ondisk_dataset(path, tmp_path / "set")
            except DataError as problem:
                assert len(str(problem)) > 30  # noqa: PT017
            else:
                matrix = adata.X if layer is None else adata.layers[layer]
                assert np.array_equal(stored(tmp_path / "set"), matrix.toarray())


def test_a_real_file_is_written_exactly(shared_data, tmp_path):
    path = shared_data / "atac_leukemia391.h5ad"
    adata = open_data(path)
    make(adata, **FAST).write_ondisk_dataset(path, tmp_path / "set")
    assert (OnDiskDataset(tmp_path / "set").counts().to_csr() != sp.csr_array(adata.X > 0)).nnz == 0


# --- in place of the AnnData ----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["expression", "CODAL", "fast", "skipDAN", "process"])
@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix], ids=["csr", "csc"])
@pytest.mark.usefixtures("small_chunks")
def test_fitting_to_the_folder_is_fitting_to_the_cells_bit_for_bit(told, tmp_path, family, convert):
    options = {**FAMILIES[family], "extra_features_keys": "extra", "highly_variable_key": "chosen", "num_epochs": 2}
    ad.AnnData(convert(told.X), obs=told.obs, var=told.var).write_h5ad(tmp_path / "a.h5ad")
    one, two = make(told, **options), make(told, **options)
    two.write_ondisk_dataset(tmp_path / "a.h5ad", tmp_path / "set")
    one.fit(told, progress=False)
    two.fit(tmp_path / "set", progress=False)
    assert same(arrays(one), arrays(two))
    assert [r.loss for r in one.history] == [r.loss for r in two.history]
    assert (two.features == one.features).all()
    assert two._fit.coding == one._fit.coding


@pytest.mark.parametrize("options", [CODAL, {**CODAL, **FAST}], ids=["CODAL", "fast"])
def test_every_method_takes_the_folder(told, tmp_path, options):
    model = make(told, **options, num_epochs=2).fit(told, progress=False)
    path = tmp_path / "set"
    model.write_ondisk_dataset(told, path)
    known = model.predict(told.copy())
    for data in (path, str(path), OnDiskDataset(path)):
        out = model.predict(data)
        for name in ("X_topic_compositions", "X_umap_features"):
            assert np.array_equal(out.obsm[name], known.obsm[name])
        assert np.array_equal(out.obs["topic_2"], known.obs["topic_2"])
        assert list(out.obs_names) == list(told.obs_names)
        assert np.array_equal(out.varm["topic_feature_activations"], known.varm["topic_feature_activations"])
        assert model.score(data) == model.score(told)
    for name in ("impute", "get_batch_effect", "get_umap_features", "get_hierarchical_umap_features"):
        assert np.array_equal(getattr(model, name)(path), getattr(model, name)(known)), name
    assert model.impute(out).shape == (40, 18)


def test_learning_rates_are_tested_on_the_folder_as_on_the_cells(cells, tmp_path):
    one, two = make(cells), make(cells)
    two.write_ondisk_dataset(cells, tmp_path / "set")
    bounds = one.get_learning_rate_bounds(cells, num_steps=24, eval_every=1, progress=False)
    assert two.get_learning_rate_bounds(tmp_path / "set", num_steps=24, eval_every=1, progress=False) == bounds


def test_a_data_set_of_a_fitted_model_has_its_features_in_its_order(fitted, cells, tmp_path):
    rng = np.random.default_rng(0)
    extra = ad.AnnData(sp.csr_matrix(rng.poisson(5, (300, 9))), obs=cells.obs)
    extra.var_names = [f"other{i}" for i in range(9)]
    wide = ad.concat([cells, extra], axis=1)[:, rng.permutation(129)].copy()
    fitted.write_ondisk_dataset(wide, tmp_path / "set")
    wanted = fitted.predict(cells.copy()).obsm["X_topic_compositions"]
    assert np.array_equal(fitted.predict(tmp_path / "set").obsm["X_topic_compositions"], wanted)
    assert np.array_equal(fitted.predict(tmp_path / "set").var_names, fitted.features)


def test_csc_files_in_another_order_than_the_fitted_models_are_refused_with_what_to_do(fitted, cells, tmp_path):
    other = ad.AnnData(sp.csc_matrix(cells.X), obs=cells.obs, var=cells.var)[:, ::-1].copy()
    other.write_h5ad(tmp_path / "a.h5ad")
    message = "counts by feature .CSC., in another order than the model's features; write it as CSR first"
    refused(lambda: fitted.write_ondisk_dataset(tmp_path / "a.h5ad", tmp_path / "set"), message)
    assert os.listdir(tmp_path) == ["a.h5ad"]
    other.X = sp.csr_matrix(other.X)
    other.write_h5ad(tmp_path / "a.h5ad")
    fitted.write_ondisk_dataset(tmp_path / "a.h5ad", tmp_path / "set")
    wanted = fitted.predict(cells).obsm["X_topic_compositions"]
    assert np.array_equal(fitted.predict(tmp_path / "set").obsm["X_topic_compositions"], wanted)


def test_few_cells_of_one_batch_are_written_for_a_fitted_model_and_unknown_batches_refused(told, tmp_path):
    """Their own coding would be a constant, or of too many categories for so few cells; the model's counts."""
    told.obs["batch"] = [f"batch {i % 4}" for i in range(40)]
    model = make(told, **CODAL, num_epochs=1).fit(told, progress=False)
    wanted = model.predict(told.copy()).obsm["X_topic_compositions"]
    for rows in (slice(0, 4), slice(3, 4)):
        model.write_ondisk_dataset(told[rows].copy(), tmp_path / "set")
        got = model.predict(tmp_path / "set").obsm["X_topic_compositions"]
        np.testing.assert_allclose(got, wanted[rows], rtol=1e-4, atol=1e-6)
    told.obs["batch"] = "new"
    refused(lambda: model.write_ondisk_dataset(told, tmp_path / "other"), "not trained on: new")
    assert not (tmp_path / "other").exists()


def test_takes_of_takes_are_rows_of_the_whole(told, tmp_path):
    make(told).write_ondisk_dataset(told, tmp_path / "set")
    whole = OnDiskDataset(tmp_path / "set")
    first = whole.take(np.array([30, 2, 17, 5, 30]))
    second = first.take(np.array([4, 1, 1]))
    for part, rows in ((first, [30, 2, 17, 5, 30]), (second, [30, 2, 2])):
        assert len(part) == len(rows)
        assert np.array_equal(part.counts().to_csr().toarray(), told.X.toarray()[rows])
        assert np.array_equal(part.column("quality"), told.obs["quality"].iloc[rows])
    assert list(whole.take(np.array([3, 1])).table().obs_names) == ["cell3", "cell1"]
    assert list(whole.take(np.arange(40) > 37).table().obs_names) == ["cell38", "cell39"]
    assert list(first.take([0, 3]).table().obs_names) == ["cell30", "cell5"]


def test_columns_of_any_name_and_type_are_read_back(told, tmp_path):
    told.obs["Spänder nr. 基"] = pd.Categorical([1, 2] * 20)
    told.obs["flag"] = pd.array([True, False] * 20, dtype="boolean")
    told.obs_names = ["same"] * 40
    options = {
        "continuous_covariates": "quality",
        "categorical_covariates": ["Spänder nr. 基", "flag"],
        "num_epochs": 1,
    }
    model = make(told, **options)
    model.write_ondisk_dataset(told, tmp_path / "set")
    one, two = make(told, **options).fit(told, progress=False), model.fit(tmp_path / "set", progress=False)
    assert same(arrays(one), arrays(two))
    assert two.predict(tmp_path / "set").n_obs == 40


@pytest.mark.filterwarnings("ignore:Forward slashes")
def test_a_column_with_a_slash_in_its_name_is_read_back_or_refused_when_writing(told, tmp_path):
    """Anndata is about to refuse such names."""
    told.obs["percent/mt"] = np.linspace(0, 1, 40)
    model = make(told, continuous_covariates="percent/mt", num_epochs=1)
    try:
        model.write_ondisk_dataset(told, tmp_path / "set")
    except DataError as problem:
        assert "cannot be written" in str(problem)  # noqa: PT017
    else:
        model.fit(tmp_path / "set", progress=False)
        assert model.score(tmp_path / "set") == model.score(told)


# --- in little memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
@pytest.mark.parametrize(("layer", "backed"), [(None, False), ("raw", False), (None, True)])
def test_a_file_is_read_some_cells_or_features_at_a_time(told, tmp_path, monkeypatch, convert, layer, backed):
    x = told.X.toarray()
    adata = ad.AnnData(convert(x), obs=told.obs, var=told.var, layers={"raw": convert(x)})
    adata.write_h5ad(tmp_path / "a.h5ad")
    data = ad.read_h5ad(tmp_path / "a.h5ad", backed="r") if backed else tmp_path / "a.h5ad"
    monkeypatch.setattr(anndata_io, "CHUNK_VALUES", 130)
    monkeypatch.setattr(ad, "read_h5ad", None)
    source = StreamedCounts(data, layer)
    chunks = [c.toarray() if sp.issparse(c) else c for c in source.chunks()]
    source.close()
    if convert is sp.csc_matrix:
        assert source.by_column
        assert [c.shape for c in chunks] == [(40, 3)] * 6
        assert np.array_equal(np.hstack(chunks), x)
    else:
        assert not source.by_column
        assert [c.shape for c in chunks] == [(7, 18)] * 5 + [(5, 18)]
        assert np.array_equal(np.vstack(chunks), x)


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
def test_writing_takes_little_memory(tmp_path, monkeypatch, convert):
    x = np.random.default_rng(0).poisson(1, (6000, 200)).astype(np.float32)
    x[:, 0] += 1
    ad.AnnData(convert(x)).write_h5ad(tmp_path / "a.h5ad")
    model = make(ad.AnnData(np.ones((6000, 200))))
    monkeypatch.setattr(anndata_io, "CHUNK_VALUES", 2**15)
    model.write_ondisk_dataset(tmp_path / "a.h5ad", tmp_path / "warm")
    tracemalloc.start()
    try:
        model.write_ondisk_dataset(tmp_path / "a.h5ad", tmp_path / "set")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 2
    assert (OnDiskDataset(tmp_path / "set").counts().to_csr() != sp.csr_array(x)).nnz == 0


def test_minibatches_are_right_and_nothing_is_mapped(tmp_path):
    x = np.random.default_rng(0).poisson(1, (3000, 150))
    x[:, 0] += 1
    adata = ad.AnnData(sp.csr_matrix(x))
    make(adata).write_ondisk_dataset(adata, tmp_path / "set")
    counts = OnDiskDataset(tmp_path / "set").counts()
    for rows in [*np.random.default_rng(1).permutation(3000).reshape(-1, 250), np.arange(3000), [7, 7, 8, 2], []]:
        got = counts.rows(np.array(rows, int))
        assert np.array_equal(got.toarray(), x[np.array(rows, int)])
    assert np.array_equal(counts.depths(), x.sum(1))
    if Path("/proc/self/maps").exists():
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_cells_that_lie_together_are_read_at_once(tmp_path):
    x = np.arange(20, dtype=np.int32)
    x.tofile(tmp_path / "x")
    array = FileArray(tmp_path / "x", x.dtype)
    reads = []
    array._read_into = lambda target, read=array._read_into: (reads.append(len(target) // 4), read(target))
    starts, lengths = np.array([0, 3, 3, 7, 12, 0]), np.array([3, 0, 4, 2, 1, 2])
    assert array.gather(starts, lengths).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 0, 1]
    assert reads == [9, 1, 2]
    assert len(array) == 20
    with pytest.raises(OSError, match="ends too early"):
        array.gather(np.array([19]), np.array([2]))


# --- what is refused when reading -----------------------------------------------------------------


@pytest.fixture
def folder(told, tmp_path) -> Path:
    """A whole data set."""
    make(told).write_ondisk_dataset(told, tmp_path / "set")
    return tmp_path / "set"


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def edit_manifest(folder: Path, **values: object) -> None:
    manifest = {**json.loads((folder / "dataset.json").read_text()), **values}
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in manifest.items() if v != "gone"}))


def test_a_folder_that_is_missing_or_a_file_is_named(tmp_path, told):
    refused(lambda: OnDiskDataset(tmp_path / "nothing"), "there is no folder .*nothing")
    (tmp_path / "file").write_text("x")
    refused(lambda: OnDiskDataset(tmp_path / "file"), "file is a file")
    refused(lambda: make(told).fit(tmp_path / "nothing"), "there is no file .*nothing")


def test_a_folder_of_something_else_is_not_read(told, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    message = "photos is not a data set of write_ondisk_dataset: it has no dataset.json"
    refused(lambda: make(told).fit(tmp_path / "photos"), message)


def test_a_half_written_folder_says_so(folder):
    (folder / "dataset.json").unlink()
    refused(lambda: OnDiskDataset(folder), "was not written to its end: it has no dataset.json. Delete it and write")


@pytest.mark.parametrize("name", ["starts.i64", "indices.i32", "values.f32"])
def test_missing_cut_and_grown_files_are_named_with_their_sizes(folder, name):
    whole = (folder / name).read_bytes()
    for data in (whole[:-4], whole + b"\0", b""):
        (folder / name).write_bytes(data)
        message = f"is not whole: {name} should have {len(whole):,} bytes and has {len(data):,}. Copy or write it anew"
        refused(lambda message=message: OnDiskDataset(folder), message)
    (folder / name).unlink()
    refused(lambda: OnDiskDataset(folder), f"is not whole: {name} .* and has 0")


def test_a_missing_or_cut_table_of_cells_is_named(folder):
    whole = (folder / "cells.h5ad").read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"text"):
        (folder / "cells.h5ad").write_bytes(data)
        refused(lambda: OnDiskDataset(folder), "is not whole: cells.h5ad")
    (folder / "cells.h5ad").unlink()
    refused(lambda: OnDiskDataset(folder), "is not whole: cells.h5ad")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "{}", "\xff"])
def test_a_damaged_manifest_is_named(folder, text):
    (folder / "dataset.json").write_bytes(text.encode("latin1"))
    refused(lambda: OnDiskDataset(folder), "dataset.json is damaged: .*Write the data set anew")


@pytest.mark.parametrize("key", ["format", "n_cells", "n_features", "n_counts", "options"])
@pytest.mark.parametrize("value", ["gone", "x", None, 0.5, [1], {}], ids=str)
def test_a_manifest_of_wrong_content_is_refused(folder, key, value):
    edit_manifest(folder, **{key: value})
    refused(lambda: OnDiskDataset(folder), "is damaged|has format")


@pytest.mark.parametrize("found", [2, 99])
def test_a_newer_format_says_to_update(folder, found):
    edit_manifest(folder, format=found)
    refused(lambda: OnDiskDataset(folder), f"has format {found}; this version reads up to 1. Update mira")


@pytest.mark.parametrize(
    "options", [{"highly_variable_key": "chosen"}, {"endogenous_key": "seen"}, {"counts_layer": "raw"}, FAST],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_a_data_set_written_with_other_options_is_not_trained_on(told, folder, options):
    key = next(iter(options))
    old = "expression" if key == "feature_type" else None
    message = f"was written with {key}={old!r}, and the model has {key}={options[key]!r}. Write it anew"
    refused(lambda: make(told, **options).fit(folder), message)


def test_both_names_of_the_option_that_chooses_features_mean_the_same(told, tmp_path):
    one, two = make(told, highly_variable_key="chosen"), make(told, exogenous_key="chosen")
    one.write_ondisk_dataset(told, tmp_path / "set")
    assert same(arrays(two.fit(tmp_path / "set", progress=False)), arrays(one.fit(told, progress=False)))
    two.write_ondisk_dataset(told, tmp_path / "set")
    assert same(arrays(one.fit(tmp_path / "set", progress=False)), arrays(two))


def test_a_data_set_of_other_features_than_the_fitted_models_is_refused(fitted, told, folder):
    refused(
        lambda: fitted.predict(folder), r"with other features \(18\), or in another order, than the model's \(120\)"
    )
    other = make(told, highly_variable_key="chosen", num_epochs=1).fit(told, progress=False)
    refused(lambda: other.score(folder), r"other features \(18\), .* than the model's \(13\)")


def test_a_data_set_of_the_other_modality_is_refused(told, folder):
    model = make(told, **FAST, num_epochs=1).fit(told, progress=False)
    refused(lambda: model.predict(folder), "was written for expression")


def test_a_column_that_the_folder_lacks_is_told_as_for_an_anndata(told, folder):
    refused(lambda: make(told, categorical_covariates="batc").fit(folder), "no column of obs 'batc'; did you mean")
    refused(lambda: make(told, extra_features_keys="cell1").fit(folder), "no column of obs 'cell1'")
    refused(lambda: make(told, extra_features_keys="_index").fit(folder), "no column of obs '_index'")


def test_one_cell_of_a_folder_is_too_few_and_none_cannot_be_predicted(told, folder):
    whole = OnDiskDataset(folder)
    refused(lambda: make(told).fit(whole.take(np.array([3]))), "at least 2 cells are needed to train; got 1")
    model = make(told, num_epochs=1).fit(folder, progress=False)
    assert model.predict(whole.take(np.array([3]))).n_obs == 1
    for call in (model.predict, model.score, model.impute):
        refused(lambda call=call: call(whole.take(np.array([], int))), "the data has no cells")


def test_batch_effects_of_a_folder_need_covariates(told, folder):
    with pytest.raises(OptionError, match="has no covariates"):
        make(told, num_epochs=1).fit(folder, progress=False).get_batch_effect(folder)


# --- what is refused when writing -----------------------------------------------------------------


def test_what_is_no_data_set_is_left_untouched(told, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"dear")
    (tmp_path / "file").write_bytes(b"dear")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "dataset.json").write_bytes(b'{"mine": true}')
    before = contents(tmp_path)
    for name in ("photos", "file", "run"):
        message = f"{name} exists and is no whole data set that could be replaced"
        refused(lambda name=name: make(told).write_ondisk_dataset(told, tmp_path / name), message)
    assert contents(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["file", "photos", "run"]


def test_a_half_written_data_set_is_left_for_its_owner_to_delete(told, folder):
    (folder / "dataset.json").unlink()
    before = contents(folder)
    refused(lambda: make(told).write_ondisk_dataset(told, folder), "was not written to its end.*Delete it")
    assert contents(folder) == before


def test_a_whole_data_set_and_an_empty_folder_are_replaced(told, folder, tmp_path):
    part = told[:9].copy()
    make(part).write_ondisk_dataset(part, folder)
    assert np.array_equal(stored(folder), part.X.toarray())
    (tmp_path / "empty").mkdir()
    make(part).write_ondisk_dataset(part, tmp_path / "empty")
    assert len(OnDiskDataset(tmp_path / "empty")) == 9
    assert sorted(os.listdir(tmp_path)) == ["empty", "set"]


def test_a_data_set_that_is_being_read_survives_its_replacement(told, folder):
    counts = OnDiskDataset(folder).counts()
    part = told[:9].copy()
    make(part).write_ondisk_dataset(part, folder)
    assert np.array_equal(counts.to_csr().toarray(), told.X.toarray())


def test_what_a_link_stands_for_is_replaced(told, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    part = told[:9].copy()
    make(part).write_ondisk_dataset(part, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(OnDiskDataset(folder)) == 9


def test_folders_above_are_made(told, tmp_path):
    make(told).write_ondisk_dataset(told, tmp_path / "a" / "b" / "set")
    assert len(OnDiskDataset(tmp_path / "a" / "b" / "set")) == 40


BAD = {
    "fraction": (lambda x: x.__setitem__((39, 0), 0.5), "whole numbers"),
    "negative": (lambda x: x.__setitem__((39, 17), -1), "negative values"),
    "NaN": (lambda x: x.__setitem__((39, 3), np.nan), "NaN or infinite"),
    "empty cell": (lambda x: x.__setitem__(39, 0), "1 have none: cell39"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.usefixtures("small_chunks")
def test_bad_counts_in_the_last_cell_leave_what_was_there(told, folder, tmp_path, spoil, message, convert, as_file):
    x = told.X.toarray().astype(np.float32)
    spoil(x)
    bad = data = ad.AnnData(convert(x), obs=told.obs, var=told.var)
    if as_file:
        data = tmp_path / "bad.h5ad"
        bad.write_h5ad(data)
    before, names = contents(folder), sorted(os.listdir(tmp_path))
    for target in (folder, tmp_path / "new"):
        refused(lambda target=target: make(told).write_ondisk_dataset(data, target), message)
    assert contents(folder) == before
    assert sorted(os.listdir(tmp_path)) == names


def test_missing_columns_and_layers_are_told_before_anything_is_written(told, tmp_path):
    told.write_h5ad(tmp_path / "a.h5ad")
    cases = [
        ({"counts_layer": "raw"}, "no layer 'raw'. There are: none"),
        ({"highly_variable_key": "chosn"}, "no column of var 'chosn'; did you mean 'chosen'"),
        ({"categorical_covariates": "batc"}, "no column of obs 'batc'; did you mean 'batch'"),
        ({"extra_features_keys": "batch"}, r"obs\['batch'\] must hold finite numbers"),
    ]
    for data in (told, tmp_path / "a.h5ad"):
        for options, message in cases:
            refused(lambda d=data, o=options: make(told, **o).write_ondisk_dataset(d, tmp_path / "set"), message)
    assert os.listdir(tmp_path) == ["a.h5ad"]


@pytest.mark.parametrize("form", ["memory", "file", "backed"])
def test_a_source_without_x_says_which_option_names_a_layer(told, tmp_path, form):
    data = bare = ad.AnnData(obs=told.obs, var=told.var, layers={"raw": told.X})
    if form != "memory":
        bare.write_h5ad(tmp_path / "a.h5ad")
        data = tmp_path / "a.h5ad" if form == "file" else ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    message = "has no X; name the layer with raw counts by counts_layer"
    refused(lambda: make(told).write_ondisk_dataset(data, tmp_path / "set"), message)
    make(told, counts_layer="raw").write_ondisk_dataset(data, tmp_path / "set")
    assert np.array_equal(stored(tmp_path / "set"), told.X.toarray())


def test_sources_that_are_no_data_are_refused(told, folder, tmp_path):
    (tmp_path / "a.h5ad").write_bytes(b"no HDF5")
    (tmp_path / "a.csv").write_bytes(b"1,2")
    with h5py.File(tmp_path / "other.h5ad", "w") as f:
        f["X"] = np.ones((3, 4))
    for data, message in [
        (tmp_path / "a.h5ad", "a.h5ad is no HDF5 file, as .h5ad files are"),
        (tmp_path / "other.h5ad", "other.h5ad is an HDF5 file of another kind: it holds X"),
        (tmp_path / "a.csv", "must be .h5ad, .*; got a.csv"),
        (tmp_path / "nothing.h5ad", "there is no file"),
        (folder, "is of write_ondisk_dataset"),
        (OnDiskDataset(folder), "got OnDiskDataset"),
        (told[:0].copy(), "the data has no cells"),
    ]:
        refused(lambda data=data: make(told).write_ondisk_dataset(data, tmp_path / "new"), message)
    assert not (tmp_path / "new").exists()


def test_a_table_that_no_file_can_hold_is_refused_before_the_counts_are_written(told, tmp_path, monkeypatch):
    told.obs["mixed"] = [["a", "list"], *[1.5] * 39]
    monkeypatch.setattr(on_disk, "_write_by_row", None)
    refused(lambda: make(told).write_ondisk_dataset(told, tmp_path / "set"), "obs or var cannot be written as .h5ad: ")
    assert not os.listdir(tmp_path)


def test_a_full_disk_leaves_what_was_there(told, folder, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = contents(folder)
    monkeypatch.setattr(on_disk, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        make(told).write_ondisk_dataset(told, folder)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["set"]


SLOW_WRITER = """
    import sys, time
    import anndata as ad
    from mira_core.data import anndata_io, on_disk

    anndata_io.CHUNK_VALUES = 100
    chunks = anndata_io.StreamedCounts.chunks

    def slowly(self):
        for i, chunk in enumerate(chunks(self)):
            if i == 3:
                print("writing", flush=True)
                time.sleep(60)
            yield chunk

    anndata_io.StreamedCounts.chunks = slowly
    keys = {k: None for k in on_disk.KEYS} | {
        "feature_type": "expression", "exogenous_key": None, "categorical_covariates": None,
        "continuous_covariates": None, "covariates_keys": None, "extra_features_keys": None,
    }
    on_disk.write(sys.argv[1], sys.argv[2], keys, lambda table: anndata_io.select(table, keys))
"""


def kill_while_writing(data: Path, target: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SLOW_WRITER), str(data), str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "writing\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("there", [True, False], ids=["replacing", "new"])
def test_a_writer_that_is_killed_leaves_the_old_data_set_or_none(told, tmp_path, there):
    path = tmp_path / "set"
    told.write_h5ad(tmp_path / "a.h5ad")
    part = told[:9].copy()
    if there:
        make(part).write_ondisk_dataset(part, path)
    kill_while_writing(tmp_path / "a.h5ad", path)
    if there:
        assert np.array_equal(stored(path), part.X.toarray())
    else:
        assert not path.exists()
    for beside in tmp_path.glob(".set.*"):  # what it had written opens as nothing
        refused(lambda beside=beside: OnDiskDataset(beside), "was not written to its end")
    make(told).write_ondisk_dataset(tmp_path / "a.h5ad", path)
    assert np.array_equal(stored(path), told.X.toarray())
