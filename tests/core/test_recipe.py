"""Recipes: steps in order, the same as JSON, as Python, in a job and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from mira_core import cli, jobs
from mira_core.data import Recipe, open_data, qc, simulate_expression
from mira_core.data.recipe import prepare
from mira_core.data.recover import recover_counts
from mira_core.data.steps import STEPS
from mira_core.errors import DataError, JobError, MiraError, OptionError
from mira_core.estimate import estimate_job
from mira_core.run import run_job
from mira_core.topics import load_model
from tests.helpers import arrays, make, same


@pytest.fixture(scope="session")
def _cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    adata = simulate_expression(260, 180, 4, n_batches=2, depth=500, seed=9)
    x = adata.X.tolil()
    x[[5, 50]], x[:, 30] = 0, 0
    adata.X = x.tocsr()
    adata.var_names = [f"MT-{j}" if j < 13 else f"G{j}" for j in range(180)]
    adata.var["symbols"] = list(adata.var_names)
    adata.var["feature_types"] = np.where(np.arange(180) < 120, "Gene Expression", "Peaks")
    adata.obs["donor"] = pd.Categorical([None, *["d1"] * 4, *["d2"] * 100, *["d3"] * 155])
    adata.obs["dose"] = rng.normal(size=260)
    adata.layers["counts"] = adata.X.copy()
    adata.layers["logged"] = sp.csr_matrix(adata.X.multiply(rng.uniform(0.5, 4, (260, 1)))).log1p()
    adata.obsp["distances"] = sp.eye(260, format="csr")
    adata.raw = adata
    return adata


@pytest.fixture
def cells(_cells) -> ad.AnnData:
    """260 cells with a layer, logged values, raw, columns and most faults."""
    return _cells.copy()


def counts(step: str, **options: object) -> dict:
    return {"step": step, **options}


# One recipe or more for every step.
RECIPES: dict[str, list[dict]] = {
    "counts_from_layer": [counts("counts_from_layer", layer="counts")],
    "counts_from_raw": [counts("counts_from_raw")],
    "recover_counts": [counts("recover_counts", layer="logged")],
    "recover_counts of raw": [counts("recover_counts", raw=True, transform="scaled")],
    "reads_to_fragments": [counts("reads_to_fragments")],
    "binarise": [counts("binarise")],
    "store_by_row": [counts("store_by_row")],
    "make_names_unique": [counts("make_names_unique")],
    "keep_features": [counts("keep_features", column="feature_types", values=["Peaks"])],
    "drop_missing": [counts("drop_missing", column="donor")],
    "filter_cells": [counts("filter_cells", min_counts=300, max_counts=900.5, min_genes=20, max_genes=170)],
    "filter_cells by mitochondria": [counts("filter_cells", max_pct_mt=8.0)],
    "filter_cells by symbols": [counts("filter_cells", max_pct_mt=8, symbols="symbols")],
    "filter_features": [counts("filter_features", min_cells=120, max_cells=250)],
    "filter_features by share": [counts("filter_features", min_share=0.4, max_share=0.9)],
    "drop_empty_features": [counts("drop_empty_features")],
    "drop_rare_categories": [counts("drop_rare_categories", column="donor", min_cells=5)],
    "highly_variable": [counts("highly_variable", n_top=60, n_endogenous=25)],
    "highly_variable by batch": [
        counts("drop_empty_features"),
        counts("highly_variable", n_top=60, batch_key="batch", column="exogenous"),
    ],
    "highly_variable by residuals": [
        counts("drop_empty_features"),
        counts("highly_variable", n_top=50, flavor="pearson_residuals"),
    ],
    "drop_empty_cells": [counts("drop_empty_cells")],
    "drop_empty_cells of a selection": [
        counts("highly_variable", n_top=2), counts("drop_empty_cells", highly_variable_key="highly_variable"),
    ],
    "all together": [
        counts("recover_counts", layer="logged"), counts("make_names_unique"),
        counts("keep_features", column="feature_types", values=["Gene Expression", "Peaks"]),
        counts("drop_missing", column="donor"), counts("filter_cells", min_counts=250, max_pct_mt=9),
        counts("filter_features", min_cells=3), counts("drop_empty_features"),
        counts("drop_rare_categories", column="donor", min_cells=10),
        counts("highly_variable", n_top=80, n_endogenous=40, batch_key="batch"),
        counts("drop_empty_cells", highly_variable_key="highly_variable"),
    ],
}  # fmt: skip


def check_same(a: ad.AnnData, b: ad.AnnData) -> None:
    """Check that two AnnData hold the same."""
    assert a.shape == b.shape
    assert a.X.dtype == b.X.dtype
    for m, n in [(a.X, b.X), *((a.layers[k], b.layers[k]) for k in a.layers)]:
        assert type(m) is type(n)
        assert np.array_equal(m.toarray() if sp.issparse(m) else m, n.toarray() if sp.issparse(n) else n)
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    for of in ("layers", "obsm", "varm", "obsp", "uns"):
        assert list(getattr(a, of)) == list(getattr(b, of))
    assert (a.raw is None) == (b.raw is None)


# --- what steps do --------------------------------------------------------------------------------


def test_every_step_is_tried_here():
    assert {step["step"] for steps in RECIPES.values() for step in steps} == set(STEPS)


@pytest.mark.parametrize("name", RECIPES)
def test_what_came_is_not_changed_and_the_same_comes_again(cells, name):
    before = cells.copy()
    recipe = Recipe(RECIPES[name])
    a, b = recipe.apply(cells), recipe.apply(cells)
    check_same(cells, before)
    check_same(a, b)
    a.X[0, 0] = 77
    a.obs["dose"] = 0.0
    check_same(cells, before)  # nothing is shared


@pytest.mark.parametrize("name", RECIPES)
def test_the_python_does_the_same(cells, tmp_path, name):
    cells.write_h5ad(tmp_path / "a.h5ad")
    recipe = Recipe(RECIPES[name])
    code = recipe.to_python(tmp_path / "a.h5ad")
    spoken: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "recipe", "exec"), spoken)
    check_same(recipe.apply(ad.read_h5ad(tmp_path / "a.h5ad")), spoken["adata"])


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("form", ["dense", "backed", "scanpy-backed"])
def test_the_form_of_the_data_does_not_matter(cells, tmp_path, name, form):
    recipe = Recipe(RECIPES[name])
    expected = recipe.apply(cells)
    if form == "dense":
        cells.X = cells.X.toarray()
    else:
        cells.write_h5ad(tmp_path / "a.h5ad")
        path = tmp_path / "a.h5ad"
        cells = open_data(path, backed=True) if form == "backed" else ad.read_h5ad(path, backed="r")
    out = recipe.apply(cells)
    assert np.array_equal(
        out.X.toarray() if sp.issparse(out.X) else out.X, expected.X.toarray()
    )  # fmt: skip
    assert list(out.obs_names) == list(expected.obs_names)
    pd.testing.assert_frame_equal(out.var.astype(str), expected.var.astype(str))
    assert cells.X[:3].shape == (3, 180)  # still open


def test_the_python_is_a_script_that_stands_alone(cells, tmp_path):
    cells.write_h5ad(tmp_path / "a.h5ad")
    recipe = Recipe(RECIPES["filter_cells"])
    code = recipe.to_python(str(tmp_path / "a.h5ad"))
    assert "mira" not in code.replace(str(tmp_path), "")
    (tmp_path / "s.py").write_text(code + f"\nadata.write_h5ad({str(tmp_path / 'b.h5ad')!r})\n")
    subprocess.run([sys.executable, str(tmp_path / "s.py")], check=True, timeout=120)
    assert ad.read_h5ad(tmp_path / "b.h5ad").shape == recipe.apply(cells).shape


def test_texts_of_options_stay_texts_in_the_python():
    name = "o'clock\"\n}; import os"
    code = Recipe([counts("drop_missing", column=name), counts("counts_from_layer", layer=name)]).to_python("a\nb.h5ad")
    spoken = [node.value for node in __import__("ast").walk(__import__("ast").parse(code)) if hasattr(node, "value")]
    assert name in spoken
    assert not any("import os" in line and not line.startswith(("adata", "#")) for line in code.splitlines())


def test_other_formats_are_opened_by_the_library():
    code = Recipe([counts("binarise")]).to_python("cells.zarr")
    assert "import mira_core as mira" in code
    assert "mira.data.open_data('cells.zarr')" in code


def test_cells_are_filtered_as_qc_measures_them(cells):
    measured = qc(cells).cells
    out = Recipe([counts("filter_cells", min_counts=400, max_genes=120, max_pct_mt=8)]).apply(cells)
    wanted = measured[
        (measured.total_counts >= 400) & (measured.n_genes_by_counts <= 120) & (measured.pct_counts_mt <= 8)
    ]
    assert 0 < len(wanted) < 260
    assert list(out.obs_names) == list(wanted.index)


def test_highly_variable_features_are_scanpys(cells):
    import scanpy as sc

    out = Recipe([counts("highly_variable", n_top=60, n_endogenous=25)]).apply(cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.highly_variable_genes(cells, n_top_genes=60, flavor="seurat_v3")
    assert np.array_equal(out.var["highly_variable"], cells.var["highly_variable"])
    assert out.var["endogenous"].sum() == 25
    assert not (out.var["endogenous"] & ~out.var["highly_variable"]).any()


def test_highly_variable_features_make_a_model_that_trains(cells):
    out = Recipe(RECIPES["all together"]).apply(cells)
    model = make(out, highly_variable_key="highly_variable", endogenous_key="endogenous", num_epochs=1)
    model.fit(out, progress=False)
    assert len(model.features) == 80


def test_reads_become_fragments_by_halves_rounded_up():
    adata = ad.AnnData(sp.csr_matrix([[0, 1, 2, 3], [4, 5, 6, 0]], dtype=np.float32))
    assert Recipe([counts("reads_to_fragments")]).apply(adata).X.toarray().tolist() == [[0, 1, 1, 2], [2, 3, 3, 0]]


def test_raw_brings_its_features_and_columns_of_marks_stay(cells):
    small = cells[:, 20:60].copy()
    small.var["chosen"] = np.arange(40) < 10
    small.X = small.X.toarray() - 3.0
    out = Recipe([counts("counts_from_raw")]).apply(small)
    assert out.shape == (260, 180)
    assert list(out.var_names[out.var["chosen"]]) == list(small.var_names[:10])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([counts("counts_from_layer", layer="count")], "no layer 'count'; did you mean 'counts'"),
        ([counts("drop_missing", column="doner")], "no column of obs 'doner'; did you mean 'donor'"),
        ([counts("keep_features", column="kind", values=["a"])], "no column of var 'kind'"),
        ([counts("keep_features", column="feature_types", values=["Proteins"])], "no features of 180 are left"),
        ([counts("filter_cells", min_counts=1e9)], "no cells of 260 are left; choose milder thresholds"),
        ([counts("highly_variable", n_top=500)], "500 features cannot be chosen of 180"),
        ([counts("recover_counts", layer="noise")], "counts cannot be recovered"),
        ([counts("filter_cells", max_pct_mt=5, symbols="feature_types")], "var_names has|no name of var"),
        ([counts("highly_variable", n_top=50, batch_key="donor")], "no value in 1 cells; drop them first"),
        ([counts("highly_variable", n_top=50, batch_key="plate")], "cannot be chosen with flavor 'seurat_v3'"),
    ],
)
def test_a_step_that_cannot_be_done_is_named(cells, steps, message):
    cells.layers["noise"] = sp.csr_matrix(np.random.default_rng(0).random(cells.shape))
    cells.obs["plate"] = ["p1"] * 3 + ["p2"] * 257
    with pytest.raises(DataError, match=message) as told:
        Recipe([counts("make_names_unique"), *steps]).apply(cells)
    assert str(told.value).startswith(f"step 2 of the recipe, {steps[0]['step']}: ")


@pytest.mark.parametrize("step", [name for name, kind in STEPS.items() if kind.needs_counts])
def test_steps_that_look_at_counts_refuse_others(cells, step):
    cells.X = cells.layers["logged"]
    given = next(s for steps in RECIPES.values() for s in steps if s["step"] == step)
    with pytest.raises(DataError, match="must hold raw counts.*Take counts by counts_from_layer, counts_from_raw"):
        Recipe([given]).apply(cells)
    cells.X = None
    with pytest.raises(DataError, match="has no X; take the counts by counts_from_layer first"):
        Recipe([given]).apply(cells)


# --- counts from logs -----------------------------------------------------------------------------


def test_counts_are_recovered_from_their_rounded_logarithm():
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(0.3, 3, (60, 90)))
    x[:, 0] = 1  # the scale of a cell is told by a count of one
    logged = np.round(np.log1p(x * rng.uniform(0.5, 20, (60, 1))), 3)
    assert np.array_equal(recover_counts(logged).toarray(), x)


def test_values_that_are_no_multiples_are_not_rounded_to_counts():
    with pytest.raises(DataError, match="a value is 0.50 from a whole number"):
        recover_counts(np.log1p([[1.0, 2.5], [1.0, 1.0]]))


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, 400.0])
def test_what_cannot_be_a_logarithm_of_counts_is_refused(value):
    with pytest.raises(DataError, match="negative, infinite or missing"):
        recover_counts([[value, 1.0]])


def test_an_empty_cell_stays_empty():
    assert recover_counts(np.log1p([[2.0, 4.0], [0.0, 0.0]])).toarray().tolist() == [[1, 2], [0, 0]]


# --- as JSON --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_json_both_ways(name):
    recipe = Recipe(RECIPES[name])
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(RECIPES[name]))) == recipe
    assert hash(Recipe.from_json(recipe.to_json())) == hash(recipe)
    assert Recipe(recipe.steps) == recipe


def test_a_recipe_grows_by_steps():
    recipe = Recipe().then("binarise").then({"step": "filter_cells", "min_genes": 3})
    assert str(recipe) == "1. binarise()\n2. filter_cells(min_genes=3)"
    assert recipe.to_dict() == {"format": 1, "steps": [{"step": "binarise"}, {"step": "filter_cells", "min_genes": 3}]}
    assert len(Recipe()) == 0


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"step": "filter_cell"}, "no step 'filter_cell'; did you mean 'filter_cells'"),
        ({"step": "xyzzy"}, "no step 'xyzzy'. There are: counts_from_layer, counts_from_raw"),
        ({"step": "filter_cells", "min_count": 3}, "has no option 'min_count'; did you mean 'min_counts'"),
        ({"step": "binarise", "x": 3}, "has no option 'x'. There are: none"),
        ({"step": "filter_cells"}, "needs at least one threshold"),
        ({"step": "filter_features"}, "needs at least one threshold"),
        ({"step": "counts_from_layer"}, "needs layer: layer with raw counts"),
        ({"step": "counts_from_layer", "layer": 3}, "layer of the step counts_from_layer must be a text; got 3"),
        ({"step": "filter_cells", "min_counts": "3"}, "must be a number of 0 or more; got '3'"),
        ({"step": "filter_cells", "min_counts": True}, "must be a number of 0 or more; got True"),
        ({"step": "filter_cells", "min_counts": float("nan")}, "must be a number of 0 or more; got nan"),
        ({"step": "filter_cells", "min_genes": 2.5}, "must be a whole number of 0 or more; got 2.5"),
        ({"step": "filter_cells", "min_genes": -1}, "must be a whole number of 0 or more; got -1"),
        ({"step": "filter_cells", "min_genes": 9, "max_genes": 3}, "limits of genes must rise; got 9 and 3"),
        ({"step": "filter_features", "max_share": 20}, "max_share of the step filter_features must be at most 1"),
        ({"step": "recover_counts", "transform": "ln"}, "must be one of log1p, log2, log10, scaled; got 'ln'"),
        ({"step": "recover_counts", "raw": 1}, "raw of the step recover_counts must be True or False; got 1"),
        ({"step": "recover_counts", "raw": True, "layer": "a"}, "give one of them"),
        ({"step": "keep_features", "column": "a", "values": "b"}, "must be a list of texts; got 'b'"),
        ({"step": "highly_variable", "n_top": 5, "n_endogenous": 9}, "must rise; got 9 and 5"),
        ({"step": "highly_variable", "flavor": "seurat"}, "must be one of seurat_v3, pearson_residuals"),
        ("binarise", "a step must be an object such as"),
        ({"name": "binarise"}, "a step must be an object such as"),
    ],
)
def test_wrong_steps_are_refused_with_the_reason(step, message):
    with pytest.raises(OptionError, match="step 2 of the recipe: ") as told:
        Recipe([{"step": "binarise"}, step])
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a recipe must be JSON"),
        ("3", "must hold a list of steps; got 3"),
        ('{"format": 2, "steps": []}', "format 2; this version knows up to 1"),
        ('{"format": true, "steps": []}', "format True"),
        ('{"format": 1}', "must hold a list of steps; got None"),
        ('{"steps": [], "data": "x"}', "holds format and steps; got data"),
    ],
)
def test_what_is_no_recipe_is_refused(text, message):
    with pytest.raises(OptionError, match=message):
        Recipe.from_json(text)


def test_a_list_is_asked_for():
    with pytest.raises(OptionError, match="Recipe.from_json reads text"):
        Recipe("[]")


def test_help_tells_every_step_and_option():
    told = Recipe.help()
    for name, kind in STEPS.items():
        assert name in told
        assert name in (Recipe.__doc__ or "")
        for option in fields(kind):
            assert f"    {option.name}: " in told


# --- in jobs and on the command line --------------------------------------------------------------

SMALL = {"num_topics": 3, "hidden": 8, "num_epochs": 2, "batch_size": 64, "seed": 0}
PREPARE = [counts("counts_from_layer", layer="counts"), counts("filter_cells", min_counts=300)]
PREPARE += [counts("drop_empty_features"), counts("highly_variable", n_top=70)]
MODEL = {**SMALL, "highly_variable_key": "highly_variable"}


@pytest.fixture
def data(cells, tmp_path) -> Path:
    cells.X = cells.layers["logged"]
    cells.write_h5ad(tmp_path / "a.h5ad")
    return tmp_path / "a.h5ad"


@pytest.mark.parametrize("given", [Recipe(PREPARE), Recipe(PREPARE).to_dict(), PREPARE], ids=["recipe", "dict", "list"])
def test_a_job_applies_its_recipe(data, tmp_path, given):
    jobs.write_spec(tmp_path / "job", data=str(data), model=MODEL, recipe=given, test_size=0.2)
    assert jobs.read_spec(tmp_path / "job")["recipe"] == Recipe(PREPARE).to_dict()
    before = data.read_bytes()
    status = run_job(tmp_path / "job")
    assert status.state == "finished", status.error
    assert data.read_bytes() == before
    prepared = Recipe(PREPARE).apply(open_data(data))
    out = ad.read_h5ad(tmp_path / "job" / "result" / "cells.h5ad")
    assert list(out.obs_names) == list(prepared.obs_names)
    assert status.n_cells + status.n_held_out == prepared.n_obs < 260
    assert Recipe.from_json(out.uns["recipe"]) == Recipe(PREPARE)
    assert np.isfinite(out.obsm["X_topic_compositions"]).all()
    model = load_model(tmp_path / "job" / "result" / "model.safetensors")
    assert set(model.features) == set(prepared.var_names[prepared.var["highly_variable"]])


def test_a_job_with_a_recipe_is_the_training_of_what_the_recipe_gives(data, tmp_path):
    jobs.write_spec(tmp_path / "job", data=str(data), model=MODEL, recipe=PREPARE, embedding=False)
    assert run_job(tmp_path / "job").state == "finished"
    prepared = Recipe(PREPARE).apply(open_data(data))
    by_hand = make(prepared, **MODEL).fit(prepared, progress=False)
    assert same(arrays(load_model(tmp_path / "job" / "result" / "model.safetensors")), arrays(by_hand))


def test_a_range_test_and_an_estimate_know_the_recipe(data, tmp_path):
    spec = {"data": str(data), "model": MODEL, "recipe": Recipe(PREPARE).to_dict()}
    prepared = Recipe(PREPARE).apply(open_data(data))
    told = estimate_job(spec)
    assert (told.n_cells, told.n_features) == (prepared.n_obs, 70)
    jobs.write_spec(tmp_path / "job", kind="range_test", range_test={"num_steps": 12, "eval_every": 1}, **spec)
    status = run_job(tmp_path / "job")
    assert (status.state, status.n_cells) == ("finished", prepared.n_obs)


def test_wrong_recipes_are_refused_before_a_folder_is_made(data, tmp_path):
    with pytest.raises(OptionError, match="no step 'filter'"):
        jobs.write_spec(tmp_path / "job", data=str(data), model=SMALL, recipe=[{"step": "filter"}])
    assert not (tmp_path / "job").exists()


def test_a_recipe_that_does_not_fit_the_data_fails_the_job_with_its_step(data, tmp_path):
    jobs.write_spec(tmp_path / "job", data=str(data), model=SMALL, recipe=[counts("filter_cells", min_counts=9)])
    status = run_job(tmp_path / "job")
    assert status.state == "failed"
    assert status.error["message"].startswith("step 1 of the recipe, filter_cells: X must hold raw counts")


def test_a_damaged_recipe_in_a_job_is_told(data, tmp_path):
    jobs.write_spec(tmp_path / "job", data=str(data), model=SMALL, recipe=PREPARE)
    path = tmp_path / "job" / "job.json"
    path.write_text(path.read_text().replace("filter_cells", "filter_sells"))
    with pytest.raises(MiraError, match="did you mean 'filter_cells'"):
        jobs.read_spec(tmp_path / "job")


def test_jobs_without_a_recipe_have_none(data, tmp_path):
    jobs.write_spec(tmp_path / "job", data=str(data), model={**SMALL, "counts_layer": "counts"})
    assert "recipe" not in jobs.read_spec(tmp_path / "job")
    with pytest.raises(JobError):
        jobs.write_spec(tmp_path / "job", data=str(data), model=SMALL)


def test_data_for_training_from_the_disk_take_no_recipe(cells, tmp_path):
    cells = Recipe([counts("drop_empty_cells")]).apply(cells)
    make(cells).write_ondisk_dataset(cells, tmp_path / "disk")
    with pytest.raises(DataError, match="a recipe cannot be applied to .*disk, which write_ondisk_dataset wrote"):
        prepare(tmp_path / "disk", Recipe(PREPARE))


def test_the_command_takes_a_recipe(data, tmp_path, capsys):
    (tmp_path / "recipe.json").write_text(Recipe(PREPARE).to_json())
    options = [f"--{k.replace('_', '-')}={v}" for k, v in MODEL.items()]
    given = ["fit", data, "-o", tmp_path / "run", "--recipe", tmp_path / "recipe.json", "--no-embedding", *options]
    assert cli.main([str(a) for a in given]) == 0
    out = ad.read_h5ad(tmp_path / "run" / "result" / "cells.h5ad")
    assert out.n_obs == Recipe(PREPARE).apply(open_data(data)).n_obs


def test_the_command_tells_what_is_wrong_with_a_recipe(data, tmp_path, capsys):
    given = ["fit", str(data), "-o", str(tmp_path / "run"), "--recipe", str(tmp_path / "recipe.json")]
    assert cli.main(given) == 2
    assert "no recipe can be read from" in capsys.readouterr().err
    (tmp_path / "recipe.json").write_text('[{"step": "binarize"}]')
    assert cli.main(given) == 2
    assert "did you mean 'binarise'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- real cells -----------------------------------------------------------------------------------


def test_a_whole_genome_is_made_ready(shared_data, tmp_path):
    recipe = Recipe([
        counts("filter_cells", min_counts=400, max_pct_mt=8, symbols="symbol"),
        counts("filter_features", min_cells=10),
        counts("highly_variable", n_top=2000, n_endogenous=800),
        counts("drop_empty_cells", highly_variable_key="highly_variable"),
    ])  # fmt: skip
    path = shared_data / "pbmc_facs.h5ad"
    out = recipe.apply(open_data(path, backed=True))
    assert out.var["highly_variable"].sum() == 2000
    assert 3000 < out.n_obs < 3774
    spoken: dict = {}
    exec(compile(recipe.to_python(path), "recipe", "exec"), spoken)
    check_same(out, spoken["adata"])


# --- put together ---------------------------------------------------------------------------------


def test_steps_are_put_where_they_make_sense():
    recipe = Recipe().plus("highly_variable", n_top=50).plus("filter_cells", min_counts=5)
    recipe = recipe.plus("counts_from_layer", layer="counts")
    assert [s.name for s in recipe] == ["counts_from_layer", "filter_cells", "highly_variable"]


def test_limits_are_joined_and_the_later_one_holds():
    recipe = Recipe().plus("filter_cells", min_counts=5, max_pct_mt=8).plus("filter_cells", min_counts=9, min_genes=3)
    assert recipe == Recipe([{"step": "filter_cells", "min_counts": 9, "min_genes": 3, "max_pct_mt": 8}])
    features = Recipe().plus("filter_features", min_cells=3).plus("filter_features", max_share=0.5)
    assert features == Recipe([{"step": "filter_features", "min_cells": 3, "max_share": 0.5}])


def test_a_step_takes_the_place_of_one_like_it():
    recipe = Recipe().plus("highly_variable", n_top=50, n_endogenous=10).plus("highly_variable", n_top=60)
    assert recipe == Recipe([{"step": "highly_variable", "n_top": 60}])
    recipe = Recipe().plus("counts_from_layer", layer="a").plus("recover_counts").plus("counts_from_raw")
    assert recipe == Recipe([{"step": "counts_from_raw"}])


def test_there_may_be_one_for_each_column():
    recipe = Recipe().plus("drop_missing", column="a").plus("drop_missing", column="b").plus("drop_missing", column="a")
    assert sorted(s.column for s in recipe) == ["a", "b"]
    assert recipe.without(recipe.steps[0]) == Recipe(recipe.steps[1:])
