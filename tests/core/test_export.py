"""What is taken away from a run: data, tables, figures, the report, the methods text; and the digest of counts."""

from __future__ import annotations

import hashlib
import html.parser
import io
import json
import re
import struct
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import mira_core as mira
from mira_core import cli, environment, jobs
from mira_core.data.counts import CountMatrix
from mira_core.data.digest import digest
from mira_core.errors import DataError, JobError, OptionError
from mira_core.export import tables
from mira_core.export.data import export_data
from mira_core.export.html_report import report, warnings
from mira_core.export.methods_text import methods
from mira_core.export.run import FinishedRun
from mira_core.plots import topics as plots
from mira_core.run import run_job
from tests.helpers import with_columns

EVIL = "<img src=x onerror=alert(1)>$a_{&'\""
SMALL = {"feature_type": "expression", "num_topics": 3, "hidden": 8, "num_epochs": 2, "batch_size": 32, "seed": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run on a file with hostile names and much besides the counts."""
    root = tmp_path_factory.mktemp("export")
    cells = with_columns(mira.data.simulate_expression(200, 60, 3, n_types=3, depth=500, seed=3))
    cells.obs["cell_type"] = pd.Categorical.from_codes(np.arange(200) % 3, [EVIL, "B $x$", "../../etc/passwd"])
    cells.obs_names = [EVIL, *cells.obs_names[1:]]
    cells.var_names = [EVIL, "../gene", *cells.var_names[2:]]
    cells.layers["logged"] = np.log1p(cells.X.toarray())
    cells.obsm["X_pca"] = np.ones((200, 2))
    cells.uns["kept"] = {"a": 1}
    cells.raw = cells
    cells.var["hv"] = np.arange(60) < 50
    cells.write_h5ad(root / "cells.h5ad")
    jobs.write_spec(root / "run", data=str(root / "cells.h5ad"), model={**SMALL, "highly_variable_key": "hv"},
                    name=f"../{EVIL}", test_size=0.2, embedding=False)  # fmt: skip
    assert run_job(root / "run").state == "finished"
    done = ad.read_h5ad(path := root / "run" / "result" / "cells.h5ad")
    done.obsm["X_umap"] = np.random.default_rng(0).normal(size=(200, 2))  # in no time
    done.write_h5ad(path)
    return root / "run"


@pytest.fixture(scope="module")
def run(folder) -> FinishedRun:
    return FinishedRun(folder)


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory) -> Path:
    return mira.export.export_all(folder, tmp_path_factory.mktemp("out") / "all")


# --- the digest -----------------------------------------------------------------------------------


def test_the_digest_is_that_of_its_definition():
    counts = np.array([[0, 2, 0], [1, 0, 7], [0, 0, 0]])
    whole = hashlib.sha256(b"mira counts 1\n")
    for names in (["a", "bé", "c"], ["x", "y", "z"]):
        encoded = [n.encode() for n in names]
        whole.update(hashlib.sha256(b"".join(struct.pack("<I", len(e)) + e for e in encoded)).digest())
    for form, values in (("<3Q", [1, 2, 0]), ("<3I", [1, 0, 2]), ("<3I", [2, 1, 7])):
        whole.update(hashlib.sha256(struct.pack(form, *values)).digest())
    assert digest(CountMatrix.from_scipy(sp.csr_array(counts)), ["a", "bé", "c"], list("xyz")) == whole.hexdigest()


def test_the_digest_does_not_depend_on_how_counts_are_stored_and_does_on_what_they_are(monkeypatch):
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (30, 8))
    cells, features = [f"c{i}" for i in range(30)], [f"f{i}" for i in range(8)]

    def of(matrix, cells=cells, features=features) -> str:
        return digest(CountMatrix.from_scipy(matrix), cells, features)

    plain = of(sp.csr_array(counts))
    explicit = sp.csr_array(counts.astype(np.uint16))
    explicit[0, 0], explicit[0, 0] = 5, counts[0, 0]
    coo = sp.coo_array(counts.astype(float))
    order = rng.permutation(coo.nnz)
    shuffled = sp.coo_array((coo.data[order], (coo.row[order], coo.col[order])), shape=coo.shape)
    for other in (sp.csc_array(counts), explicit, shuffled, np.asfortranarray(counts)):
        assert of(other) == plain
    monkeypatch.setattr("mira_core.data.counts.CHUNK", 5)
    assert of(sp.csr_array(counts)) == plain
    changed = counts.copy()
    changed[3, 3] += 1
    swapped = [cells[1], cells[0], *cells[2:]]
    different = {of(changed), of(counts[::-1]), of(counts, cells=swapped), of(counts, features=features[::-1])}
    assert len(different | {plain}) == 5
    with pytest.raises(ValueError, match="30 names; got 29"):
        of(counts, cells=cells[:-1])


def test_a_run_notes_its_digest_its_versions_and_threads(folder, run):
    noted = json.loads((folder / "provenance.json").read_text())
    data = ad.read_h5ad(folder.parent / "cells.h5ad")[:, :50]
    assert noted["digest"] == digest(CountMatrix.from_scipy(data.X), data.obs_names, data.var_names)
    (process,) = noted["processes"]
    assert process["versions"]["mira-topics"] == mira.__version__
    assert process["threads"]["torch"] == 1
    here = environment.describe()
    assert environment.differences(process, here) == []
    there = {**here, "threads": {"torch": 8, "blas": 1}, "versions": {**here["versions"], "numpy": "1.0"}}
    assert len(environment.differences(there, here)) == 2 + (here["threads"]["blas"] != 1)


# --- cells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_exported_cells_have_all_that_the_file_and_the_model_say(run, folder, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    export_data(run, path)
    out = ad.read_h5ad(path) if suffix == "h5ad" else ad.read_zarr(path)
    before = ad.read_h5ad(folder.parent / "cells.h5ad")
    assert (out.X != before.X).nnz == 0
    assert (out.layers["logged"] == before.layers["logged"]).all()
    assert (out.raw.X != before.raw.X).nnz == 0
    assert out.uns["kept"]["a"] == 1
    again = run.model.predict(before)
    assert (out.obsm["X_topic_compositions"] == again.obsm["X_topic_compositions"]).all()
    assert set(again.obsm) | {"X_umap", "X_pca"} == set(out.obsm)
    assert set(again.varm) == set(out.varm)
    assert list(again.obs) == list(out.obs)
    assert list(out.obs_names) == list(before.obs_names)
    told = out.uns["mira"]
    assert told["digest"] == run.provenance["digest"]
    assert json.loads(told["options"]) == run.model.get_params()
    assert told["seed"] == "1"
    assert json.loads(told["versions"])["torch"]
    assert not [p for p in tmp_path.iterdir() if p != path]


def test_a_recipe_is_done_and_cells_on_the_disk_are_written(tmp_path):
    cells = mira.data.simulate_expression(150, 40, 3, depth=400, seed=2)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    recipe = [{"step": "filter_cells", "min_counts": 300}]
    jobs.write_spec(tmp_path / "a", data=str(tmp_path / "cells.h5ad"), model=SMALL, recipe=recipe, embedding=False)
    assert run_job(tmp_path / "a").state == "finished"
    export_data(FinishedRun(tmp_path / "a"), tmp_path / "a.h5ad")
    out = ad.read_h5ad(tmp_path / "a.h5ad")
    assert 10 < out.n_obs < 150
    assert (out.X != cells[out.obs_names].X).nnz == 0
    assert "filter_cells" in out.uns["mira"]["recipe"]

    mira.topics.make_model(*cells.shape, **SMALL).write_ondisk_dataset(cells, tmp_path / "disk")
    jobs.write_spec(tmp_path / "b", data=str(tmp_path / "disk"), model=SMALL, embedding=False)
    assert run_job(tmp_path / "b").state == "finished"
    export_data(FinishedRun(tmp_path / "b"), tmp_path / "b.h5ad")
    out = ad.read_h5ad(tmp_path / "b.h5ad")
    assert (out.X != cells.X).nnz == 0
    assert out.X.dtype == np.int32


def test_data_that_have_changed_or_gone_are_told_and_what_needs_none_is_still_there(tmp_path):
    cells = mira.data.simulate_expression(100, 30, 3, depth=400, seed=2)
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    jobs.write_spec(tmp_path / "a", data=str(path), model=SMALL, embedding=False)
    assert run_job(tmp_path / "a").state == "finished"
    cells.X.data[0] += 1
    cells.write_h5ad(path)
    with pytest.raises(DataError, match=r"counts in cells.h5ad have changed since this run"):
        mira.export.export_all(tmp_path / "a", tmp_path / "out", ["data"])
    with pytest.raises(DataError, match=r"counts in cells.h5ad have changed since this run"):
        mira.export.export_all(tmp_path / "a", tmp_path / "out", ["script"])
    cells[:50].copy().write_h5ad(path)
    with pytest.raises(DataError, match="have other cells now"):
        mira.export.export_all(tmp_path / "a", tmp_path / "out", ["data"])
    path.unlink()
    with pytest.raises(DataError, match="cannot be opened any more"):
        mira.export.export_all(tmp_path / "a", tmp_path / "out", ["data"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    out = mira.export.export_all(tmp_path / "a", tmp_path / "out", ["report", "methods", "tables"])
    assert "first two principal axes" in (out / "report.html").read_text()


# --- everything -----------------------------------------------------------------------------------


def test_the_folder_has_what_its_index_says_under_names_of_its_own(exported):
    files = {p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()}
    named = {line.split("  ")[0] for line in (exported / "index.txt").read_text().splitlines()[2:]}
    assert files == named | {"index.txt"}
    assert all(re.fullmatch(r"[a-z0-9_/]+\.[a-z0-9]+", name) for name in files)
    assert len((exported / "index.txt").read_text().splitlines()[0].splitlines()) == 1
    assert [p.name for p in exported.parent.iterdir()] == ["all"]


def test_folders_in_use_and_unknown_exports_are_refused(folder, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").touch()
    with pytest.raises(JobError, match="must not exist or be empty"):
        mira.export.export_all(folder, tmp_path / "used", ["methods"])
    with pytest.raises(OptionError, match="no export 'film'"):
        mira.export.export_all(folder, tmp_path / "x", ["film"])
    with pytest.raises(OptionError, match="something must be exported"):
        mira.export.export_all(folder, tmp_path / "x", [])
    with pytest.raises(OptionError, match="h5ad or zarr; got 'csv'"):
        mira.export.export_all(folder, tmp_path / "x", form="csv")
    with pytest.raises(DataError, match="no column 'nonsense'"):
        mira.export.export_all(FinishedRun(folder, "nonsense"), tmp_path / "x", ["tables"])
    jobs.write_spec(tmp_path / "waits", data="demo:simulated", model=SMALL)
    with pytest.raises(JobError, match="once it has topics"):
        mira.export.export_all(tmp_path / "waits", tmp_path / "x")
    jobs.write_spec(tmp_path / "rates", data="demo:simulated", model=SMALL, kind="range_test")
    with pytest.raises(JobError, match="is a range_test"):
        FinishedRun(tmp_path / "rates")
    assert not (tmp_path / "x").exists()


def test_the_command_exports_and_says_where(folder, tmp_path, capsys):
    arguments = ["export", str(folder), "-o", str(tmp_path / "out"), "--what", "methods", "tables", "--column", "batch"]
    assert cli.main(arguments) == 0
    assert "methods.txt" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "out" / "tables" / "topics_by_column.csv")["batch"].tolist() == ["a", "b"]
    assert cli.main(arguments) == 2
    assert "must not exist or be empty" in capsys.readouterr().err


def test_a_zip_is_a_stream(exported):
    class Stream(io.RawIOBase):
        def __init__(self):
            self.parts = []

        def writable(self):
            return True

        def write(self, data):
            self.parts.append(bytes(data))
            return len(data)

    stream = Stream()
    mira.export.write_zip(exported / "tables", stream)
    archive = zipfile.ZipFile(io.BytesIO(b"".join(stream.parts)))
    assert archive.testzip() is None
    assert sorted(archive.namelist()) == sorted(f"tables/{p.name}" for p in (exported / "tables").iterdir())
    assert archive.read("tables/options.csv") == (exported / "tables" / "options.csv").read_bytes()


# --- tables ---------------------------------------------------------------------------------------


def test_tables_are_those_of_the_model(run, exported):
    def table(name: str, **more) -> pd.DataFrame:
        return pd.read_csv(exported / "tables" / f"{name}.csv", **more)

    theta = table("compositions", index_col=0)
    assert np.allclose(theta.to_numpy(), run.theta, atol=1e-6)
    assert list(theta.index) == list(run.cells.obs_names)
    assert theta.index[0] == EVIL
    activations = table("feature_activations", index_col=0)
    assert np.allclose(activations.to_numpy(), run.model.topic_feature_activations().T, atol=1e-5)
    assert np.allclose(table("feature_compositions", index_col=0).sum(), 1, atol=1e-5)
    top = table("top_features")
    assert (top.groupby("topic").size() == 50).all()
    assert (top.groupby("topic")["says"].diff().dropna() <= 0).all()
    training = table("training")
    assert training["loss"].tolist() == pytest.approx([r.loss for r in run.history])
    assert training["held_out_loss"].notna().all()
    options = table("options", keep_default_na=False).set_index("option")
    assert options.loc["hidden", ["value", "whose", "recommended"]].tolist() == ["8", "given", "64"]
    assert options.loc["cost_beta", ["value", "whose", "documented", "why"]].tolist() == [
        "1.5", "recommended", "1", "up to 2,000 cells",
    ]  # fmt: skip
    assert set(options.index) == set(run.model.get_params())
    by = table("topics_by_column", index_col=0)
    assert by.index.name == "cell_type"
    assert by["cells"].sum() == 200
    assert set(tables.TABLES) == {p.name for p in (exported / "tables").iterdir()}


# --- figures --------------------------------------------------------------------------------------


def test_figures_are_drawn_whatever_names_hold(exported):
    svgs = sorted((exported / "figures").glob("*.svg"))
    assert len(svgs) == 6
    for path in svgs:
        root = ElementTree.parse(path).getroot()  # names are text in it
        assert root.tag.endswith("svg")
        assert (path.with_suffix(".png")).read_bytes()[:4] == b"\x89PNG"
    drawn = " ".join(ElementTree.parse(exported / "figures" / "column.svg").getroot().itertext())
    assert "B $x$" in drawn  # no mathematics
    assert "onerror" in drawn


def test_many_cells_are_drawn_as_an_image_of_the_last_ones_and_of_means(monkeypatch):
    from matplotlib.figure import Figure

    monkeypatch.setattr(plots, "MANY", 10)
    monkeypatch.setattr(plots, "PIXELS", 2)
    monkeypatch.setattr(plots, "SMALL_PIXELS", 2)
    rng = np.random.default_rng(0)
    xy = np.array([[0.0, 0.0], [1.0, 1.0]])[np.arange(40) % 2] + rng.uniform(0, 0.01, (40, 2))
    share = np.where(np.arange(40) % 2, 0.8, 0.2) + np.where(np.arange(40) % 4 > 1, 0.1, -0.1)
    ax = Figure().add_subplot()
    top = plots.plot_share(share, plots.cells_info(xy), ax=ax)
    image = ax.images[0].get_array()
    assert (image[..., 3] > 0).tolist() == [[True, False], [False, True]]
    import matplotlib

    assert np.allclose(image[0, 0], matplotlib.colormaps["cividis"](0.2 / top), atol=0.02)
    ax = Figure().add_subplot()
    plots.plot_categories(np.arange(40) % 2, ["a", "b"], plots.cells_info(xy), ["#ff0000", "#0000ff"], ax=ax)
    assert ax.images[0].get_array()[0, 0].tolist() == [1, 0, 0, 1]
    assert ax.images[0].get_array()[1, 1].tolist() == [0, 0, 1, 1]


def test_curves_show_unweighted_losses(run):
    info = plots.training_info(run.history)
    assert np.allclose(info.loss, [r.distortion + r.rate for r in run.history])
    assert np.allclose(info.held_out, [r.held_out_loss for r in run.history])


# --- report and methods ---------------------------------------------------------------------------


class Seen(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action", "data")]
        assert not [k for k, _ in attributes if k.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_is_one_file_with_nothing_from_elsewhere_and_names_are_text(exported):
    text = (exported / "report.html").read_text()
    seen = Seen()
    seen.feed(text)
    assert "script" not in seen.tags
    assert seen.tags.count("link") == 1  # an icon that is none, so that browsers ask for none
    assert all(link.startswith(("data:", "#")) for link in seen.links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "<img src=x" not in text
    assert any(EVIL in t for t in seen.text)
    assert "default-src 'none'" in text
    assert len(text) < 2e6
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_report_warns_of_topics_that_are_not_needed(run):
    described = pd.DataFrame(
        {
            "topic": ["topic_0", "topic_1", "topic_2"],
            "dead": [False, False, True],
            "redundant_with": ["topic_1", "topic_0", None],
        }
    )
    told = warnings(run, described)
    assert told[0] == "In hardly any cell: topic_2. Fewer topics may do."
    assert told[1] == "topic_0 and topic_1 move the same features; they may be one topic."
    assert len(told) == 2
    assert f"{run.model.num_topics} topics of gene expression" in report(run)


def test_the_methods_text_names_what_one_must_know_to_do_it_again(run):
    text = methods(run)
    for word in (
        "3 topics of gene expression", "MIRA topic model [1]", f"mira-topics {mira.__version__}", "200 cells",
        "50 genes of 60", '"hv"', "trained on 160 cells for 2 epochs in minibatches of 32", "40 cells were held out",
        "hidden = 8 (set)", "random seed was 1", run.provenance["digest"], "PyTorch", "Pyro", "anndata", "scanpy",
        "Nature Methods 19, 1097", "UMAP [2]",
    ):  # fmt: skip
        assert word in text, word
    assert "CODAL" not in text
    cited = set(re.findall(r"\[(\d)\]", text.split("\n\n")[0]))
    assert cited == set(re.findall(r"^\[(\d)\]", text.split("\n\n")[1], re.MULTILINE))


def test_the_methods_text_tells_of_covariates_recipe_peaks_and_a_stop(tmp_path):
    cells = with_columns(mira.data.simulate_expression(150, 40, 3, depth=400, seed=2))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    folder = tmp_path / "a"
    model = {**SMALL, "feature_type": "accessibility", "atac_encoder": "fast", "categorical_covariates": ["batch"]}
    recipe = [{"step": "filter_cells", "min_counts": 300}]
    jobs.write_spec(folder, data=str(tmp_path / "cells.h5ad"), model=model, recipe=recipe, embedding=False)
    run_job(folder, lambda record: jobs.request_stop(folder) if record.step == 2 else None)
    text = methods(FinishedRun(folder))
    for word in (
        "topics of chromatin accessibility", "CODAL topic model [1,2]", "binarised counts", "40 peaks",
        "(1) filter_cells(min_counts=300.0)", 'Technical effects of "batch"', "stopped at step 2 of",
        "Nature Communications 14, 4126",
    ):  # fmt: skip
        assert word in text, word
    assert "UMAP" not in text.split("The computation used")[0]
    assert "stopped after step 2" in report(FinishedRun(folder))
