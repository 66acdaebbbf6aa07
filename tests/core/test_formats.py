"""Files of every format: counts exactly as they are in them, parts by name, and none that does harm."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import mira_core as mira
from mira_core import jobs, run
from mira_core.cli import main
from mira_core.data import formats, sources
from mira_core.data.anndata_io import StreamedCounts, open_data
from mira_core.data.formats import contents, limits, split_part, zarr_files
from mira_core.data.on_disk import OnDiskDataset
from mira_core.errors import DataError, JobError

from ..helpers import arrays, make, make_cells, same

TYPES = ("Gene Expression", "Peaks", "Antibody Capture")


def refused(call, message: str) -> str:
    with pytest.raises(DataError, match=message) as told:
        call()
    return str(told.value)


def dense(adata: ad.AnnData) -> np.ndarray:
    x = adata.X
    x = x.to_memory() if hasattr(x, "to_memory") else x
    return x.toarray() if sp.issparse(x) else np.asarray(x[:])


# --- writers of formats ---------------------------------------------------------------------------


def write_10x(path: Path, adata: ad.AnnData, types: list[str] | None = None, symbols: list[str] | None = None) -> Path:
    """As Cell Ranger 3 and later."""
    m = sp.csr_matrix(adata.X)
    with h5py.File(path, "w") as f:
        g = f.create_group("matrix")
        g["barcodes"] = np.array(adata.obs_names, "S")
        g["data"], g["indices"], g["indptr"] = m.data, m.indices.astype(np.int64), m.indptr.astype(np.int64)
        g["shape"] = np.array(adata.shape[::-1], np.int32)
        features = g.create_group("features")
        features["id"] = np.array([f"ENSG{j:05d}" for j in range(adata.n_vars)], "S")
        features["name"] = np.array(list(symbols or adata.var_names), "S")
        features["feature_type"] = np.array(types or [TYPES[0]] * adata.n_vars, "S")
        features["genome"] = np.array(["GRCh38"] * adata.n_vars, "S")
        features["_all_tag_keys"] = np.array(["genome"], "S")
    return path


def write_10x_of_version_2(path: Path, **genomes: ad.AnnData) -> Path:
    with h5py.File(path, "w") as f:
        for name, adata in genomes.items():
            m, g = sp.csr_matrix(adata.X), f.create_group(name)
            g["barcodes"], g["genes"] = np.array(adata.obs_names, "S"), np.array(adata.var_names, "S")
            g["gene_names"] = g["genes"][()]
            g["data"], g["indices"], g["indptr"] = m.data, m.indices, m.indptr
            g["shape"] = np.array(adata.shape[::-1])
    return path


def write_folder(
    path: Path, adata: ad.AnnData, *, zipped: str = "mbf", features: str = "features.tsv", prefix: str = "",
    rows: list[str] | None = None, by_cell: bool = False,
) -> Path:  # fmt: skip
    """A 10x matrix folder; `zipped` says which of matrix, barcodes and features are .gz."""
    path.mkdir(exist_ok=True)
    x = adata.X.toarray() if by_cell else adata.X.toarray().T
    entries = [f"{i + 1} {j + 1} {x[i, j]}" for i, j in np.argwhere(x)]
    head = ["%%MatrixMarket matrix coordinate integer general", "%written by a test"]
    text = {
        "matrix.mtx": [*head, f"{x.shape[0]} {x.shape[1]} {len(entries)}", *entries],
        "barcodes.tsv": list(adata.obs_names),
        features: rows or [f"ENSG{j:05d}\t{n}\tGene Expression" for j, n in enumerate(adata.var_names)],
    }
    for name, lines in text.items():
        data = ("\n".join(lines) + "\n").encode()
        if name[0] in zipped or (name[0] in "gp" and "f" in zipped):
            (path / f"{prefix}{name}.gz").write_bytes(gzip.compress(data))
        else:
            (path / f"{prefix}{name}").write_bytes(data)
    return path


def write_h5mu(path: Path, obs: pd.DataFrame | None = None, **modalities: ad.AnnData) -> Path:
    with h5py.File(path, "w") as f:
        for name, adata in modalities.items():
            ad.io.write_elem(f, f"mod/{name}", adata)
        f["mod"].attrs["mod-order"] = list(modalities)
        ad.io.write_elem(f, "obs", obs if obs is not None else pd.DataFrame(index=adata.obs_names))
    return path


def write_loom(path: Path, adata: ad.AnnData) -> Path:
    with h5py.File(path, "w") as f:
        f["matrix"] = adata.X.toarray().T
        f["col_attrs/CellID"], f["row_attrs/Gene"] = np.array(adata.obs_names, "S"), np.array(adata.var_names, "S")
        f.create_group("layers")
    return path


def write_zarr(path: Path, adata: ad.AnnData) -> Path:
    adata.copy().write_zarr(path)
    return path


def write_zipped_zarr(path: Path, adata: ad.AnnData, inside: str = "") -> Path:
    folder = write_zarr(path.parent / "unzipped.zarr", adata)
    with zipfile.ZipFile(path, "w") as z:
        for p in sorted(folder.rglob("*")):
            if p.is_file():
                z.write(p, inside + p.relative_to(folder).as_posix())
    shutil.rmtree(folder)
    return path


def write_h5ad(path: Path, adata: ad.AnnData) -> Path:
    adata.write_h5ad(path)
    return path


WRITERS = {
    "cells.h5ad": write_h5ad,
    "cells.h5": write_10x,
    "old.h5": lambda path, adata: write_10x_of_version_2(path, hg19=adata),
    "folder": write_folder,
    "cells.h5mu": lambda path, adata: write_h5mu(path, rna=adata),
    "cells.loom": write_loom,
    "cells.zarr": write_zarr,
    "cells.zarr.zip": write_zipped_zarr,
}
LAZY = ("cells.h5ad", "cells.h5mu", "cells.zarr", "cells.zarr.zip")


@pytest.fixture(params=WRITERS)
def written(request, tiny, tmp_path) -> Path:
    """`tiny`, in every format."""
    return WRITERS[request.param](tmp_path / request.param, tiny)


# --- every format ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backed", [False, True])
def test_counts_and_names_are_read_exactly(written, tiny, backed):
    adata = open_data(written, backed=backed)
    assert np.array_equal(dense(adata), tiny.X.toarray())
    assert list(adata.obs_names) == list(tiny.obs_names)
    assert list(adata.var_names) == list(tiny.var_names)
    if written.name in LAZY:
        assert isinstance(adata.X, sp.csr_matrix) is not backed
    assert adata.X.dtype == np.int32


def test_contents_tell_sizes_without_reading_counts(written, monkeypatch):
    monkeypatch.setattr(ad.io, "read_elem", None)
    monkeypatch.setattr("scipy.io.mmread", None)
    told = contents(str(written))
    assert [(p.n_cells, p.n_features) for p in told.parts] == [(12, 7)]
    assert told.names() == []  # nothing to choose


def test_every_call_takes_every_format(written, tiny, tmp_path):
    model = make(tiny, batch_size=8).fit(written, progress=False)
    assert same(arrays(model), arrays(make(tiny, batch_size=8).fit(tiny, progress=False)))
    assert model.score(str(written)) == model.score(tiny)
    assert np.array_equal(model.predict(written).obsm["X_topic_compositions"],
                          model.predict(tiny.copy()).obsm["X_topic_compositions"])  # fmt: skip
    for got, wanted in zip(model.train_test_split(written), model.train_test_split(tiny), strict=True):
        assert np.array_equal(dense(got), dense(wanted))
    model.write_ondisk_dataset(written, tmp_path / "set")
    assert np.array_equal(OnDiskDataset(tmp_path / "set").counts().to_csr().toarray(), tiny.X.toarray())


@pytest.mark.slow
def test_gradient_tune_and_the_tuner_take_a_path(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = f"{write_h5mu(tmp_path / 'cells.h5mu', rna=cells, protein=cells[:, :20].copy())}#rna"
    n, contributions = mira.topics.gradient_tune(make(cells, num_epochs=2), data, max_topics=8)
    assert len(contributions) == 8
    assert n <= 8
    tuner = mira.topics.BayesianTuner(model=make(cells, num_epochs=2), save_name="a/b", min_topics=2, max_topics=4,
                                      max_trials=2, min_trials=1, seed=0)  # fmt: skip
    assert tuner.fit(data).n_features == cells.n_vars


@pytest.mark.parametrize("name", ["cells.h5", "cells.zarr", "folder"])
def test_a_job_takes_any_path_and_the_folder_of_an_ondisk_dataset(tiny, tmp_path, name):
    path = WRITERS[name](tmp_path / name, tiny)
    options = [
        "--feature-type",
        "expression",
        "--num-topics",
        "2",
        "--num-epochs",
        "2",
        "--batch-size",
        "8",
        "--seed",
        "0",
    ]
    assert main(["fit", str(path), "-o", str(tmp_path / "run"), *options]) == 0
    make(tiny).write_ondisk_dataset(path, tmp_path / "set")
    assert main(["fit", str(tmp_path / "set"), "-o", str(tmp_path / "run2"), *options]) == 0
    one, other = (ad.read_h5ad(tmp_path / r / "result" / "cells.h5ad") for r in ("run", "run2"))
    assert np.array_equal(one.obsm["X_topic_compositions"], other.obsm["X_topic_compositions"])
    assert jobs.read_spec(tmp_path / "run")["data"] == str(path)


# --- parts ----------------------------------------------------------------------------------------


@pytest.fixture
def multiome(tmp_path) -> tuple[Path, ad.AnnData, list[str]]:
    """Three types of features in turn, in one file."""
    adata = make_cells(12, 9)
    types = [TYPES[j % 3] for j in range(9)]
    return write_10x(tmp_path / "multi.h5", adata, types), adata, types


def test_types_of_features_are_data_sets_of_their_own(multiome, tmp_path):
    path, adata, types = multiome
    rows = [f"ENSG{j:05d}\t{n}\t{t}" for j, (n, t) in enumerate(zip(adata.var_names, types, strict=True))]
    folder = write_folder(tmp_path / "folder", adata, rows=rows)
    for data in (path, folder):
        assert contents(data).names() == sorted(TYPES)
        assert {(p.n_cells, p.n_features) for p in contents(data).parts} == {(12, 3)}
        for k, name in enumerate(TYPES):
            for got in (open_data(data, part=name), open_data(f"{data}#{name}")):
                assert np.array_equal(dense(got), adata.X.toarray()[:, k::3])
                assert list(got.var_names) == list(adata.var_names[k::3])
                assert set(got.var["feature_types"]) == {name}
        told = refused(lambda data=data: open_data(data), "holds 3 data sets; choose a type of features")
        assert all(repr(t) in told for t in TYPES)
        refused(lambda data=data: open_data(data, part="peaks"), "has no type of features 'peaks'; choose one of")


def test_modalities_and_genomes_are_data_sets_of_their_own(tmp_path):
    rna, atac = make_cells(12, 7), make_cells(12, 5, seed=1)
    mu = write_h5mu(tmp_path / "a.h5mu", rna=rna, atac=atac)
    old = write_10x_of_version_2(tmp_path / "a.h5", rna=rna, atac=atac)
    for path, kind in [(mu, "modality"), (old, "genome")]:
        assert sorted(contents(path).names()) == ["atac", "rna"]
        assert np.array_equal(dense(open_data(f"{path}#atac")), atac.X.toarray())
        assert np.array_equal(dense(open_data(path, part="rna")), rna.X.toarray())
        refused(lambda path=path: open_data(path), f"choose a {kind}: .*Give it as part=")
        refused(lambda path=path: open_data(f"{path}#protein"), f"has no {kind} 'protein'")
    assert contents(mu).names() == ["rna", "atac"]  # in the file's order


def test_a_file_of_one_data_set_has_no_parts(tiny, tmp_path):
    tiny.write_h5ad(tmp_path / "a.h5ad")
    refused(lambda: open_data(tmp_path / "a.h5ad", part="rna"), "is one data set, with no parts to choose 'rna' from")
    assert np.array_equal(dense(open_data(f"{write_10x(tmp_path / 'a.h5', tiny)}#Gene Expression")), tiny.X.toarray())


def test_columns_of_all_cells_go_with_a_modality(tmp_path):
    rna = make_cells(6, 5)
    rna.obs["own"] = range(6)
    atac = make_cells(5, 4)[[4, 0, 2]].copy()
    obs = pd.DataFrame({"batch": list("abcabc"), "rna:own": range(6), "own": range(6, 12)}, index=rna.obs_names)
    path = write_h5mu(tmp_path / "a.h5mu", obs, rna=rna, atac=atac)
    assert list(open_data(f"{path}#atac").obs["batch"]) == ["b", "a", "c"]
    assert list(open_data(f"{path}#rna", backed=True).obs["own"]) == list(range(6))
    assert "rna:own" not in open_data(f"{path}#rna").obs


def test_a_mudata_in_zarr_has_modalities(tmp_path):
    import zarr

    rna, atac = make_cells(12, 7), make_cells(12, 5, seed=1)
    group = zarr.open_group(tmp_path / "mu.zarr", mode="w")
    for name, adata in {"rna": rna, "atac": atac}.items():
        ad.io.write_elem(group, f"mod/{name}", adata)
    assert sorted(contents(tmp_path / "mu.zarr").names()) == ["atac", "rna"]
    assert np.array_equal(dense(open_data(f"{tmp_path / 'mu.zarr'}#atac", backed=True)), atac.X.toarray())


def test_a_part_follows_the_last_path_that_exists(tiny, tmp_path):
    odd = tmp_path / "a#b.h5ad"
    tiny.write_h5ad(odd)
    assert split_part(odd) == (odd, None)
    assert split_part(f"{odd}#c#d") == (odd, "c#d")
    assert split_part(tmp_path / "none#x") == (tmp_path / "none#x", None)
    assert open_data(odd).shape == tiny.shape
    folder = tmp_path / "job"
    jobs.write_spec(folder, data=f"{odd}#rna", model={"feature_type": "expression"})
    assert jobs.read_spec(folder)["data"] == f"{odd}#rna"
    with pytest.raises(JobError, match="there is no file .*none.h5mu#rna"):
        jobs.write_spec(tmp_path / "job2", data=f"{tmp_path}/none.h5mu#rna", model={"feature_type": "expression"})


def test_a_wrong_part_fails_the_job_in_words(multiome, tmp_path):
    jobs.write_spec(tmp_path / "job", data=f"{multiome[0]}#Genes", model={"feature_type": "expression"})
    status = run.run_job(tmp_path / "job")
    assert status.state == "failed"
    assert "choose one of 'Antibody Capture', 'Gene Expression', 'Peaks'" in status.error["message"]


# --- names ----------------------------------------------------------------------------------------


def test_repeated_symbols_are_made_unique_and_ids_kept(tiny, tmp_path):
    symbols = ["A", "B", "A", "", "NA", "A", "nan"]
    rows = [f"ENSG{j:05d}\t{s}\tGene Expression" for j, s in enumerate(symbols)]
    for path in (write_10x(tmp_path / "a.h5", tiny, symbols=symbols), write_folder(tmp_path / "f", tiny, rows=rows)):
        adata = open_data(path)
        assert list(adata.var_names) == ["A", "B", "A-1", "ENSG00003", "NA", "A-2", "nan"]
        assert list(adata.var["gene_ids"]) == [f"ENSG{j:05d}" for j in range(7)]
        assert np.array_equal(dense(adata), tiny.X.toarray())


@pytest.mark.parametrize("zipped", ["", "m", "bf", "mbf"])
@pytest.mark.parametrize("prefix", ["", "GSM1_sample_"])
def test_matrix_folders_may_be_compressed_in_part_and_have_a_prefix(tiny, tmp_path, zipped, prefix):
    path = write_folder(tmp_path / "f", tiny, zipped=zipped, prefix=prefix)
    (path / "._matrix.mtx").write_bytes(b"what a Mac leaves")
    assert np.array_equal(dense(open_data(path)), tiny.X.toarray())
    matrix = path / f"{prefix}matrix.mtx{'.gz' if 'm' in zipped else ''}"
    assert np.array_equal(dense(open_data(matrix)), tiny.X.toarray())  # the matrix stands for its folder


def test_genes_tsv_and_peaks_bed_name_features_too(tiny, tmp_path):
    genes = write_folder(tmp_path / "g", tiny, features="genes.tsv", rows=[f"id{j}\tgene{j}" for j in range(7)])
    assert list(open_data(genes).var["gene_ids"]) == [f"id{j}" for j in range(7)]
    peaks = write_folder(tmp_path / "p", tiny, features="peaks.bed", rows=[f"chr1\t{j}00\t{j}50" for j in range(7)])
    assert open_data(peaks).var_names[3] == "chr1:300-350"
    assert np.array_equal(dense(open_data(peaks)), tiny.X.toarray())


def test_a_folder_of_cells_by_features_is_turned(tiny, tmp_path):
    assert np.array_equal(dense(open_data(write_folder(tmp_path / "f", tiny, by_cell=True))), tiny.X.toarray())


def test_counts_above_the_precision_of_float32_are_kept(tiny, tmp_path):
    tiny.X.data[0] = 2**24 + 1
    for name in ("cells.h5", "folder", "cells.loom"):
        assert dense(open_data(WRITERS[name](tmp_path / name, tiny))).max() == 2**24 + 1


@pytest.mark.parametrize("backed", [False, True])
def test_texts_of_new_files_can_be_written_again(tiny, tmp_path, backed):
    """New mudata writes texts in a way that anndata reads, and does not write unless it is told to."""
    tiny.obs["batch"] = pd.array(["a", "b", None] * 4, dtype="string")
    tiny.obs["type"] = pd.Categorical(["x", "y"] * 6, categories=pd.Index(["x", "y"], dtype="string"))
    tiny.obs_names = pd.Index(tiny.obs_names, dtype="string")
    with ad.settings.override(allow_write_nullable_strings=True), h5py.File(tmp_path / "a.h5ad", "w") as f:
        for key in ("obs", "var", "X"):
            ad.io.write_elem(f, key, getattr(tiny, key))
    adata = open_data(tmp_path / "a.h5ad", backed=backed)
    assert adata.obs_names.dtype == object
    assert adata.obs["batch"].isna().sum() == 4
    ad.AnnData(obs=adata.obs, var=adata.var).write_h5ad(tmp_path / "b.h5ad")
    assert list(ad.read_h5ad(tmp_path / "b.h5ad").obs["type"]) == ["x", "y"] * 6
    make(tiny).write_ondisk_dataset(tmp_path / "a.h5ad", tmp_path / "set")


# --- on the disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAZY)
def test_layers_and_raw_stay_on_the_disk_too(tiny, tmp_path, name):
    tiny.layers["counts"], tiny.layers["dense"] = tiny.X.tocsc(), tiny.X.toarray()
    tiny.raw = tiny.copy()
    tiny.obsm["X_pca"] = np.ones((12, 2))
    tiny.uns["source"] = "a test"
    adata = open_data(WRITERS[name](tmp_path / name, tiny), backed=True)
    for matrix in (adata.X, adata.layers["counts"], adata.layers["dense"], adata.raw.X):
        assert not isinstance(matrix, np.ndarray)
        assert not sp.issparse(matrix)
        some = matrix[:5]
        assert np.array_equal(some.toarray() if sp.issparse(some) else some, tiny.X.toarray()[:5])
    assert adata.obsm["X_pca"].shape == (12, 2)
    assert adata.uns["source"] == "a test"
    for layer in (None, "counts", "dense"):
        assert same(arrays(make(tiny, batch_size=8, counts_layer=layer).fit(adata, progress=False)),
                    arrays(make(tiny, batch_size=8).fit(tiny, progress=False)))  # fmt: skip


@pytest.mark.parametrize("name", LAZY)
@pytest.mark.parametrize("layer", [None, "other"])
def test_counts_are_streamed(tiny, tmp_path, monkeypatch, name, layer):
    tiny.layers["other"] = tiny.X.toarray()
    path = WRITERS[name](tmp_path / name, tiny)
    monkeypatch.setattr("mira_core.data.anndata_io.CHUNK_VALUES", 35)
    source = StreamedCounts(path, layer)
    chunks = [c.toarray() if sp.issparse(c) else c for c in source.chunks()]
    source.close()
    assert [len(c) for c in chunks] == [5, 5, 2]
    assert np.array_equal(np.vstack(chunks), tiny.X.toarray())


@pytest.fixture
def claims(tmp_path) -> Path:
    """An .h5ad of a few kilobytes whose X would take a terabyte."""
    path = tmp_path / "large.h5ad"
    ad.AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(1000)])).write_h5ad(path)
    with h5py.File(path, "a") as f:
        ad.io.write_elem(f, "var", pd.DataFrame(index=[f"g{i}" for i in range(1000)]))
        if "X" in f:
            del f["X"]
        f.create_dataset("X", (1000, 1000), "S1000000", chunks=(1, 1))
        f["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return path


@pytest.mark.parametrize("backed", [False, True])
def test_an_array_that_claims_much_and_holds_nothing_is_refused(claims, backed):
    assert claims.stat().st_size < 1e6
    refused(lambda: open_data(claims, backed=backed), "holds '/X', which would be 1,000 GB")


@pytest.mark.parametrize(
    "how", [{}, {"chunks": (50,)}, {"compression": "gzip", "shuffle": True, "chunks": (64,)}, {"compression": "lzf"}]
)
def test_texts_that_stand_for_one_long_text_are_counted(tiny, tmp_path, how):
    """A file of a megabyte can so ask for any memory; entries are copied, as HDF5's library would not write them."""
    from mira_core.data.formats.hdf5 import open_hdf5

    texts = [f"{'x' * (i % 7)}{i}" for i in range(200)]
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset("x", data=np.array(texts, object), dtype=h5py.string_dtype(), **how)
        f.create_dataset("y", data=np.arange(200))
    file, sizes = open_hdf5(tmp_path / "a.h5")
    file.close()
    assert sizes == {"/x": 200 * limits.TEXT + sum(map(len, texts)), "/y": 1600}


def test_a_long_text_that_is_repeated_without_end_is_refused(tiny, tmp_path):
    tiny.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as f:
        x = f.create_dataset("uns/x", (1_000_000,), h5py.string_dtype())
        x[0] = "y" * 1_000_000
        x[1] = "z"
        offset = x.id.get_offset()
    with open(tmp_path / "a.h5ad", "r+b") as f:
        f.seek(offset)
        entry = f.read(16)
        f.seek(offset)
        f.write(entry * 1_000_000)
    for backed in (False, True):
        refused(
            lambda backed=backed: open_data(tmp_path / "a.h5ad", backed=backed), "1,000.1 GB when it is read|would be"
        )


@pytest.mark.parametrize("name", WRITERS)
def test_data_larger_than_memory_are_refused_or_stay_on_the_disk(tmp_path, monkeypatch, name):
    cells = make_cells(300, 500)
    cells.X = sp.csr_matrix(np.ones((300, 500), np.int32))
    path = WRITERS[name](tmp_path / name, cells)
    monkeypatch.setattr(limits, "available", lambda: 300_000)
    told = refused(lambda: open_data(path), "takes 0.0 GB when it is read, and 0.0 GB of memory are free")
    assert "write_ondisk_dataset" in told
    if name in LAZY:
        assert open_data(path, backed=True).shape == (300, 500)
    assert [(p.n_cells, p.n_features) for p in contents(path).parts] == [(300, 500)]


def test_opening_backed_takes_no_memory_for_counts(tmp_path):
    import tracemalloc

    x = sp.random(4000, 3000, 0.1, format="csr", dtype=np.float32, random_state=0)
    x.data[:] = 1
    ad.AnnData(x, layers={"counts": x}).write_h5ad(tmp_path / "a.h5ad")
    open_data(tmp_path / "a.h5ad", backed=True)
    tracemalloc.start()
    try:
        adata = open_data(tmp_path / "a.h5ad", backed=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.data.nbytes / 2
    assert adata.shape == x.shape


# --- what is no counts ----------------------------------------------------------------------------


def test_fragments_and_peaks_are_no_counts(tmp_path):
    (tmp_path / "a.tsv").write_text("# made by\nchr1\t10\t50\tAAAC-1\t2\n")
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(b"chr1\t10\t50\tAAAC-1\t2\n"))
    (tmp_path / "c.bed").write_text("chr1\t10\t50\n")
    for name in ("a.tsv", "b.tsv.gz"):
        told = refused(lambda name=name: open_data(tmp_path / name), "is a fragments file")
        assert "make_peak_matrix" in told
    refused(lambda: open_data(tmp_path / "c.bed"), "lists intervals of the genome")
    refused(lambda: contents(tmp_path / "c.bed"), "lists intervals of the genome")


@pytest.mark.parametrize(
    ("name", "advice"),
    [("a.rds", "zellkonverter"), ("a.h5seurat", "SeuratDisk"), ("a.tar.gz", "Unpack it first"), ("a.mtx.zip", "Unpack"),
     ("a.csv.gz", "read_csv"), ("a.bam", "Cell Ranger"), ("a", "must be .h5ad")],
)  # fmt: skip
def test_other_formats_are_refused_with_advice(tmp_path, name, advice):
    (tmp_path / name).write_bytes(b"\0\1\2")
    refused(lambda: open_data(tmp_path / name), advice)


def test_hdf5_of_another_kind_says_what_it_holds(tmp_path):
    with h5py.File(tmp_path / "molecule_info.h5", "w") as f:
        f["barcode_idx"], f["count"] = [1], [2]
    refused(lambda: open_data(tmp_path / "molecule_info.h5"), "of another kind: it holds barcode_idx, count")


def test_folders_that_are_not_whole_say_what_is_missing(tiny, tmp_path):
    path = write_folder(tmp_path / "f", tiny, zipped="")
    (path / "barcodes.tsv").unlink()
    refused(lambda: open_data(path), "f has matrix.mtx, and must also have barcodes.tsv")
    (path / "barcodes.tsv").write_text("a\nb\n")
    refused(lambda: open_data(path), "the matrix has 7 x 12 entries, and there are 7 features and 2 barcodes")
    write_folder(path, tiny, zipped="", prefix="other_")
    refused(lambda: open_data(path), "f holds 2 matrices")


# --- files that are damaged or meant to do harm ----------------------------------------------------


@pytest.mark.parametrize("name", [n for n in WRITERS if n != "folder" and n != "cells.zarr"])
def test_files_cut_off_anywhere_are_refused(tiny, tmp_path, name):
    path = WRITERS[name](tmp_path / name, tiny)
    whole = path.read_bytes()
    for share in (0, 0.01, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        for call in (open_data, contents, lambda p: open_data(p, backed=True)):
            refused(lambda call=call: call(path), path.name)


@pytest.mark.parametrize("zipped", ["", "mbf"])
def test_a_matrix_that_is_cut_off_is_refused(tiny, tmp_path, zipped):
    path = write_folder(tmp_path / "f", tiny, zipped=zipped)
    matrix = next(path.glob("matrix.mtx*"))
    matrix.write_bytes(matrix.read_bytes()[:-30])
    refused(lambda: open_data(path), "f")


class Harm:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["a.h5ad", "a.h5mu", "a.h5", "a.loom", "a.zarr.zip"])
def test_a_pickle_under_another_name_is_refused_and_not_run(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    refused(lambda: open_data(tmp_path / name), name)
    assert os.listdir(tmp_path) == [name]


def test_a_pickle_in_uns_stays_bytes(tiny, tmp_path):
    tiny.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as f:
        f["uns/pickle"] = np.void(pickle.dumps(Harm(tmp_path / "harm")))
        f["uns"].attrs["pickle"] = np.void(pickle.dumps(Harm(tmp_path / "harm")))
    for backed in (False, True):
        assert open_data(tmp_path / "a.h5ad", backed=backed).shape == tiny.shape
    assert not (tmp_path / "harm").exists()


def test_a_pickle_in_zarr_is_refused_and_not_run(tiny, tmp_path, monkeypatch):
    import numcodecs.pickles

    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)  # as it was for years
    path = write_zarr(tmp_path / "a.zarr", tiny)
    evil = path / "uns" / "evil"
    evil.mkdir(parents=True, exist_ok=True)
    (evil / ".zarray").write_text(
        '{"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": null, "fill_value": null, '
        '"order": "C", "filters": [{"id": "pickle", "protocol": 4}]}'
    )
    (evil / "0").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    for backed in (False, True):
        try:
            assert "evil" not in open_data(path, backed=backed).uns  # a zarr that does not know such arrays
        except DataError as problem:
            assert "holds pickled objects, '/uns/evil'" in str(problem)  # noqa: PT017
    (path / "layers").mkdir(exist_ok=True)
    evil.rename(path / "layers" / "evil")
    refused(lambda: open_data(path), "pickle")
    assert not (tmp_path / "harm").exists()


def links(f: h5py.File, secret: Path) -> dict:
    layout = h5py.VirtualLayout((12, 7), np.int32)
    layout[:] = h5py.VirtualSource(secret, "x", (12, 7))
    return {
        "external link": lambda: f.__setitem__("uns/x", h5py.ExternalLink(secret, "/x")),
        "external link to the table": lambda: f.__setitem__("layers/x", h5py.ExternalLink(secret, "/x")),
        "soft link": lambda: f.__setitem__("uns/x", h5py.SoftLink("/X")),
        "soft link to itself": lambda: f.__setitem__("uns/x", h5py.SoftLink("/uns/x")),
        "external storage": lambda: f.create_dataset("layers/x", (12, 7), "i1", external=[(str(secret), 0, 84)]),
        "virtual data set": lambda: f.create_virtual_dataset("layers/x", layout),
        "group in itself": lambda: f.__setitem__("uns/x", f["uns"]),
        "group twice": lambda: (f.create_group("uns/a"), f.__setitem__("uns/b", f["uns/a"])),
    }


@pytest.mark.parametrize("kind", [
    "external link", "external link to the table", "soft link", "soft link to itself", "external storage",
    "virtual data set", "group in itself", "group twice"])  # fmt: skip
@pytest.mark.parametrize("backed", [False, True])
def test_hdf5_that_points_elsewhere_or_is_endless_is_refused(tiny, tmp_path, kind, backed):
    with h5py.File(tmp_path / "secret.h5", "w") as f:
        f["x"] = np.full((12, 7), 42, np.int32)
    tiny.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as f:
        links(f, tmp_path / "secret.h5")[kind]()
    for call in (contents, lambda p: open_data(p, backed=backed), lambda p: StreamedCounts(p, None)):
        told = refused(
            lambda call=call: call(tmp_path / "a.h5ad"), "a.h5ad (holds|keeps) .*(link|another file|two places)"
        )
        assert "42" not in told


@pytest.mark.parametrize("name", ["cells.h5", "old.h5", "cells.loom", "cells.h5mu"])
def test_links_in_other_hdf5_files_are_refused(tiny, tmp_path, name):
    path = WRITERS[name](tmp_path / name, tiny)
    with h5py.File(path, "a") as f:
        f["extra"] = h5py.ExternalLink("/etc/passwd", "/")
    refused(lambda: open_data(path), "holds a link, '/extra'")


def test_too_many_objects_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("mira_core.data.formats.hdf5.MOST_OBJECTS", 10)
    tiny.write_h5ad(tmp_path / "a.h5ad")
    refused(lambda: open_data(tmp_path / "a.h5ad"), "holds too many objects")


def test_groups_too_deep_are_refused(tiny, tmp_path):
    tiny.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as f:
        f["uns" + "/x" * 2000] = 1
    refused(lambda: open_data(tmp_path / "a.h5ad"), "too deep")


@pytest.mark.parametrize("array", ["indices", "indptr"])
@pytest.mark.parametrize("value", [-1, 10**6])
@pytest.mark.parametrize("name", ["cells.h5ad", "cells.h5", "old.h5", "cells.h5mu"])
def test_indices_out_of_bounds_are_refused(tiny, tmp_path, name, array, value):
    """Compiled code would follow them anywhere."""
    path = WRITERS[name](tmp_path / name, tiny)
    where = {"cells.h5ad": "X", "cells.h5": "matrix", "old.h5": "hg19", "cells.h5mu": "mod/rna/X"}[name]
    with h5py.File(path, "a") as f:
        f[f"{where}/{array}"][5] = value
    refused(lambda: open_data(path), "indices are wrong|cannot be read")
    refused(lambda: make(tiny).fit(path, progress=False), "indices are wrong|cannot be read")

    def stream():
        for _ in StreamedCounts(path, None).chunks():
            pass

    refused(stream, "indices are wrong|cannot be read")


def bomb(path: Path, size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(".zgroup", '{"zarr_format": 2}')
        z.writestr("X/.zarray", b"\0" * size)


def test_a_zip_bomb_is_refused(tmp_path):
    bomb(tmp_path / "a.zarr.zip", 80_000_000)
    assert (tmp_path / "a.zarr.zip").stat().st_size < 100_000
    refused(lambda: open_data(tmp_path / "a.zarr.zip"), "would unpack from 0.1 to 80.0 MB, and is not opened")


def test_the_unpacked_size_is_bounded(tiny, tmp_path, monkeypatch):
    path = write_zipped_zarr(tmp_path / "a.zarr.zip", tiny)
    monkeypatch.setattr(zarr_files, "MOST_UNPACKED", 1000)
    refused(lambda: open_data(path), "is not opened")


def test_nothing_is_unpacked_and_no_entry_leads_out(tiny, tmp_path):
    path = write_zipped_zarr(tmp_path / "a.zarr.zip", tiny)
    before = sorted(os.listdir(tmp_path))
    assert open_data(path).shape == tiny.shape
    assert sorted(os.listdir(tmp_path)) == before
    for name in ("../evil.txt", "/evil.txt", "x/../../evil.txt", "..\\evil.txt"):
        shutil.copy(path, tmp_path / "b.zarr.zip")
        with zipfile.ZipFile(tmp_path / "b.zarr.zip", "a") as z:
            z.writestr(name, "evil")
        refused(lambda: open_data(tmp_path / "b.zarr.zip"), "holds an entry that leads out of it")
    assert not list(tmp_path.parent.glob("evil*"))


def test_a_zip_may_hold_the_folder_itself(tiny, tmp_path):
    path = write_zipped_zarr(tmp_path / "a.zarr.zip", tiny, inside="cells.zarr/")
    assert np.array_equal(dense(open_data(path)), tiny.X.toarray())


def test_chunks_that_claim_more_than_memory_are_refused(tiny, tmp_path):
    import json

    import zarr

    path = tmp_path / "a.zarr"
    write_zarr(path, ad.AnnData(tiny.X.toarray(), obs=tiny.obs, var=tiny.var))
    meta = path / "X" / (".zarray" if (path / "X" / ".zarray").exists() else "zarr.json")
    told = json.loads(meta.read_text())
    if "chunks" in told:
        told["chunks"] = [10**7, 10**7]
    else:
        told["chunk_grid"]["configuration"]["chunk_shape"] = [10**7, 10**7]
    meta.write_text(json.dumps(told))
    assert zarr.open_group(path, mode="r", use_consolidated=False)["X"].shape == (12, 7)
    refused(lambda: open_data(path), "'/X' has chunks of 400,000.0 GB")


def test_a_gz_bomb_is_refused_before_it_fills_memory(tiny, tmp_path):
    path = write_folder(tmp_path / "f", tiny)
    blank = gzip.compress(b" " * 50_000_000)
    (path / "matrix.mtx.gz").write_bytes((path / "matrix.mtx.gz").read_bytes() + blank)
    refused(lambda: open_data(path), "matrix.mtx.gz is much longer than its matrix allows|cannot be read")
    write_folder(path, tiny)
    (path / "features.tsv.gz").write_bytes(gzip.compress(b"a" * 50_000_000))
    refused(lambda: open_data(path), "features.tsv.gz is much longer|cannot be read")


def test_a_header_that_claims_too_many_counts_is_refused(tiny, tmp_path):
    path = write_folder(tmp_path / "f", tiny, zipped="")
    (path / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n7 12 999999999999\n1 1 1\n")
    refused(lambda: open_data(path), "should have 999,999,999,999 counts, and is too short for them")


def test_names_with_markup_are_names(tiny, tmp_path):
    evil = "<script>alert(1)</script>"
    tiny.var_names = [evil, *tiny.var_names[1:]]
    tiny.obs[evil] = evil
    tiny.write_h5ad(tmp_path / "a.h5ad")
    adata = open_data(tmp_path / "a.h5ad")
    assert adata.var_names[0] == evil
    assert adata.obs[evil].iloc[0] == evil
    assert evil in contents(write_10x(tmp_path / "a.h5", tiny, [evil] + [TYPES[0]] * 6)).names()


def test_memory_is_that_of_the_container_if_it_is_less(monkeypatch):
    assert 0 < limits.available() < 2**60
    monkeypatch.setattr(Path, "read_text", lambda self: "1000\n")
    assert limits.available() == 1000
    refused(lambda: limits.refuse_too_large("x", 1001), "x takes")


# --- real files -----------------------------------------------------------------------------------


@pytest.fixture
def fixtures(shared_data) -> Path:
    return shared_data / "fixtures"


def by_hand(group: h5py.Group) -> np.ndarray:
    """Cells x features of 10x, one count after the other."""
    n_features, n_cells = group["shape"][()]
    out = np.zeros((n_cells, n_features))
    starts = group["indptr"][()]
    for cell in range(n_cells):
        for at in range(starts[cell], starts[cell + 1]):
            out[cell, group["indices"][at]] += group["data"][at]
    return out


@pytest.mark.parametrize(
    ("path", "group"),
    [("scanpy_10x/1.2.0/filtered_gene_bc_matrices_h5.h5", "hg19_chr21"), ("scprep/test_10X_cellranger3.h5", "matrix"),
     ("scanpy_10x/1.2.0/multiple_genomes.h5#another_genome", "another_genome")],
)  # fmt: skip
def test_real_10x_files_are_read_exactly(fixtures, path, group):
    with h5py.File(fixtures / path.partition("#")[0]) as f:
        wanted, barcodes = by_hand(f[group]), f[group]["barcodes"][()].astype(str)
        names = f[group]["gene_names" if "gene_names" in f[group] else "features/name"][()].astype(str)
    adata = open_data(str(fixtures / path))
    assert np.array_equal(dense(adata), wanted)
    assert list(adata.obs_names) == list(barcodes)
    assert list(adata.var_names) == list(ad.utils.make_index_unique(pd.Index(names)))


@pytest.mark.parametrize(
    "path", ["scanpy_10x/3.0.0/filtered_feature_bc_matrix.h5", "atac_10x/maestro_test_peak_count.h5"]
)
def test_real_10x_files_are_read_as_scipy_reads_them(fixtures, path):
    with h5py.File(fixtures / path) as f:
        g = f["matrix"]
        wanted = sp.csc_matrix((g["data"][()], g["indices"][()], g["indptr"][()]), shape=tuple(g["shape"][()])).T
        names = g["features/name"][()].astype(str)
    adata = open_data(fixtures / path)
    assert (wanted != adata.X).nnz == 0
    assert [n.partition("-")[0] for n in adata.var_names] == [n.partition("-")[0] for n in names]
    assert adata.var_names.is_unique


def test_a_real_folder_and_the_file_beside_it_hold_the_same(fixtures):
    one = open_data(fixtures / "scanpy_10x/3.0.0/filtered_feature_bc_matrix")
    other = open_data(fixtures / "scanpy_10x/3.0.0/filtered_feature_bc_matrix.h5")
    assert (one.X != other.X).nnz == 0
    assert one.X.sum() > 0
    assert list(one.var_names) == list(other.var_names)
    assert list(one.obs_names) == list(other.obs_names)
    old = fixtures / "scanpy_10x/1.2.0/filtered_gene_bc_matrices/hg19_chr21"
    assert np.array_equal(dense(open_data(old)), dense(open_data(old.parents[1] / "filtered_gene_bc_matrices_h5.h5")))


def test_a_real_folder_of_proteins_is_read(fixtures, tmp_path):
    with tarfile.open(fixtures / "cite/pbmc_10k_protein_v3_mtx.tar.gz") as f:
        f.extractall(tmp_path, filter="data")
    folder = tmp_path / "filtered_feature_bc_matrix"
    assert contents(folder).names() == ["Antibody Capture", "Gene Expression"]
    types = [
        row.split("\t")[2] for row in gzip.decompress((folder / "features.tsv.gz").read_bytes()).decode().splitlines()
    ]
    lines = gzip.decompress((folder / "matrix.mtx.gz").read_bytes()).decode().splitlines()
    entries = np.array([line.split() for line in lines if not line.startswith("%")], int)
    wanted = np.zeros(entries[0, :2], int)
    wanted[entries[1:, 0] - 1, entries[1:, 1] - 1] = entries[1:, 2]
    for name in contents(folder).names():
        assert np.array_equal(dense(open_data(folder, part=name)), wanted[np.array(types) == name].T)


def test_a_real_loom_is_read_exactly(fixtures):
    path = fixtures / "loom/mpfc-starmap.loom"
    with h5py.File(path) as f:
        wanted, clusters = f["matrix"][()].T, f["col_attrs/Clusters"][()].astype(str)
    adata = open_data(path)
    assert np.array_equal(dense(adata), wanted)
    assert list(adata.obs["Clusters"]) == list(clusters)
    assert adata.obsm["Spatial_coordinates"].shape == (3704, 2)


@pytest.mark.parametrize("version", ["0.1.2", "0.2.4", "0.4.1"])
@pytest.mark.parametrize("backed", [False, True])
def test_real_h5mu_files_are_read_exactly(fixtures, version, backed):
    path = fixtures / f"mudata/v{version}.h5mu"
    assert contents(path).names() == ["mod2", "mod1"]
    with h5py.File(path) as f:
        for name in ("mod1", "mod2"):
            assert np.array_equal(dense(open_data(f"{path}#{name}", backed=backed)), f[f"mod/{name}/X"][()])


@pytest.mark.parametrize("backed", [False, True])
def test_a_real_zipped_zarr_of_a_newer_zarr_is_read(fixtures, backed, caplog):
    """The same cells as one of the .h5ad files; a result in uns is of a type that not every zarr knows."""
    adata = open_data(fixtures / "scanpy_pbmc68k_reduced.zarr.zip", backed=backed)
    other = open_data(fixtures / "anndata/v0.5.0.h5ad")
    assert np.array_equal(dense(adata), dense(other))
    assert list(adata.obs_names) == list(other.obs_names)
    assert list(adata.var_names) == list(other.var_names)
    assert adata.raw is not None or "raw" not in caplog.text


@pytest.mark.parametrize("version", ["0.5.0", "0.7.0", "0.7.8", "0.11.4"])
@pytest.mark.filterwarnings("ignore")  # of an old file, as anndata itself reads it
def test_backed_and_not_are_the_same_cells(fixtures, version):
    path = fixtures / f"anndata/v{version}.h5ad"
    one, other = open_data(path), open_data(path, backed=True)
    whole = ad.read_h5ad(path)
    for adata in (one, other):
        assert adata.obs.equals(whole.obs)
        assert adata.var.equals(whole.var)
        assert sorted(adata.layers) == sorted(whole.layers)
        assert sorted(adata.uns) == sorted(whole.uns)
        if whole.X is not None:
            assert np.array_equal(dense(adata), dense(whole))
        if whole.raw is not None:
            raw = adata.raw.X[:]
            wanted = whole.raw.X
            assert np.array_equal(raw.toarray() if sp.issparse(raw) else raw,
                                  wanted.toarray() if sp.issparse(wanted) else wanted)  # fmt: skip


def test_every_real_fixture_opens_or_says_what_to_do(fixtures):
    opened = 0
    for path in sorted(p for p in fixtures.rglob("*") if p.is_file() or formats.is_data(p)):
        try:
            told = contents(path)
            for name in told.names() or [None]:
                adata = sources.open_source(formats.join_part(path, name))
                assert adata.shape == next((p.n_cells, p.n_features) for p in told.parts if name in (None, p.name))
                opened += 1
        except DataError as problem:
            assert len(str(problem)) > 60  # noqa: PT017
    assert opened >= 20


def test_the_marker_of_a_pickle_is_what_the_tests_look_for(tmp_path):
    """Unpickled, it would be seen."""
    pickle.loads(pickle.dumps(Harm(tmp_path / "harm")))
    assert (tmp_path / "harm").is_dir()
