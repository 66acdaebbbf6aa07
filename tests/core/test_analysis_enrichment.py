"""Gene sets and regions that topics are made of, from files, offline; kept with cells and models."""

from __future__ import annotations

import gzip
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import mira_core as mira
from mira_core import cli
from mira_core.analysis import gene_sets, peaks
from mira_core.errors import CheckpointError, DataError, OptionError
from tests.helpers import arrays, make, predicted, same


@pytest.fixture
def cells() -> ad.AnnData:
    """Three topics of 300 genes: GENE0 to GENE19 are of topic_0, GENE20 to GENE39 of topic_1."""
    rng = np.random.default_rng(0)
    activations = rng.normal(size=(3, 300))
    activations[0, :20] += 3
    activations[1, 20:40] += 3
    return predicted(rng.dirichlet(np.ones(3), 50), activations)


SETS = {
    "first": [f"GENE{i}" for i in range(25)],
    "second": [f"gene{i}" for i in range(15, 40)],
    "any": [f"GENE{i}" for i in range(5, 300, 11)],
    "few": ["GENE1", "GENE2", "unknown"],
}


def write_gmt(path, sets=SETS):
    path.write_text("".join(f"{name}\thttp://x\t" + "\t".join(genes) + "\n" for name, genes in sets.items()))
    return path


# --- files of gene sets ---------------------------------------------------------------------------


def test_gmt_files_are_read_zipped_or_not(tmp_path):
    path = write_gmt(tmp_path / "a.gmt", {"s 1": ["A", "B", "A"], "s2": ["C,1.0", "D,0.5", "X,y"]})
    expected = {"s 1": ["A", "B"], "s2": ["C", "D", "X,y"]}
    assert mira.analysis.read_gmt(path) == expected
    (tmp_path / "b.gmt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n")))
    assert mira.analysis.read_gmt(str(tmp_path / "b.gmt.gz")) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no gene set"),
        (b"\n \n", "holds no gene set"),
        (b"a b c\n", "line 1: a set must have a name, a description and a gene"),
        (b"ok\td\tA\nname\tdescription\t\t\n", "line 2: a set must have"),
        (b"s\td\tA\ns\td\tB\n", "another set of the name 's'"),
        (b"\xff\xfe\x00\x01\xd8", "must be text"),
        (b"\x1f\x8b\x08broken", "cannot be read"),
        (gzip.compress(b"s\td\tA\n" * 10, mtime=0)[:-9], "cannot be read"),
    ],
)
def test_files_that_are_no_gene_sets_are_told(tmp_path, content, said):
    path = tmp_path / "x.gmt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        mira.analysis.read_gmt(path)


def test_a_file_that_is_missing_or_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="cannot be read"):
        mira.analysis.read_gmt(tmp_path / "none.gmt")
    monkeypatch.setattr(gene_sets.lines_of, "__defaults__", (2**20,))
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b"s\td\tA\n" * 10**6))
    with pytest.raises(DataError, match="more than 1 MiB"):
        mira.analysis.read_gmt(tmp_path / "bomb.gz")


# --- gene sets ------------------------------------------------------------------------------------


def test_overrepresentation_is_fishers_test_against_the_modelled_features(cells):
    told = mira.analysis.enrich(cells, SETS, top=20)
    assert told["topic"].unique().tolist() == ["topic_0", "topic_1", "topic_2"]
    assert set(told["gene_set"]) == {"first", "second", "any"}  # the fourth has 2 members
    p = cells.varm["topic_feature_compositions"].astype(float)
    q = p @ cells.obsm["X_topic_compositions"].mean(0)
    for row in told.itertuples():
        k = int(row.topic[-1])
        top = set(cells.var_names[np.argsort(-(p[:, k] * np.log(p[:, k] / q)))[:20]])
        members = {g.upper() for g in SETS[row.gene_set]}
        hit = len(top & members)
        table = [[hit, 20 - hit], [len(members) - hit, 300 - 20 - len(members) + hit]]
        assert row.p_value == pytest.approx(stats.fisher_exact(table, "greater").pvalue)
        (a, b), (c, d) = np.array(table) + 0.5
        assert row.effect == pytest.approx(a * d / (b * c))
        assert (row.size, row.overlap) == (len(members), hit)
        assert set(row.genes.split(", ")) - {""} == top & members
    for _, rows in told.groupby("topic"):
        assert rows["p_value"].is_monotonic_increasing
        np.testing.assert_allclose(rows["q_value"], stats.false_discovery_control(rows["p_value"]))


def test_the_rank_test_is_scipys_rank_sum(cells):
    told = mira.analysis.enrich(cells, SETS, "rank").set_index(["topic", "gene_set"])
    activations = cells.varm["topic_feature_activations"]
    for (topic, name), row in told.iterrows():
        member = np.isin(cells.var_names, [g.upper() for g in SETS[name]])
        a = activations[:, int(topic[-1])]
        expected = stats.mannwhitneyu(a[member], a[~member], alternative="greater", method="asymptotic")
        assert row["p_value"] == pytest.approx(expected.pvalue)
        assert row["effect"] == pytest.approx(expected.statistic / member.sum() / (~member).sum())
    assert told.loc[("topic_0", "first"), "q_value"] < 1e-6
    assert told.loc[("topic_1", "second"), "q_value"] < 1e-6
    assert told.loc[("topic_2", "any"), "p_value"] > 0.01


@pytest.mark.parametrize("method", ["overrepresentation", "rank"])
def test_where_nothing_is_enriched_few_p_values_are_small(method):
    rng = np.random.default_rng(0)
    cells = predicted(rng.dirichlet(np.ones(10), 20), rng.normal(size=(10, 500)))
    sets = {str(i): rng.choice(cells.var_names, 40, replace=False) for i in range(100)}
    p = mira.analysis.enrich(cells, sets, method)["p_value"]
    assert 0.01 < (p < 0.05).mean() < 0.07  # the hypergeometric test errs on the safe side


def test_gseapy_agrees_on_what_is_enriched(cells):
    gseapy = pytest.importorskip("gseapy", reason="the extra 'enrichment' is not installed")
    told = mira.analysis.enrich(cells, SETS, "gsea", permutations=200).set_index(["topic", "gene_set"])
    assert told.loc[("topic_0", "first"), "effect"] > 1.5
    assert told.loc[("topic_0", "first"), "p_value"] == pytest.approx(1 / 201)
    assert told.loc[("topic_1", "second"), "p_value"] == pytest.approx(1 / 201)
    assert told.loc[("topic_2", "any"), "p_value"] > 0.01
    assert "GENE0" in told.loc[("topic_0", "first"), "genes"]
    again = mira.analysis.enrich(cells, SETS, "gsea", permutations=200).set_index(["topic", "gene_set"])
    pd.testing.assert_frame_equal(told, again)
    top = mira.analysis.top_features(cells, 20)[0]
    sets = {name: [g.upper() for g in genes] for name, genes in SETS.items()}
    theirs = gseapy.enrich(top, sets, background=cells.var_names.tolist(), outdir=None, no_plot=True).results
    ours = mira.analysis.enrich(cells, SETS, top=20, min_size=1).set_index(["topic", "gene_set"]).loc["topic_0"]
    for row in theirs.itertuples():
        assert ours.loc[row.Term, "p_value"] == pytest.approx(row[4], rel=1e-6)


def test_identifiers_are_met_by_their_symbols_whatever_their_case_and_version(cells):
    expected = mira.analysis.enrich(cells, SETS)
    symbols = cells.var_names.copy()
    cells.var_names = [f"ENSMUSG{i:011d}" for i in range(300)]
    cells.var["gene_symbols"] = symbols.str.capitalize()
    told = mira.analysis.enrich(cells, SETS)
    np.testing.assert_allclose(told["p_value"], expected["p_value"])
    assert told["genes"].str.upper().tolist() == expected["genes"].tolist()
    by_id = {"first": [f"ENSMUSG{i:011d}.{i}" for i in range(25)]}
    assert mira.analysis.enrich(cells, by_id)["p_value"].min() == told["p_value"].min()


def test_a_model_is_asked_as_its_cells_are():
    adata = mira.data.simulate_expression(200, 60, 3, seed=1)
    model = make(adata, num_topics=3).fit(adata, progress=False)
    sets = {"a": list(adata.var_names[:12]), "b": list(adata.var_names[30:50])}
    pd.testing.assert_frame_equal(
        mira.analysis.enrich(model, sets, "rank").drop(columns=["genes", "overlap"]),
        mira.analysis.enrich(model.predict(adata), sets, "rank").drop(columns=["genes", "overlap"]), rtol=1e-4,
    )  # fmt: skip


def test_sets_that_cannot_be_tested_are_told(cells, tmp_path):
    for wrong, said in [
        ({}, "holds no set"),
        ({"a": "GENE1"}, "that of 'a' is a text"),
        ([1], "must be a dict"),
        ({"a": ["CD3D", "CD3E"], "b": []}, "name them like CD3D, CD3E, the data like GENE0, GENE1, GENE2"),
        ({"a": ["GENE1"]}, "no set has 5 to 500 members"),
        ({"a": []}, "none of the 0 genes"),
    ]:
        with pytest.raises(DataError, match=said):
            mira.analysis.enrich(cells, wrong)
    for options, said in [
        ({"method": "fisher"}, "method must be one of"),
        ({"top": 300}, "from 1 to 299"),
        ({"min_size": 9, "max_size": 8}, "min_size"),
    ]:
        with pytest.raises(OptionError, match=said):
            mira.analysis.enrich(cells, SETS, **options)


def test_gsea_without_gseapy_says_what_to_install(cells, monkeypatch):
    monkeypatch.setitem(sys.modules, "gseapy", None)
    with pytest.raises(OptionError, match=r"pip install 'mira-topics\[enrichment\]'"):
        mira.analysis.enrich(cells, SETS, "gsea")


@pytest.mark.slow
def test_topics_of_sorted_blood_cells_are_named_by_their_markers(shared_data):
    """The sorting, by antibodies, is independent of the expression that the model sees."""
    adata = mira.data.open_data(shared_data / "pbmc_facs.h5ad")[::3].copy()
    mean = np.asarray(adata.X.mean(0)).ravel()
    var = np.asarray(adata.X.multiply(adata.X).mean(0)).ravel() - mean**2
    score = np.where(np.asarray((adata.X > 0).sum(0)).ravel() >= 15, var / np.maximum(mean, 1e-9), 0)
    adata = adata[:, np.argsort(-score)[:1500]].copy()
    options = {"num_topics": 8, "hidden": 64, "num_epochs": 30, "batch_size": 64, "seed": 0}
    model = mira.topics.make_model(*adata.shape, feature_type="expression", **options).fit(adata, progress=False)
    model.predict(adata)
    markers = {
        "B": ["CD79A", "CD79B", "MS4A1", "CD74", "HLA-DRA"],
        "NK": ["GNLY", "NKG7", "GZMB", "PRF1", "FGFBP2"],
        "monocyte": ["LYZ", "S100A8", "S100A9", "CST3", "FCN1"],
        "HSC": ["SPINK2", "AVP", "CRHBP", "PRSS57", "SOX4"],
    }
    found = mira.analysis.enrich(adata, markers, top=100, min_size=3)
    by_type = mira.analysis.topics_by(adata, "cell_type").drop(columns="cells")
    sorted_as = {"B": "CD19+ B", "NK": "CD56+ NK", "monocyte": "CD14+ Monocyte", "HSC": "CD34+"}
    for name, cell_type in sorted_as.items():
        best = found[found["gene_set"] == name].sort_values("p_value").iloc[0]
        assert best["q_value"] < 0.05
        assert by_type[best["topic"]].idxmax() == cell_type


# --- regions --------------------------------------------------------------------------------------


@pytest.fixture
def accessible(cells) -> ad.AnnData:
    """Peaks of 50 bases every 100, on chr1 and chrX."""
    cells.var_names = [f"chr{'1X'[j % 2]}:{100 * j}-{100 * j + 50}" for j in range(300)]
    return cells


def test_peaks_that_overlap_regions_are_counted(accessible, tmp_path):
    rng = np.random.default_rng(0)
    lines, hit = [], np.zeros(300, bool)
    for _ in range(60):
        start, chrom = int(rng.integers(0, 5000)), rng.choice(["1", "X"])
        end = start + int(rng.integers(0, 160))
        lines.append(f"chr{chrom}\t{start}\t{end}\tname\n")
        for j in range(300):
            hit[j] |= "1X"[j % 2] == chrom and start < 100 * j + 50 and end > 100 * j and end > start
    (tmp_path / "a.bed").write_text("# comment\ntrack name=x\n" + "".join(lines))
    chrom, start, end = peaks.peak_positions(accessible, accessible.var_names.to_numpy(str))
    found = peaks.overlapping(chrom, start, end, peaks.read_bed(tmp_path / "a.bed"))
    assert found.tolist() == np.flatnonzero(hit).tolist()


def test_regions_of_a_topics_peaks_are_enriched_in_it(accessible, tmp_path):
    (tmp_path / "first.bed").write_text("".join(f"{'1X'[j % 2]} {100 * j + 49} {100 * j + 60}\n" for j in range(20)))
    zipped = tmp_path / "wide.bed.gz"
    zipped.write_bytes(gzip.compress(b"chr1\t0\t30000\nchrX\t0\t15000\n"))
    told = mira.analysis.enrich_peaks(accessible, {"first": tmp_path / "first.bed", "wide": zipped}, top=20)
    told = told.set_index(["topic", "gene_set"])
    assert told.loc[("topic_0", "first"), "size"] == 20
    assert told.loc[("topic_0", "first"), "q_value"] < 1e-10
    assert told.loc[("topic_1", "first"), "p_value"] > 0.05
    assert told.loc[("topic_0", "wide"), "p_value"] > 0.05


@pytest.mark.parametrize("names", ["chr{}-{}-{}", "chr{}_{}_{}", "{}:{}-{}", "KI270.1-{}-{}-{}"])
def test_positions_are_read_from_names_or_columns(accessible, names):
    expected = peaks.peak_positions(accessible, accessible.var_names.to_numpy(str))
    parts = accessible.var_names.str.extract(r"chr(.)\:(\d+)-(\d+)")
    accessible.var_names = [names.format(*row) for row in parts.itertuples(index=False)]
    found = peaks.peak_positions(accessible, accessible.var_names.to_numpy(str))
    np.testing.assert_array_equal(found[1:], expected[1:])
    if "KI" not in names:
        np.testing.assert_array_equal(found[0], expected[0])
    accessible.var_names = [f"peak{j}" for j in range(300)]
    with pytest.raises(DataError, match="300 of 300 have none, such as 'peak0'"):
        peaks.peak_positions(accessible, accessible.var_names.to_numpy(str))
    accessible.var[["chrom", "start", "end"]] = parts.to_numpy()
    found = peaks.peak_positions(accessible, accessible.var_names.to_numpy(str))
    np.testing.assert_array_equal(found[1:], expected[1:])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no interval"),
        (b"chr1\t5\n", "line 1: must be a chromosome"),
        (b"chr1\t5\t9\nchr1\t9\t5\n", "line 2"),
        (b"chr1\t-5\t9\n", "line 1"),
        (b"chr1\t1e3\t9\n", "line 1"),
        (b"chr1\t1\t" + b"9" * 400 + b"\n", "line 1"),
        ("chr1\t١\t٩\n".encode(), "line 1"),
        (b"\x89HDF\r\n\x1a\n\xff", "must be text"),
        (b"chr1\t1000000\t1000010\n", "no file's regions overlap 5 of the 300 modelled peaks"),
        (b"chr1\t5\t5\n", "no file's regions overlap"),
    ],
)
def test_files_that_are_no_regions_are_told(accessible, tmp_path, content, said):
    (tmp_path / "x.bed").write_bytes(content)
    with pytest.raises(DataError, match=said):
        mira.analysis.enrich_peaks(accessible, {"x": tmp_path / "x.bed"})
    with pytest.raises(DataError, match="regions must be a dict"):
        mira.analysis.enrich_peaks(accessible, {})


# --- keeping --------------------------------------------------------------------------------------


def test_tables_are_kept_with_cells_through_a_file(cells, tmp_path):
    told = mira.analysis.enrich(cells, SETS)
    told.loc[0, "effect"] = np.nan
    mira.analysis.keep_enrichment(cells, "a/b of .gmt", told)
    mira.analysis.keep_enrichment(cells, "other", told.head(0))
    mira.analysis.keep_enrichment(cells, "other", told.head(2))
    cells.write_h5ad(tmp_path / "x.h5ad")
    kept = mira.analysis.kept_enrichments(ad.read_h5ad(tmp_path / "x.h5ad"))
    assert list(kept) == ["a/b of .gmt", "other"]
    pd.testing.assert_frame_equal(kept["a/b of .gmt"], told)
    assert len(kept["other"]) == 2
    for damaged in ("{", "[1]", '{"a": {"b": 1}}', '{"a": {"b": [1], "c": []}}', "[" * 5000):
        cells.uns["topic_enrichment"] = damaged
        with pytest.raises(DataError, match="delete it, and enrich anew"):
            mira.analysis.kept_enrichments(cells)


def test_tables_are_kept_with_a_model_until_it_is_trained_anew(tmp_path):
    adata = mira.data.simulate_expression(100, 60, 3, seed=1)
    model = make(adata, num_topics=3).fit(adata, progress=False)
    plain = tmp_path / "plain.safetensors"
    model.save(plain)
    assert mira.analysis.kept_enrichments(mira.topics.load_model(plain)) == {}
    told = mira.analysis.enrich(model, {"a": list(adata.var_names[:12])}, "rank")
    mira.analysis.keep_enrichment(model, "rank", told)
    model.save(tmp_path / "m.safetensors")
    again = mira.topics.load_model(tmp_path / "m.safetensors")
    pd.testing.assert_frame_equal(mira.analysis.kept_enrichments(again)["rank"], told)
    assert same(arrays(model), arrays(again))
    model.fit(adata, progress=False)
    assert mira.analysis.kept_enrichments(model) == {}
    model.enrichments = {"rank": {"topic": ["topic_0"], "p_value": []}}
    model.save(plain)
    with pytest.raises(CheckpointError, match="columns of one length"):
        mira.topics.load_model(plain)


# --- on the command line --------------------------------------------------------------------------


def test_the_command_writes_a_table_and_keeps_it(cells, tmp_path, capsys):
    (tmp_path / "run" / "result").mkdir(parents=True)
    cells.write_h5ad(tmp_path / "run" / "result" / "cells.h5ad")
    gmt, out = write_gmt(tmp_path / "a.gmt"), tmp_path / "out.csv"
    asked = ["enrich", str(tmp_path / "run"), "--gmt", str(gmt), "--method", "rank", "-o", str(out), "--keep", "mine"]
    assert cli.main(asked) == 0
    assert "2 of 9 pairs of topic and set with q < 0.05, in 2 topics" in capsys.readouterr().out
    expected = mira.analysis.enrich(cells, SETS, "rank")
    told = pd.read_csv(out, keep_default_na=False)
    pd.testing.assert_frame_equal(told, expected)
    kept = mira.analysis.kept_enrichments(mira.data.open_data(tmp_path / "run" / "result" / "cells.h5ad"))
    pd.testing.assert_frame_equal(kept["mine"], expected)
    assert cli.main(["enrich", str(tmp_path / "run" / "result"), "--gmt", str(gmt)]) == 0
    assert capsys.readouterr().out.startswith("topic,gene_set,size,overlap,effect,p_value,q_value,genes\n")


def test_the_command_says_what_is_wrong(accessible, tmp_path, capsys):
    accessible.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "r.bed").write_text("chr1\t0\t30000\n")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "r.bed.gz").write_bytes(gzip.compress(b"chr1\t0\t30000\n"))
    at, bed = str(tmp_path), str(tmp_path / "r.bed")
    for asked, said in [
        ([at], "either --gmt or --bed"),
        ([at, "--gmt", "x.gmt", "--bed", bed], "either --gmt or --bed"),
        ([at, "--gmt", str(tmp_path / "x.gmt")], "x.gmt cannot be read"),
        ([at, "--bed", bed, str(tmp_path / "s" / "r.bed.gz")], "'r' is there twice"),
        ([str(tmp_path / "s"), "--bed", bed], "must be a run that has ended"),
        ([at, "--bed", bed, "-o", str(tmp_path / "no" / "x.csv")], "cannot be written"),
    ]:
        assert cli.main(["enrich", *asked]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["enrich", at, "--bed", bed]) == 0
    assert "topic_0,r,150," in capsys.readouterr().out
