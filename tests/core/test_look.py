"""A look at data, as a dashboard takes it: in a process of its own, before and after a recipe."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mira_core.data import Recipe, inspect, open_data, qc, simulate_expression
from mira_core.data.describe import describe
from mira_core.data.look import Look, look, main
from mira_core.data.recipe import prepare
from mira_core.errors import DataError
from tests.helpers import make


@pytest.fixture
def path(tmp_path):
    """300 cells with genes of which some are mitochondrial by their symbols, some cells empty or deep."""
    adata = simulate_expression(300, 120, 4, depth=400, seed=3)
    x = adata.X.tolil()
    x[:4], x[10] = 0, x[10].toarray() * 40
    adata.X = x.tocsr()
    adata.var["symbol"] = [f"MT-{j}" if j < 13 else f"G{j}" for j in range(120)]
    adata.layers["logged"] = adata.X.log1p()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return str(tmp_path / "cells.h5ad")


def test_it_tells_what_describe_inspect_and_qc_tell(path):
    seen = look(path)
    adata = open_data(path)
    assert seen.opened == (300, 120)
    assert seen.description == describe(adata)
    assert seen.findings == inspect(adata)
    pd.testing.assert_frame_equal(seen.cells, qc(adata).cells)
    pd.testing.assert_frame_equal(seen.thresholds, qc(adata).thresholds)
    assert seen.symbols == "symbol"
    assert not seen.problem


def test_quality_is_of_the_cells_that_are_filtered_and_the_rest_of_those_that_are_left(path):
    recipe = Recipe([
        {"step": "filter_cells", "min_counts": 10, "max_counts": 3000, "max_pct_mt": 50, "symbols": "symbol"},
        {"step": "drop_empty_features"},
        {"step": "highly_variable", "n_top": 40},
    ])  # fmt: skip
    seen, left = look(path, recipe), prepare(path, recipe)
    assert len(seen.cells) == 300
    assert (seen.description.n_cells, seen.description.n_features) == left.shape
    assert left.n_obs < 300
    assert "highly_variable" in seen.description.flags()
    assert not {"outlier_cells", "empty_cells", "many_features"} & {f.code for f in seen.findings}
    # the limits are counted as they are filtered
    keep = (seen.cells.total_counts >= 10) & (seen.cells.total_counts <= 3000) & ~(seen.cells.pct_counts_mt > 50)
    assert keep.sum() == left.n_obs
    assert list(seen.rows) == list(np.flatnonzero(keep))
    assert len(seen.description.obs) == left.obs.shape[1]


def test_a_recipe_that_fails_says_where_and_what_was_left_before(path):
    seen = look(path, Recipe([{"step": "filter_cells", "min_counts": 10}, {"step": "highly_variable", "n_top": 5000}]))
    assert seen.problem.startswith("step 2 of the recipe, highly_variable: 5,000 features cannot be chosen of 120")
    assert seen.description.n_cells < 300
    assert len(seen.cells) == 300


def test_without_raw_counts_it_says_so_and_measures_nothing(tmp_path):
    adata = simulate_expression(50, 30, 3, seed=0)
    adata.X = adata.X.log1p()
    adata.write_h5ad(tmp_path / "logged.h5ad")
    seen = look(str(tmp_path / "logged.h5ad"))
    assert seen.cells.empty
    assert seen.thresholds.empty
    assert "error" in {f.severity for f in seen.findings}


def test_counts_in_a_layer_are_measured_there(path, tmp_path):
    adata = open_data(path)
    adata.layers["counts"], adata.X = adata.X.copy(), adata.layers["logged"]
    adata.write_h5ad(tmp_path / "layered.h5ad")
    pd.testing.assert_frame_equal(look(str(tmp_path / "layered.h5ad")).cells, look(path).cells)


def test_what_is_written_is_read_again(path, tmp_path):
    folder = tmp_path / "look"
    folder.mkdir()
    before = look(path, Recipe([{"step": "counts_from_layer", "layer": "logged"}]))
    assert before.problem == ""
    look(path).write(folder)
    seen, again = look(path), Look.read(folder)
    assert (again.opened, again.description, again.findings) == (seen.opened, seen.description, seen.findings)
    assert (again.symbols, again.problem) == (seen.symbols, seen.problem)
    np.testing.assert_allclose(again.cells, seen.cells.to_numpy(), rtol=1e-6)
    np.testing.assert_allclose(again.thresholds, seen.thresholds)
    assert list(again.cells) == list(seen.cells)
    assert list(again.rows) == list(range(300))


def test_in_a_process_of_its_own_without_torch(path, tmp_path):
    spec = json.dumps({"data": path, "recipe": [{"step": "filter_cells", "min_counts": 10}]})
    code = (
        "import sys; from mira_core.data.look import main; status = main([sys.argv[1]]);"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], input=spec, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert Look.read(tmp_path).description.n_cells < 300


def test_what_cannot_be_opened_is_told(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.h5ad").write_text("no HDF5")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"data": str(tmp_path / "a.h5ad")})))
    assert main([str(tmp_path)]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "DataError"


def test_data_written_for_training_from_the_disk_were_checked_before(path, tmp_path):
    adata = open_data(path)[5:].copy()
    make(adata).write_ondisk_dataset(adata, tmp_path / "disk")
    with pytest.raises(DataError, match="take the file it came from"):
        look(str(tmp_path / "disk"))
