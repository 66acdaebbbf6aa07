"""The input clinic: each finding comes from data that have the fault, and from no others."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import contingency

import mira_core as mira
from mira_core import cli
from mira_core.data import Finding, Recipe, inspect, load_demo, open_data, qc, simulate_expression
from mira_core.data import tally as tallies
from mira_core.data.inspection import features, layers
from mira_core.data.inspection.covariates import correlation_ratio, cramers_v
from mira_core.data.inspection.finding import SEVERITIES
from mira_core.data.recover import recover_counts
from mira_core.errors import DataError, OptionError
from tests.helpers import make


@pytest.fixture(scope="session")
def _clean() -> ad.AnnData:
    adata = simulate_expression(800, 300, 4, n_types=4, n_batches=2, depth=900, seed=11)
    adata.obs["quality"] = np.random.default_rng(0).normal(size=800)
    return adata


@pytest.fixture
def clean(_clean) -> ad.AnnData:
    """800 cells in which there is nothing to find."""
    return _clean.copy()


def peaks(n: int = 600, g: int = 400, seed: int = 0, share: float = 0.2) -> ad.AnnData:
    """Simulated fragments in peaks, all open in a fair share of cells."""
    rng = np.random.default_rng(seed)
    open_ = rng.random((n, g)) < rng.uniform(share / 2, share * 1.5, g)
    x = open_ * (1 + rng.poisson(0.1, (n, g)))
    adata = ad.AnnData(sp.csr_matrix(x.astype(np.int32)))
    adata.obs_names = [f"cell{i}" for i in range(n)]
    adata.var_names = [f"chr1:{1000 * j}-{1000 * j + 500}" for j in range(g)]
    return adata


def found(adata: ad.AnnData, code: str, **options: object) -> Finding:
    """Return the one finding of this kind."""
    all_ = inspect(adata, **options)
    assert [f.code for f in all_].count(code) == 1, [f.code for f in all_]
    return next(f for f in all_ if f.code == code)


def codes(adata: ad.AnnData, **options: object) -> list[str]:
    return [f.code for f in inspect(adata, **options)]


COVARIATES = {"categorical_covariates": ["batch"], "continuous_covariates": ["quality"]}


def mended(adata: ad.AnnData, code: str, **options: object) -> ad.AnnData:
    """Apply the remedy of a finding, after which it must be gone."""
    finding = found(adata, code, **options)
    assert finding.remedy is not None
    out = Recipe([finding.remedy]).apply(adata)
    assert code not in codes(out, **options)
    return out


# --- clean data -----------------------------------------------------------------------------------


def test_nothing_is_found_where_nothing_is_wrong(clean):
    assert codes(clean) == ["may_be_batches"]
    assert inspect(clean, feature_type="expression", highly_variable_key="highly_variable", **COVARIATES) == []


def test_batches_that_nobody_named_are_mentioned(clean):
    finding = found(clean, "may_be_batches")
    assert (finding.severity, finding.column) == ("info", "batch")
    assert "obs['batch'] has 2 values" in finding.what
    assert "name it as categorical_covariates" in finding.fix
    clean.obs["donor"] = np.where(np.arange(800) % 3, "Ann", "Bob")
    assert "obs['batch'] has 2 values, obs['donor'] has 2" in found(clean, "may_be_batches").what
    assert "may_be_batches" not in codes(clean[:, :], **COVARIATES)
    del clean.obs["batch"], clean.obs["donor"]
    assert inspect(clean) == []


@pytest.mark.parametrize(("name", "told"), [("pbmc700", []), ("simulated", ["may_be_batches"])])
def test_the_demos_are_clean(name, told):
    assert codes(load_demo(name)) == told


def test_nothing_is_changed_by_looking(clean):
    before = clean.copy()
    inspect(clean, **COVARIATES)
    assert (clean.X != before.X).nnz == 0
    assert clean.obs.equals(before.obs)
    assert clean.var.equals(before.var)
    assert list(clean.uns) == list(before.uns)


@pytest.mark.parametrize("form", ["dense", "csc", "views", "h5ad", "zarr", "scanpy-backed", "float64", "uint16"])
def test_the_form_of_the_counts_changes_no_finding_but_that_of_storage(clean, tmp_path, form):
    clean.X[5, :] = 0
    clean.obs_names = ["same", *clean.obs_names[1:-1], "same"]
    expected = [f for f in inspect(clean) if f.code != "storage"]
    assert {f.code for f in expected} == {"empty_cells", "duplicate_cells", "may_be_batches"}
    if form == "dense":
        clean.X = clean.X.toarray()
    elif form == "csc":
        clean.X = sp.csc_matrix(clean.X)
    elif form == "views":
        clean = ad.concat([clean, clean[:3]])[:800]
    elif form in ("float64", "uint16"):
        clean.X = clean.X.astype(form)
    elif form == "zarr":
        clean.write_zarr(tmp_path / "a.zarr")
        clean = open_data(tmp_path / "a.zarr", backed=True)
    else:
        clean.write_h5ad(tmp_path / "a.h5ad")
        path = tmp_path / "a.h5ad"
        clean = ad.read_h5ad(path, backed="r") if form == "scanpy-backed" else open_data(path, backed=True)
    assert [f for f in inspect(clean) if f.code != "storage"] == expected


# --- which layer ----------------------------------------------------------------------------------


def normalised(x: sp.csr_matrix, total: float = 1e4) -> sp.csr_matrix:
    return sp.csr_matrix(sp.diags_array(total / np.asarray(x.sum(1)).ravel()) @ x)


def test_counts_in_a_layer_are_found_where_x_is_logged(clean):
    clean.layers["counts"] = clean.X.copy()
    clean.X = normalised(clean.X).log1p()
    finding = found(clean, "counts_in_layer")
    assert finding.severity == "warning"
    assert (
        "layers['counts'] holds raw counts; X holds counts that were scaled within each cell and logged" in finding.what
    )
    assert "counts_layer='counts'" in finding.fix
    out = mended(clean, "counts_in_layer")
    assert (clean.layers["counts"] != out.X).nnz == 0
    assert codes(clean, counts_layer="counts") == ["may_be_batches"]


def test_a_layer_that_was_named_and_holds_no_counts_is_an_error(clean):
    clean.layers["logged"] = clean.X.log1p()
    finding = found(clean, "counts_in_layer", counts_layer="logged")
    assert (finding.severity, finding.remedy) == ("error", None)
    assert finding.what.startswith("X holds raw counts; layers['logged'] holds")


def test_counts_hiding_in_raw_are_found_and_taken(clean):
    whole = clean.copy()
    del clean.var["highly_variable"]
    clean.raw = clean
    clean = clean[:, :200].copy()
    clean.X = (clean.X - np.asarray(clean.X.mean(0))) / 2.0
    clean.var["highly_variable"] = np.arange(200) < 50
    finding = found(clean, "counts_in_raw")
    assert finding.severity == "error"
    assert "raw.X holds raw counts of 300 features; X holds negative values such as -" in finding.what
    out = mended(clean, "counts_in_raw")
    assert (out.X != whole.X).nnz == 0
    assert list(out.var_names[out.var["highly_variable"]]) == list(clean.var_names[:50])


@pytest.mark.parametrize(
    ("transform", "undo"),
    [("log1p", np.log1p), ("log2", lambda v: np.log2(1 + v)), ("log10", lambda v: np.log10(1 + v)), ("scaled", None)],
)
@pytest.mark.parametrize("where", ["X", "layer", "raw"])
def test_counts_are_recovered_from_normalised_values_wherever_they_are(clean, transform, undo, where):
    counts, logged = clean.X.copy(), normalised(clean.X)
    if undo is not None:
        logged.data = undo(logged.data)
    logged = logged.astype(np.float32)
    scaled = (logged.toarray() - np.asarray(logged.mean(0))) / 3.0
    if where == "raw":
        clean.X = logged
        clean.raw = clean
    clean.X = logged if where == "X" else scaled
    if where == "layer":
        clean.layers["normalised"] = logged
    finding = found(clean, "counts_recoverable")
    assert finding.severity == "error"
    assert finding.remedy.to_dict() == {
        "step": "recover_counts",
        **({} if transform == "log1p" else {"transform": transform}),
        **({"layer": "normalised"} if where == "layer" else {"raw": True} if where == "raw" else {}),
    }
    assert (counts != mended(clean, "counts_recoverable").X).nnz == 0


def no_counts(x: object) -> str:
    """Return what is said of a matrix that cannot be turned into counts."""
    finding = found(ad.AnnData(x), "no_counts")
    assert (finding.severity, finding.remedy) == ("error", None)
    return finding.what


def test_why_a_matrix_holds_no_counts(clean):
    x = clean.X.toarray().astype(float)
    noise = np.random.default_rng(0).uniform(0.9, 1.1, x.shape)
    totals = (x * noise).sum(1, keepdims=True)
    assert "normalised to 10,000 in each cell and logged, values such as" in no_counts(
        np.log1p(x * noise / totals * 1e4)
    )
    assert "normalised to 1 in each cell, values such as" in no_counts(x * noise / totals)
    assert "normalised to 500 in each cell and logged to base 2" in no_counts(np.log2(1 + x * noise / totals * 500))
    assert "hardly a zero" in no_counts(x + noise)
    assert "hardly a zero" not in no_counts(x * noise)
    assert "ambient RNA may have been removed" in no_counts(np.where(noise > 1.05, np.maximum(x - 0.3, 0), x))
    assert "it seems normalised and logged" in no_counts(np.log1p(x * noise))
    assert "negative values such as -1: it was scaled or centred" in no_counts(x - 1)
    bad = x.copy()
    bad[3, 4:6] = np.nan, np.inf
    assert "missing or infinite values: 2 of" in no_counts(bad)
    assert "nothing but zeros" in no_counts(np.zeros_like(x))
    assert "negative values such as -128: int8 was too small" in no_counts(
        np.where(np.arange(300) == 3, 128, x).astype(np.int64).astype(np.int8)
    )
    assert "no matrix at all" in found(ad.AnnData(obs=clean.obs), "no_counts").what


def test_halves_are_not_taken_for_scaled_counts(clean):
    assert "scaled" not in no_counts(clean.X / 2)


def test_a_fault_beyond_the_sample_is_found_by_the_whole_pass(clean):
    x = clean.X.astype(np.float32)
    row = next(i for i in range(800) if not any(s.start <= i < s.stop for s in tallies.sample(800, layers.SAMPLE, 8)))
    x[row, 0], x[row, 1], x[row, 2] = 0.5, np.nan, -2
    clean.X = x
    finding = found(clean, "not_all_counts")
    assert finding.severity == "error"
    assert "1 missing or infinite values, 1 negative values, 1 fractions such as 0.5" in finding.what


@pytest.mark.parametrize(("dtype", "most"), [("uint8", 255), ("int16", 32767), ("float16", 2048)])
def test_counts_at_the_end_of_a_small_type_are_told(clean, dtype, most):
    x = clean.X.toarray().astype(dtype)
    clean.X = x if dtype == "float16" else sp.csr_matrix(x)
    assert "overflow" not in codes(clean)
    x[7, 7] = most
    clean.X = x if dtype == "float16" else sp.csr_matrix(x)
    assert f"{most:,}, the most that {dtype} holds" in found(clean, "overflow").what


def test_how_counts_are_stored_is_only_told(clean):
    csr = clean.X.copy()
    clean.X = sp.csc_matrix(csr)
    assert "by feature (CSC)" in found(clean, "storage").what
    assert mended(clean, "storage").X.format == "csr"
    thin = csr.multiply(np.random.default_rng(0).random(csr.shape) < 0.5)
    clean.X = thin.toarray()
    assert found(clean, "storage").severity == "info"
    out = mended(clean, "storage")
    assert (sp.csr_matrix(thin) != out.X).nnz == 0


# --- names, cells, features -----------------------------------------------------------------------


def test_names_that_repeat(clean):
    clean.obs_names = ["a", "a", "a", *clean.obs_names[3:]]
    clean.var_names = ["g", "g", *clean.var_names[2:]]
    assert "2 of 800 cells (0.2 %), such as 'a'" in found(clean, "duplicate_cells").what
    assert found(clean, "duplicate_features").severity == "error"
    assert "1 names stand for several of 300 features, such as 'g'" in found(clean, "duplicate_features").what
    out = mended(clean, "duplicate_features")
    assert out.obs_names.is_unique
    assert "duplicate_cells" not in codes(out)


def test_cells_and_features_without_counts(clean):
    x = clean.X.tolil()
    x[[4, 9]], x[:, 7] = 0, 0
    clean.X = x.tocsr()
    assert found(clean, "empty_cells").severity == "error"
    assert "2 of 800 cells (0.2 %)" in found(clean, "empty_cells").what
    assert "1 of 300 features (0.3 %)" in found(clean, "empty_features").what
    assert mended(clean, "empty_cells").n_obs == 798
    assert mended(clean, "empty_features").n_vars == 299


def test_cells_without_counts_in_the_modelled_features(clean):
    clean.var["few"] = np.arange(300) < 20
    x = clean.X.tolil()
    x[11, :20] = 0
    clean.X = x.tocsr()
    n = int((np.asarray(clean.X[:, :20].sum(1)).ravel() == 0).sum())
    assert f"{n:,} of 800 cells" in found(clean, "cells_without_modelled_features", highly_variable_key="few").what
    assert mended(clean, "cells_without_modelled_features", highly_variable_key="few").n_obs == 800 - n
    assert codes(clean) == ["may_be_batches"]


def test_too_few_cells(clean):
    assert found(clean[:120].copy(), "few_cells").severity == "warning"
    assert "chance" in found(clean[:40].copy(), "few_cells").why
    assert found(clean[:1].copy(), "few_cells").severity == "error"


def test_outlying_cells_are_counted_by_the_thresholds_of_qc(clean):
    x = clean.X.toarray()
    x[:10] *= 30
    x[10:14] = x[10:14] * (np.arange(300) < 20)
    clean.X = sp.csr_matrix(x)
    finding = found(clean, "outlier_cells")
    assert finding.severity == "info"
    depth = np.log1p(x.sum(1))
    reach = 5 * np.median(abs(depth - np.median(depth)))
    deep = int((depth > np.median(depth) + reach).sum())
    assert deep >= 10
    assert f"{deep} with more than" in finding.what
    left = Recipe([finding.remedy]).apply(clean)
    assert not set(clean.obs_names[:14]) & set(left.obs_names)
    x[:100] *= 30
    clean.X = sp.csr_matrix(x)
    assert found(clean, "outlier_cells").severity == "warning"


@pytest.mark.parametrize("column", [None, "gene_symbols"])
def test_mitochondrial_cells_where_names_tell(clean, column):
    names = [f"MT-{j}" if j < 13 else f"G{j}" for j in range(300)]
    if column is None:
        clean.var_names = names
    else:
        clean.var[column] = names
    x = clean.X.toarray()
    x[:, :13] = 1
    clean.X = sp.csr_matrix(x)
    assert "mitochondrial" not in codes(clean)
    x[:60, :13] = 40
    clean.X = sp.csr_matrix(x)
    finding = found(clean, "mitochondrial")
    assert "60 of 800 cells (7.5 %)" in finding.what
    assert finding.remedy.symbols == column
    assert mended(clean, "mitochondrial").n_obs == 740


def test_all_genes_are_too_many_unless_some_are_chosen():
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sp.random_array((600, 10_001), density=0.01, rng=rng, format="csr"))
    adata.X.data[:] = rng.integers(1, 4, adata.X.nnz)
    adata.var_names = [f"G{j}" for j in range(10_001)]
    finding = found(adata, "many_features")
    assert finding.remedy.to_dict() == {"step": "highly_variable"}
    adata.var["highly_variable"] = np.arange(10_001) < 2000
    finding = found(adata, "many_features")
    assert finding.remedy is None
    assert "var['highly_variable'] marks 2,000" in finding.what
    assert "many_features" not in codes(adata, highly_variable_key="highly_variable")
    assert "many_features" not in codes(adata, feature_type="accessibility")


def test_genes_and_peaks_in_one_matrix(clean):
    clean.var["feature_types"] = np.where(np.arange(300) < 100, "Gene Expression", "Peaks")
    assert "200 Peaks, 100 Gene Expression" in found(clean, "mixed_features").what
    assert mended(clean, "mixed_features").n_vars == 100
    assert mended(clean, "mixed_features", feature_type="accessibility").n_vars == 200


# --- peaks ----------------------------------------------------------------------------------------


def test_clean_peaks_are_known_by_their_names():
    adata = peaks()
    assert codes(adata) == ["not_binary"]
    assert found(adata, "not_binary").severity == "info"
    adata.X = sp.csr_matrix(adata.X > 0).astype(np.int32)
    assert inspect(adata) == []


def test_peaks_modelled_as_genes_are_told():
    assert found(peaks(), "feature_type", feature_type="expression").severity == "warning"
    assert "feature_type" not in codes(peaks(), feature_type="accessibility")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["chr1:100-200", "chrX:5-900"], "accessibility"),
        (["chr1_100_200", "chr10_5_900"], "accessibility"),
        (["chr1-100-200", "GL000194.1-5-900"], "accessibility"),
        (["peak0", "peak1"], "accessibility"),
        (["CD3D", "MS4A1"], "expression"),
        (["ENSG00000000971", "ENSG00000001084"], "expression"),
        (["HLA-DRA", "AC011043.1"], "expression"),
    ],
)
def test_peaks_are_told_from_genes_by_their_names(names, kind):
    assert features.guess_type(pd.DataFrame(index=names)) == kind


def test_read_counts_are_told_by_their_even_values():
    adata = peaks()
    fragments = adata.X.copy()
    reads = 2 * fragments
    odd = np.random.default_rng(1).random(reads.nnz) < 0.1  # one end outside of the peak
    reads.data[odd] -= 1
    adata.X = reads
    finding = found(adata, "read_counts")
    assert finding.severity == "info"
    assert "even" in finding.what
    assert "not_binary" not in codes(adata)
    assert (fragments != mended(adata, "read_counts").X).nnz == 0


def test_peaks_of_hardly_any_and_of_nearly_all_cells():
    adata = peaks()
    x = adata.X.toarray()
    x[:, :60] = 0
    x[:2, :60] = 1
    x[:, 60:70] = 1
    adata.X = sp.csr_matrix(x)
    assert "Open in fewer than 3 of 600 cells: 60 of 400 peaks (15 %)" in found(adata, "rare_peaks").what
    assert found(adata, "rare_peaks").severity == "warning"
    assert "Open in more than 90 % of cells: 10 of 400 peaks (2.5 %)" in found(adata, "ubiquitous_peaks").what
    assert mended(adata, "rare_peaks").n_vars == 340
    assert mended(adata, "ubiquitous_peaks").n_vars == 390


# --- covariates -----------------------------------------------------------------------------------


def test_a_constant_covariate(clean):
    clean.obs["site"], clean.obs["dose"] = "here", 3.5
    told = inspect(clean, categorical_covariates="site", continuous_covariates="dose")
    assert [(f.code, f.column, f.severity) for f in told] == [
        ("constant_covariate", "site", "warning"), ("constant_covariate", "dose", "warning"),
    ]  # fmt: skip
    assert "site" not in [f.column for f in inspect(clean)]


def test_an_identifier_is_no_covariate_and_training_says_so_too(clean):
    clean.obs["barcode"] = clean.obs_names
    assert "800 values in 800 cells" in found(clean, "identifier_covariate", categorical_covariates="barcode").what
    with pytest.raises(DataError, match="too many for a categorical covariate"):
        mira.topics.make_model(*clean.shape, feature_type="expression", categorical_covariates="barcode").fit(clean)


def test_text_is_no_continuous_covariate(clean):
    assert found(clean, "covariate_not_numeric", continuous_covariates="batch").severity == "error"


def test_missing_values(clean):
    batch = clean.obs["batch"].astype(object)
    batch[:3] = np.nan
    clean.obs["batch"] = pd.Categorical(batch)
    clean.obs.loc[clean.obs_names[5], "quality"] = np.inf
    found_ = [f for f in inspect(clean, **COVARIATES) if f.code == "missing_values"]
    assert [(f.column, f.severity) for f in found_] == [("batch", "error"), ("quality", "error")]
    assert "3 of 800 cells" in found_[0].what
    assert found(clean, "missing_values").severity == "info"  # batch, by its name
    assert mended(clean, "missing_values").n_obs == 797


def test_categories_of_few_cells(clean):
    clean.obs["batch"] = ["odd", *["small"] * 9, *["a"] * 400, *["b"] * 390]
    finding = found(clean, "rare_category", categorical_covariates="batch")
    assert "small (9), odd (1)" in finding.what
    assert "Drop these 10 cells" in finding.fix
    assert finding.severity == "warning"
    assert found(clean, "rare_category").severity == "info"
    assert mended(clean, "rare_category", categorical_covariates="batch").n_obs == 790


def test_two_covariates_that_go_together(clean):
    rng = np.random.default_rng(0)
    batch = clean.obs["batch"].astype(str)
    clean.obs["machine"] = np.where(rng.random(800) < 0.05, "m3", np.where(batch == "batch 1", "m1", "m2"))
    clean.obs["free"] = rng.integers(0, 3, 800).astype(str)
    finding = found(clean, "confounded_covariates", categorical_covariates=["batch", "machine", "free"])
    assert finding.severity == "warning"
    assert f"Cramer's V is {cramers_v(clean.obs['batch'], clean.obs['machine']):.2f}" in finding.what
    assert found(clean, "confounded_covariates").severity == "info"
    clean.obs["batch2"] = batch.map({"batch 1": "x", "batch 2": "y"})
    told = found(clean, "confounded_covariates", categorical_covariates=["batch", "batch2"])
    assert "the same cells, under other names" in told.what


def test_a_donor_within_a_batch_is_nested(clean):
    donor = clean.obs["batch"].astype(str) + np.random.default_rng(0).choice(["x", "y"], 800)
    clean.obs["donor"] = donor
    finding = found(clean, "nested_covariates", categorical_covariates=["batch", "donor"])
    assert finding.title == "Each donor is in one batch only"
    assert finding.column == "batch"


def test_a_measurement_that_differs_by_batch_or_follows_another(clean):
    clean.obs["depth"] = (clean.obs["batch"] == "batch 1") * 5.0 + clean.obs["quality"]
    finding = found(clean, "confounded_covariates", categorical_covariates="batch", continuous_covariates="depth")
    share = correlation_ratio(clean.obs["batch"], clean.obs["depth"])
    assert f"{100 * share:.0f} % of the variance of obs['depth']" in finding.what
    clean.obs["twice"] = np.exp(clean.obs["quality"])
    finding = found(clean, "confounded_covariates", continuous_covariates=["quality", "twice"])
    assert "rank correlation is 1.00" in finding.what


def test_what_goes_with_a_label_is_only_told(clean):
    clean.obs["batch"] = np.where(clean.obs["cell_type"].isin(["type 1", "type 2"]), "a", "b")
    finding = found(clean, "confounded_with_label", categorical_covariates="batch")
    assert finding.severity == "info"
    clean.obs["quality"] = clean.obs["cell_type"].cat.codes + 0.01 * clean.obs["quality"]
    finding = found(clean, "confounded_with_label", continuous_covariates="quality")
    assert "by cell_type" in finding.title


def test_cramers_v_is_scipys_without_its_bias():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 4, 60_000)
    b = np.where(rng.random(60_000) < 0.4, a % 3, rng.integers(0, 3, 60_000))
    plain = contingency.association(pd.crosstab(a, b).to_numpy(), method="cramer")
    assert cramers_v(pd.Series(a), pd.Series(b)) == pytest.approx(plain, abs=2e-4)
    few = [cramers_v(pd.Series(rng.integers(0, 9, 60)), pd.Series(rng.integers(0, 9, 60))) for _ in range(30)]
    assert np.mean(few) < 0.1  # where plain V is about 0.35
    assert cramers_v(pd.Series(["a", "b"] * 50), pd.Series(["x", "y"] * 50)) == pytest.approx(1)


def test_the_correlation_ratio_is_zero_by_chance_and_one_where_categories_tell_all():
    rng = np.random.default_rng(0)
    a = pd.Series(rng.integers(0, 20, 200))
    by_chance = [correlation_ratio(a, pd.Series(rng.normal(size=200))) for _ in range(40)]
    assert np.mean(by_chance) < 0.03  # eta squared would be 0.1
    assert correlation_ratio(a, a.astype(float)) == pytest.approx(1)
    half = pd.Series(a % 2 + rng.normal(0, 0.5, 200))
    assert correlation_ratio(a % 2, half) == pytest.approx(half.corr(a % 2) ** 2, abs=0.01)


# --- as a whole -----------------------------------------------------------------------------------


def everything_wrong() -> ad.AnnData:
    adata = simulate_expression(300, 200, 4, seed=1)
    x = adata.X.tolil()
    x[3], x[:, 8] = 0, 0
    adata.layers["counts"] = x.tocsr()
    adata.X = normalised(sp.csr_matrix(adata.X.toarray() + 1)).log1p()
    adata.obs["batch"] = [None, "b1", *["b2"] * 298]
    adata.var_names = ["x", "x", *adata.var_names[2:]]
    return adata


def test_errors_come_first_and_the_remedies_together_leave_data_that_can_be_trained_on():
    adata = everything_wrong()
    told = inspect(adata, categorical_covariates="batch")
    severities = [SEVERITIES.index(f.severity) for f in told]
    assert severities == sorted(severities)
    assert {f.severity for f in told} == set(SEVERITIES)
    out = Recipe.of(told).apply(adata)
    left = inspect(out, categorical_covariates="batch")
    assert "error" not in {f.severity for f in left}
    make(out, num_epochs=1).fit(out, progress=False)


def test_findings_are_short_and_say_what_why_and_what_to_do():
    told = inspect(everything_wrong(), categorical_covariates="batch") + inspect(peaks(), feature_type="expression")
    for f in told:
        assert len(f.title) <= 70, f.title
        assert not f.title.endswith(".")
        for text in (f.what, f.why, f.fix):
            assert text.endswith("."), text
            assert len(text) < 330, text
        assert json.loads(json.dumps(f.to_dict()))["code"] == f.code


def test_wrong_names_are_refused(clean):
    with pytest.raises(DataError, match="no column of obs 'bach'; did you mean 'batch'"):
        inspect(clean, categorical_covariates=["bach"])
    with pytest.raises(DataError, match="no layer 'counts'"):
        inspect(clean, counts_layer="counts")
    with pytest.raises(OptionError, match="feature_type must be one of expression, accessibility"):
        inspect(clean, feature_type="RNA")


def test_of_many_cells_some_are_looked_at_and_findings_say_so(clean):
    x = clean.X.tolil()
    x[np.concatenate([np.arange(s.start, s.stop) for s in tallies.sample(800, 200)])[::4]] = 0
    clean.X = x.tocsr()
    finding = found(clean, "empty_cells", most_cells=200)
    assert finding.what == "No counts in 48 of 192 cells (25 %) (looked at 192 cells, spread over all 800)."


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_a_file_is_inspected_in_little_memory(tmp_path, monkeypatch, form):
    rng = np.random.default_rng(0)
    x = sp.random_array((40_000, 500), density=0.1, rng=rng, format="csr")
    x.data = np.ceil(3 * x.data).astype(np.float32)
    size = x.data.nbytes + x.indices.nbytes
    adata = ad.AnnData(x if form == "csr" else sp.csc_array(x) if form == "csc" else x.astype(np.float32).toarray())
    adata.layers["logged"] = sp.csr_array(x).log1p()
    if form == "dense":
        size = adata.X.nbytes
    adata.write_h5ad(tmp_path / "a.h5ad")
    del adata
    monkeypatch.setattr(tallies, "CHUNK_VALUES", 2**18)
    opened = open_data(tmp_path / "a.h5ad", backed=True)
    inspect(opened[:10].to_memory())  # imports
    tracemalloc.start()
    try:
        inspect(opened)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 1.8, (peak, size)


# --- command line ---------------------------------------------------------------------------------


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(a) for a in arguments])
    return status, *capsys.readouterr()


def test_the_command_prints_findings_and_ends_with_one_if_there_are_errors(tmp_path, capsys):
    adata = everything_wrong()
    adata.write_h5ad(tmp_path / "a.h5ad")
    status, out, err = run(capsys, "inspect", tmp_path / "a.h5ad", "--categorical-covariates", "batch")
    assert (status, err) == (1, "")
    told = inspect(adata, categorical_covariates="batch")
    assert out == "\n".join(map(str, told)) + "\n"
    status, out, err = run(capsys, "inspect", tmp_path / "a.h5ad", "--json")
    assert [f["code"] for f in json.loads(out)] == codes(adata)


def test_the_command_writes_a_recipe_that_it_takes(tmp_path, capsys):
    everything_wrong().write_h5ad(tmp_path / "a.h5ad")
    recipe = tmp_path / "recipe.json"
    run(capsys, "inspect", tmp_path / "a.h5ad", "--write-recipe", recipe)
    status, out, _ = run(capsys, "inspect", tmp_path / "a.h5ad", "--recipe", recipe, "--json")
    assert status == 0
    assert "error" not in {f["severity"] for f in json.loads(out)}


def test_the_command_says_that_all_is_well(capsys):
    assert run(capsys, "inspect", "demo:pbmc700") == (0, "nothing was found that would harm a model\n", "")


def test_the_command_refuses_what_it_cannot_read(tmp_path, capsys):
    assert "there is no file" in run(capsys, "inspect", tmp_path / "a.h5ad")[2]
    small = simulate_expression(60, 40, 2)
    make(small).write_ondisk_dataset(small, tmp_path / "disk")
    assert "take the file it came from" in run(capsys, "inspect", tmp_path / "disk")[2]


# --- real data ------------------------------------------------------------------------------------

REAL: dict[str, set[str]] = {
    "atac_forebrain1043": {"outlier_cells"},
    "atac_leukemia391": {"few_cells", "read_counts"},
    "mixology_3cl_2tech": {"few_cells", "may_be_batches"},
    "mixology_rnamix": {"may_be_batches"},
    "multiome_mop_atac2500": {"not_binary", "may_be_batches"},
    "multiome_mop_rna2500": {"may_be_batches"},
    "pbmc3k_hvg2000": {"outlier_cells"},
    "pbmc_3tech_symphony": {"outlier_cells", "may_be_batches"},
    "pbmc_facs": {"outlier_cells", "many_features", "mitochondrial"},
    "fixtures/anndata/v0.5.0": {"counts_recoverable"},
}


@pytest.mark.parametrize("name", REAL)
def test_what_is_found_in_real_data(shared_data, name):
    adata = open_data(shared_data / f"{name}.h5ad", backed=True)
    assert set(codes(adata)) == REAL[name]


def test_real_read_counts_become_fragments(shared_data):
    out = mended(open_data(shared_data / "atac_leukemia391.h5ad", backed=True), "read_counts")
    n = np.bincount(out.X.data)
    assert n[1] > 4 * n[2] > 0
    assert codes(out) == ["few_cells", "not_binary"]


def test_real_counts_come_back_from_what_scanpy_made_of_them(shared_data):
    import scanpy as sc

    adata = open_data(shared_data / "pbmc_facs.h5ad")[:600].copy()
    counts = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.X = adata.X.astype(np.float32)
    assert (counts != mended(adata, "counts_recoverable").X).nnz == 0


def test_real_batches_that_share_their_types_are_not_confounded(shared_data):
    adata = open_data(shared_data / "mixology_3cl_2tech.h5ad", backed=True)
    assert codes(adata, categorical_covariates="batch") == ["few_cells"]
    assert cramers_v(adata.obs["batch"], adata.obs["cell_type"]) < 0.3


def fixtures(folder: Path) -> list[Path]:
    ends = (".h5ad", ".h5mu", ".loom", ".h5", ".zarr.zip")
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name.endswith(ends))


def test_every_fixture_can_be_inspected(shared_data):
    from mira_core.data import formats

    n = 0
    for path in fixtures(shared_data / "fixtures"):
        for part in formats.contents(path).names() or [None]:
            n += 1
            for finding in inspect(open_data(path, backed=True, part=part)):
                assert finding.code
    assert n > 12


def test_a_shallow_cell_whose_smallest_count_is_two_is_recovered():
    x = np.r_[np.tile([1, 2, 3], 10), np.tile([2, 3, 7], 10)].reshape(2, 30)
    assert np.array_equal(recover_counts(np.log1p(x * [[0.37], [2.2]])).toarray(), x)


def test_qc_and_findings_share_their_thresholds(clean):
    assert np.isfinite(qc(clean).thresholds.loc["total_counts", ["lower", "upper"]].to_numpy(float)).all()
