"""The Data page: what is wrong, what is done about it, and that a model gets it."""

from __future__ import annotations

import json
import re

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import mira_core as mira
from mira_core import jobs
from mira_core.data.simulate import simulate_expression

from .conftest import MIRA, Server, shot, wait_until
from .test_path import fill

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# Of the limits of counts: left and right, where the right one is on the screen, and where 1,500 counts are.
LIMITS = """() => {
  for (const document of Bokeh.documents)
    for (const model of document._all_models.values()) {
      const view = model.type === 'Figure' ? Bokeh.index.find_one(model) : null
      if (view === null || model.title.text !== 'Counts per cell') continue
      const box = model.center.find((r) => r.type === 'BoxAnnotation')
      view.el.scrollIntoView({block: 'center'})
      const {left, top} = view.canvas_view.el.getBoundingClientRect()
      const x = (value) => left + view.frame.x_scale.compute(value)
      return {left: box.left, right: box.right, x: x(box.right), y: top + view.frame.bbox.y_center, aim: x(1500)}
    }
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server with a file of cells that want some care: counts in a layer, empty cells, deep cells."""
    root = tmp_path_factory.mktemp("data")
    data = root / "lab"
    data.mkdir()
    adata = simulate_expression(500, 6000, 4, n_batches=2, depth=900, seed=2)
    x = adata.X.tolil()
    x[:7] = 0
    x[10:14] = x[10:14].toarray() * 30
    adata.layers["counts"] = x.tocsr().astype(np.int32)
    adata.X = adata.layers["counts"].log1p()
    adata.var_names = [f"MT-{j}" if j < 13 else f"GENE{j}" for j in range(6000)]
    adata.obs["same"] = adata.obs["batch"].cat.rename_categories(lambda name: f"b{name}")
    adata.obs["gaps"] = adata.obs["batch"].where(np.arange(500) > 20)
    del adata.var["highly_variable"]
    adata.write_h5ad(data / "raw cells.h5ad")
    rng = np.random.default_rng(0)
    peaks = ad.AnnData(sp.csr_matrix((rng.random((300, 200)) < 0.2).astype(np.int32)))
    peaks.obs_names = [f"cell{i}" for i in range(300)]
    peaks.var_names = [f"chr1:{1000 * j}-{1000 * j + 500}" for j in range(200)]
    peaks.write_h5ad(data / "peaks.v2.h5ad")
    (data / "fragments.tsv.gz").write_bytes(b"nothing that can be opened")
    server = Server(
        root / "workspace",
        lambda port: [*MIRA, "serve", "--data", str(data), "--workspace", str(root / "workspace"),
                      "--port", str(port)],
        {},
    )  # fmt: skip
    server.cells = data / "raw cells.h5ad"
    yield server
    server.stop()


def open_cells(page, lab) -> None:
    page.goto(lab.url("?page=data"))
    page.get_by_text("No data set is chosen").wait_for()
    page.get_by_text("lab", exact=True).click()
    page.get_by_text("raw cells.h5ad").first.click()
    page.get_by_text("What to know before a model is made").wait_for(timeout=180_000)


def test_what_is_wrong_is_told_mended_and_trained_on(page, lab):
    open_cells(page, lab)
    for title in ("Raw counts are in layers['counts']", "Some cells have no counts at all"):
        page.get_by_text(title).first.wait_for()
    shot(page, "data-findings")
    page.get_by_role("button", name="Do all that is suggested").click()
    page.get_by_text("1. Take the counts of a layer: layer counts").wait_for(timeout=180_000)
    page.get_by_text("493 of 500").wait_for()
    page.get_by_text("Raw counts in X.").wait_for()

    # limits: dragged, then written
    at = page.evaluate(LIMITS)
    page.mouse.move(at["x"], at["y"])
    page.mouse.down()
    for share in (0.5, 1.0):
        page.mouse.move(at["x"] + share * (at["aim"] - at["x"]), at["y"])
    page.mouse.up()
    most = page.get_by_label("max_counts", exact=True)
    wait_until(lambda: most.input_value() and abs(int(most.input_value()) - 1500) < 60, 10, "the field follows")
    assert page.evaluate(LIMITS)["right"] == pytest.approx(int(most.input_value()), abs=1)
    fill(page, "max_counts", "2000")
    wait_until(lambda: page.evaluate(LIMITS)["right"] == 2000, 10, "the edge follows")
    fill(page, "min_counts", "x")
    wait_until(lambda: page.get_by_label("min_counts", exact=True).get_attribute("aria-invalid") == "true", 10, "told")
    for name, value in {"min_counts": "10", "min_genes": "", "max_genes": "", "max_pct_mt": ""}.items():
        fill(page, name, value)
    totals = ad.read_h5ad(lab.cells).layers["counts"].sum(axis=1)
    n = int(((totals >= 10) & (totals <= 2000)).sum())
    page.get_by_text(f"Would keep {n} of 500 cells").wait_for()
    page.get_by_role("button", name="Keep only these cells").click()
    fill(page, "Variable features to model", "800")
    fill(page, "Of these, seen by the encoder", "300")
    page.get_by_role("button", name="Choose variable features").click()
    page.get_by_text("Choose highly variable features: n top 800, n endogenous 300").wait_for(timeout=180_000)

    page.get_by_text(f"{n} of 500", exact=True).wait_for(timeout=180_000)
    shot(page, "data-recipe")
    with page.expect_download() as download:
        page.get_by_role("button", name="Recipe as JSON").click()
    told = json.loads(download.value.path().read_text())
    assert [s["step"] for s in told["steps"]] == ["counts_from_layer", "filter_cells", "highly_variable",
                                                  "drop_empty_cells"]  # fmt: skip

    page.get_by_role("button", name="Set up a model").click()
    page.get_by_text(f"{n} cells × 6,000 features, after 4 steps of a recipe").wait_for(timeout=180_000)
    page.get_by_text("mira.data.Recipe([").first.wait_for()
    for text in ("highly_variable_key='highly_variable'", "endogenous_key='endogenous'"):
        page.get_by_text(text).first.wait_for()
    fill(page, "num_epochs", "2")
    fill(page, "num_topics", "4")
    page.get_by_text("num_topics=4").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("button", name="See the topics").wait_for(timeout=270_000)
    folder = max((lab.workspace / "jobs").iterdir())  # by the time in its name
    status = jobs.read_status(folder)
    assert (status.n_cells, status.n_held_out) == (n - round(n / 10), round(n / 10))
    model = mira.topics.load_model(folder / "result" / "model.safetensors")
    assert len(model.features) == 800
    page.get_by_role("button", name="See the topics").click()
    page.get_by_text("Cells", exact=False).first.wait_for()


def test_a_link_shows_the_same_recipe_and_steps_are_taken_out_and_pasted(page, lab):
    open_cells(page, lab)
    page.get_by_role("button", name="Take the counts of a layer").click()
    page.get_by_text("1. Take the counts of a layer: layer counts").wait_for(timeout=180_000)
    link = page.evaluate("location.search")
    assert "recipe=" in link
    page.goto(lab.url(link))
    page.get_by_text("1. Take the counts of a layer: layer counts").wait_for(timeout=180_000)
    page.get_by_role("button", name="Remove").click()
    page.get_by_text("Nothing is done to the cells").wait_for(timeout=180_000)
    page.get_by_text("Use another recipe").click()
    pasted = page.get_by_label("Or a recipe as JSON")
    pasted.fill('[{"step": "filter_cells", "min_count": 5}]')
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("no option 'min_count'; did you mean 'min_counts'?").wait_for()
    pasted.fill('{"steps": [{"step": "counts_from_layer", "layer": "<b>x</b>"}]}')
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("step 1 of the recipe, counts_from_layer").wait_for(timeout=180_000)
    page.get_by_role("button", name="Set up a model").click()
    page.get_by_text("Change the recipe on the Data page").wait_for(timeout=180_000)


def test_another_file_after_a_recipe_is_the_one_that_is_trained_on(page, lab):
    """And of peaks a model of peaks is made, by an encoder that trains here, under the file's whole name."""
    open_cells(page, lab)
    page.get_by_role("button", name="Take the counts of a layer").click()
    page.get_by_text("1. Take the counts of a layer: layer counts").wait_for(timeout=180_000)
    assert page.get_by_label("Variable features to model").input_value() == "3000"
    page.get_by_text("1 other file here is of no such format").wait_for()
    page.get_by_text("peaks.v2.h5ad").first.click()
    page.get_by_text("Nothing is done to the cells").wait_for(timeout=180_000)
    page.get_by_text("200", exact=True).first.wait_for()
    assert page.get_by_label("Variable features to model").input_value() == "100"  # not of the file before
    wait_until(lambda: not re.search(r"recipe=\w", page.evaluate("location.search")), 10, "no recipe is in the URL")
    page.get_by_role("button", name="Set up a model").click()
    page.get_by_text("The same in Python").wait_for(timeout=180_000)
    for text in ("feature_type='accessibility'", "atac_encoder='fast'", "peaks.v2.h5ad"):
        page.get_by_text(text).first.wait_for()
    assert page.get_by_label("Name of the run").input_value() == "peaks.v2"
    fill(page, "num_epochs", "2")
    page.get_by_text("num_epochs=2").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("button", name="See the topics").wait_for(timeout=270_000)
    folder = max((lab.workspace / "jobs").iterdir())  # by the time in its name
    assert mira.topics.load_model(folder / "result" / "model.safetensors").get_params()["atac_encoder"] == "fast"


def test_covariates_that_cannot_be_told_apart_are_told(page, lab):
    page.goto(lab.url("?page=model&data=0/raw cells.h5ad"))
    page.get_by_text("The same in Python").wait_for(timeout=180_000)
    page.get_by_text("Some cells have no counts at all").wait_for(timeout=180_000)  # which training would refuse
    train = page.get_by_role("button", name="Train", exact=True)
    wait_until(train.is_disabled, 10, "what training would refuse is not started")
    page.get_by_role("button", name="Mend it on the Data page").click()
    page.get_by_role("button", name="Do all that is suggested").click(timeout=180_000)
    page.get_by_text("493 of 500").wait_for(timeout=180_000)
    page.get_by_role("button", name="Set up a model").click()
    page.get_by_text("493 cells × 6,000 features").wait_for(timeout=180_000)
    page.get_by_role("combobox", name="categorical_covariates").click()
    for name in ("batch", "same"):
        page.get_by_role("listbox").get_by_text(name, exact=True).click()
    page.get_by_text("batch and same go together").wait_for()
    wait_until(train.is_enabled, 10, "a warning keeps nobody from training")
    page.get_by_role("listbox").get_by_text("gaps", exact=True).click()
    page.get_by_text("gaps is missing in some cells").wait_for()  # training would refuse it
    wait_until(train.is_disabled, 10, "nothing is started that would be refused")
