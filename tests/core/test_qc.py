"""Quality of cells and features: scanpy's numbers, in chunks, and thresholds by MADs."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

from mira_core.data import open_data, qc, simulate_expression
from mira_core.data import tally as tallies
from mira_core.errors import DataError


@pytest.fixture
def cells() -> ad.AnnData:
    """400 cells, some empty, with ten mitochondrial genes and an empty gene."""
    adata = simulate_expression(400, 150, 3, depth=500, seed=4)
    adata.var_names = [f"mt-{j}" if j < 10 else f"Gene{j}" for j in range(150)]
    x = adata.X.tolil()
    x[[2, 77]], x[:, 40] = 0, 0
    adata.X = x.tocsr()
    return adata


def scanpys(adata: ad.AnnData) -> tuple[pd.DataFrame, pd.DataFrame]:
    import scanpy as sc

    adata = adata.copy()
    adata.var["mt"] = adata.var_names.str.startswith("mt-")
    return sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False, inplace=False)


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "backed", "backed csc", "uint8", "layer"])
def test_the_numbers_are_scanpys(cells, tmp_path, monkeypatch, form):
    cells.X.data = np.minimum(cells.X.data, 250)
    by_cell, by_feature = scanpys(cells)
    layer = None
    if "csc" in form:
        cells.X = sp.csc_matrix(cells.X)
    elif form == "dense":
        cells.X = cells.X.toarray()
    elif form == "uint8":  # sums go far beyond what it holds
        cells.X = cells.X.astype(np.uint8)
    elif form == "layer":
        cells.layers["counts"], cells.X, layer = cells.X, None, "counts"
    if "backed" in form:
        cells.write_h5ad(tmp_path / "a.h5ad")
        cells = open_data(tmp_path / "a.h5ad", backed=True)
        monkeypatch.setattr(tallies, "CHUNK_VALUES", 5_000)  # many chunks
    measured = qc(cells, layer)
    for name in measured.cells:
        assert np.allclose(measured.cells[name], by_cell[name], equal_nan=True, rtol=1e-6), name
    for name in measured.features:
        assert np.allclose(measured.features[name], by_feature[name], rtol=1e-6), name
    assert {"total_counts", "n_genes_by_counts", "pct_counts_mt"} <= set(measured.cells)
    assert {"n_cells_by_counts", "total_counts"} <= set(measured.features)
    assert list(measured.cells.index) == list(cells.obs_names)
    assert list(measured.features.index) == list(cells.var_names)


def test_thresholds_are_medians_and_absolute_deviations(cells):
    measured = qc(cells)
    x = np.log1p(measured.cells["total_counts"])
    x = x[x > 0]
    limits = measured.thresholds.loc["total_counts"]
    reach = 5 * stats.median_abs_deviation(x)
    assert limits["n_mads"] == 5
    assert limits["lower"] == pytest.approx(np.expm1(np.median(x) - reach))
    assert limits["upper"] == pytest.approx(np.expm1(np.median(x) + reach))
    assert limits["n_below"] == 2  # the empty ones
    mt = measured.cells["pct_counts_mt"].dropna()
    limits = measured.thresholds.loc["pct_counts_mt"]
    assert np.isnan(limits["lower"])
    assert limits["upper"] == pytest.approx(max(8, np.median(mt) + 3 * stats.median_abs_deviation(mt)))
    assert limits["n_above"] == (mt > limits["upper"]).sum()


def test_there_is_no_mitochondrial_share_without_names(cells):
    cells.var_names = [f"Gene{j}" for j in range(150)]
    measured = qc(cells)
    assert not any("mt" in c for c in measured.cells)
    assert list(measured.thresholds.index) == ["total_counts", "n_genes_by_counts"]


@pytest.mark.parametrize(
    "names", [["MT-CO1", "MTOR"], ["mt-Co1", "Mt1"], ["MT.CO1", "MT1A"]], ids=["human", "mouse", "made by R"]
)
def test_only_genes_of_the_mitochondrion_count(names):
    adata = ad.AnnData(sp.csr_matrix([[1, 3], [2, 2]]))
    adata.var_names = names
    assert list(qc(adata).cells["pct_counts_mt"]) == [25, 50]


def test_cells_alike_have_no_limits():
    adata = ad.AnnData(sp.csr_matrix(np.ones((30, 4), np.int32)))
    assert qc(adata).thresholds[["lower", "upper"]].isna().all(axis=None)


def test_nothing_is_written(cells):
    before = cells.copy()
    qc(cells)
    assert cells.obs.equals(before.obs)
    assert cells.var.equals(before.var)


def test_what_holds_no_counts_is_refused(cells):
    cells.layers["logged"] = cells.X.log1p()
    with pytest.raises(DataError, match=r"layers\['logged'\] must hold raw counts; it has .* fractions"):
        qc(cells, "logged")
    with pytest.raises(DataError, match="no layer 'loged'; did you mean 'logged'"):
        qc(cells, "loged")
    cells.X = None
    with pytest.raises(DataError, match="no X; name the layer"):
        qc(cells)


@pytest.mark.parametrize("name", ["pbmc3k_hvg2000", "atac_leukemia391"])
def test_real_cells_have_scanpys_numbers(shared_data, name):
    adata = open_data(shared_data / f"{name}.h5ad", backed=True)
    by_cell, by_feature = scanpys(open_data(shared_data / f"{name}.h5ad"))
    measured = qc(adata)
    assert np.allclose(measured.cells["total_counts"], by_cell["total_counts"])
    assert np.array_equal(measured.features["n_cells_by_counts"], by_feature["n_cells_by_counts"])
