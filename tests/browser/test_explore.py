"""Explore in a browser: what can be seen of a run, and asked."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import TimeoutError as TooLate

import mira_core as mira
from mira_core import jobs
from mira_core.running.parts import predict_cells, write_cells
from tests.benchmarks.explore import CALL, DRAWN, lasso, store, until

from .conftest import MIRA, Server, shot, wait_until
from .test_accessibility import serious
from .test_path import COLOURS, _found, choose

pytestmark = [pytest.mark.browser, pytest.mark.slow]

N = 400  # cells
LONG = 60_000  # milliseconds
LEFT = _found("model.type === 'Figure' && model.renderers.some((r) => r.glyph.type === 'ImageRGBA')",
              "[model.x_range.start, model.x_range.end, model.y_range.start, model.y_range.end]")  # fmt: skip
BARS = _found("model.type === 'ColumnDataSource' && 'name' in model.data && 'selected' in model.data",
              "Array.from(model.data.selected)")  # fmt: skip
ACTIVATIONS = _found(
    "model.type === 'ColumnDataSource' && 'name' in model.data && 'value' in model.data && !('colour' in model.data && "
    "'x' in model.data)", "Array.from(model.data.value)",
)  # fmt: skip
FIELDS = _found("model.type === 'ColumnDataSource' && 'row' in model.data", "Array.from(model.data.value)")


def write_run(workspace: Path, name: str, data: Path, **options) -> None:
    """Train for three epochs, and keep what a job would keep; a UMAP would take longer than all else."""
    folder = workspace / "jobs" / name
    model = {"feature_type": "expression", "num_epochs": 3, "seed": 1, **options}
    jobs.write_spec(folder, data=str(data), model=model, name=name)
    adata = mira.data.open_data(data)
    fitted = mira.topics.make_model(*adata.shape, **model).fit(adata, progress=False)
    cells = predict_cells(fitted, adata)
    z = cells.obsm["X_umap_features"] - cells.obsm["X_umap_features"].mean(0)
    cells.obsm["X_umap"] = np.asarray((z @ np.linalg.svd(z, full_matrices=False)[2][:2].T), np.float32)
    (folder / "result").mkdir()
    fitted.save(folder / "result" / "model.safetensors")
    write_cells(folder / "result", cells)
    now = time.time()
    status = jobs.Status(state="finished", stage="done", n_cells=len(adata), device="cpu", started=now - 9, ended=now)
    (folder / "status.json").write_text(json.dumps(status.__dict__))


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """A server with a CODAL model of some cells, a plain one of the same, and a run of many cells."""
    folder = tmp_path_factory.mktemp("explore")
    workspace, data = folder / "workspace", folder / "data"
    data.mkdir()
    adata = mira.data.load_demo()[:N].copy()
    adata.obs["batch"] = pd.Categorical(np.where(np.arange(N) % 2, "one", "two"))
    adata.obs.loc[adata.obs["cell_type"] == "CD19+ B", "batch"] = "two"  # in one batch only
    adata.write_h5ad(data / "cells.h5ad")
    genes = adata.var_names.astype(str).tolist()
    (data / "sets.gmt").write_text("\n".join("\t".join([f"set {i}", "", *genes[i::40]]) for i in range(40)))
    write_run(workspace, "codal", data / "cells.h5ad", num_topics=5, categorical_covariates=["batch"])
    write_run(workspace, "plain", data / "cells.h5ad", num_topics=6)
    store(workspace / "jobs" / "many", 60_000, K=6, features=300)

    def command(port: int) -> list[str]:
        return [*MIRA, "serve", "--data", str(data), "--workspace", str(workspace), "--port", str(port)]

    server = Server(workspace, command, {})
    yield server
    server.stop()


def opened(page, server, **query: str) -> None:
    """Open Explore and wait for the cells and the table of topics."""
    asked = "&".join(f"{k}={v}" for k, v in {"page": "explore", "job": "codal", **query}.items())
    page.goto(server.url(f"?{asked}"))
    page.get_by_text("mean share").first.wait_for(timeout=LONG)
    if asked.find("job=many") < 0:
        wait_until(lambda: len(page.evaluate(COLOURS)) == N, 60, "cells on the embedding")


def recoloured(page, before: list[str]) -> list[str]:
    wait_until(lambda: page.evaluate(COLOURS) not in (before, []), 60, "other colours")
    return page.evaluate(COLOURS)


def test_cells_are_coloured_by_all_there_is_and_a_link_holds_it(page, explored):
    opened(page, explored)
    colours = page.evaluate(COLOURS)
    page.locator(".tabulator-row").nth(2).click()  # of the table of topics
    colours = recoloured(page, colours)
    wait_until(lambda: "colour=topic_2" in page.url, 20, "the topic is in the URL")
    choose(page, "Colour by", "cell_type")
    colours = recoloured(page, colours)
    page.get_by_role("button", name="CD14+ Monocyte").click()  # of the legend
    colours = recoloured(page, colours)
    assert len(set(colours)) < 4  # the others have faded
    shot(page, "explore-highlighted")
    # a field of the heatmap
    page.get_by_text("Click a field").wait_for()
    wait_until(lambda: len(page.evaluate(FIELDS)) > 20, 30, "a heatmap")
    figure = page.locator(".bk-Figure").nth(1)
    figure.scroll_into_view_if_needed()
    box = figure.bounding_box()
    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.4 * box["height"])
    colours = recoloured(page, colours)
    wait_until(lambda: "colour=topic_" in page.url, 20, "a topic is in the URL")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").first.click()
    frame = pd.read_csv(download.value.path())
    assert frame["topic"].tolist() == [f"topic_{k}" for k in range(5)]
    assert frame["mean_share"].sum() == pytest.approx(1, abs=1e-3)

    other = page.context.new_page()
    other.goto(page.url)
    wait_until(lambda: other.evaluate(COLOURS) == page.evaluate(COLOURS), 60, "the same behind the link")
    other.close()


def test_a_feature_is_completed_and_shown(page, explored):
    opened(page, explored, tab="features")
    colours = page.evaluate(COLOURS)
    field = page.get_by_role("combobox", name="Feature")
    field.click()
    field.press_sequentially("cd3", delay=30)
    page.get_by_role("option", name="CD3D", exact=True).click(timeout=LONG)
    wait_until(lambda: len(page.evaluate(ACTIVATIONS)) == 5, 60, "what the topics do to it")
    for how, title in (("counts", "raw"), ("log-normalised counts", "log"), ("imputed", "imputed")):
        page.get_by_role("button", name=f"Colour by {how}", exact=True).click()
        colours = recoloured(page, colours)
        wait_until(lambda title=title: f"colour={title}" in page.url, 20, "it is in the URL")
    assert "feature=CD3D" in page.url
    shot(page, "explore-feature")
    field.fill("no such gene")
    field.press("Enter")
    page.get_by_text("is not among the modelled features").wait_for()
    assert (explored.workspace / "jobs" / "codal" / "by_feature" / "told.json").is_file()  # read once


def test_cells_are_drawn_around_compared_and_kept(page, explored):
    opened(page, explored)
    figure = page.locator(".bk-Figure").first
    box = figure.bounding_box()
    page.get_by_title("Box Select").or_(page.locator(".bk-tool-icon-box-select")).first.click()
    page.mouse.move(box["x"] + 0.05 * box["width"], box["y"] + 0.06 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"], steps=5)
    page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.97 * box["height"], steps=5)
    page.mouse.up()
    page.get_by_text("Differential topics").wait_for(timeout=LONG)
    wait_until(lambda: len(page.evaluate(BARS)) == 5, 30, "means of the selected cells")
    page.get_by_text("no independent replicates").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Names of the cells").click()
    names = pd.read_csv(download.value.path())["cell"].tolist()
    page.get_by_text(f"{len(names)} cells", exact=True).wait_for()
    assert 0 < len(set(names)) == len(names) < N
    shot(page, "explore-selection")
    page.get_by_label("Name of the selection").fill("left ones")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Keep as a column").click()
    page.get_by_text("The column 'left ones' tells").wait_for()
    before = page.evaluate(COLOURS)
    choose(page, "Colour by", "left ones")
    recoloured(page, before)
    page.get_by_role("button", name="Select none").click()
    page.get_by_text("Draw around cells").wait_for()


def test_batches_have_effects_mix_and_are_warned_of(page, explored):
    opened(page, explored, tab="batches", feature="CD3D")
    page.get_by_text("What sets these cells apart may be biology or technique").first.wait_for()
    page.get_by_text("CD19+ B", exact=False).first.wait_for()
    page.get_by_text("what the model takes for technique").wait_for(timeout=LONG)
    page.get_by_role("button", name="Measure how well they mix").click()
    page.get_by_text("Before and after").wait_for(timeout=2 * LONG)
    page.get_by_text("before: PCA").wait_for()
    shot(page, "explore-batches")


def test_two_models_are_compared(page, explored):
    opened(page, explored, tab="compare", against="plain")
    page.get_by_text("Topics, matched").wait_for(timeout=LONG)
    page.get_by_text("this model, ", exact=False).first.or_(page.get_by_text("the other model").first).wait_for()
    page.get_by_role("button", name="no match").first.wait_for()  # six topics, and five
    shot(page, "explore-compared")


def test_gene_sets_are_tested_and_kept_with_the_run(page, explored, tmp_path):
    opened(page, explored, job="plain", tab="sets")
    (tmp_path / "mine.gmt").write_text("T cells\t\tCD3D\tCD3E\tIL32\tLTB\tCD2\tIL7R\tLCK\nodd\t\tA\tB\n")
    page.locator("input[type=file]").set_input_files(tmp_path / "mine.gmt")
    test = page.get_by_role("button", name="Test", exact=True)
    wait_until(lambda: not test.is_disabled(), 30, "the file has arrived")
    test.click()
    page.get_by_text("sets have q below 0.05").wait_for(timeout=LONG)
    page.get_by_text("T cells", exact=True).first.wait_for()
    choose(page, "A .gmt file of the data folders", "data/sets.gmt")
    choose(page, "Method", "Ranks of all activations (Wilcoxon)")
    test.click()
    page.get_by_text("AUC, 0.5").wait_for(timeout=LONG)
    shot(page, "explore-sets")
    page.reload()
    page.get_by_text("sets have q below 0.05").wait_for(timeout=LONG)
    kept = mira.topics.load_model(explored.workspace / "jobs" / "plain" / "result" / "model.safetensors").enrichments
    assert set(kept) == {"mine.gmt · overrepresentation", "sets.gmt · rank"}


def test_topics_of_two_modalities_and_exports_have_their_place(page, explored):
    opened(page, explored, tab="modalities")
    label = page.get_by_role("combobox", name="Run of the other modality")
    label.click()
    page.get_by_role("menuitem", name="plain").click()
    page.get_by_text("read the greatest of a row and a column").wait_for(timeout=LONG)
    page.get_by_role("button", name="Make a map of both").wait_for()
    page.get_by_role("tab", name="Exports").click()
    page.get_by_text("Take away").wait_for()
    shot(page, "explore-exports")


def point_at(page, cell: np.ndarray, nudge: int = 0) -> None:
    """Move the mouse to a cell, as the eye follows: what comes below the figure may still move it."""
    sx, sy, (left, top) = page.evaluate(CALL, [[float(cell[0])], [float(cell[1])]])
    page.mouse.move(left + sx[0] + nudge, top + sy[0])


def test_many_cells_are_an_image_that_is_zoomed_and_drawn_around(page, explored):
    received: list[int] = []
    page.on("websocket", lambda ws: ws.on("framereceived", lambda frame: received.append(len(frame))))
    opened(page, explored, job="many")
    _, drawn = until(page)
    assert sum(received) < 6e6
    choose(page, "Colour by", "cell_type")
    _, drawn = until(page, drawn, "cell_type")
    x0, x1, *_ = page.evaluate(LEFT)
    xy = np.asarray(mira.data.open_data(explored.workspace / "jobs/many/result/cells.h5ad").obsm["X_umap"])
    told = page.get_by_text("cells:", exact=False).first
    for nudge in range(60):
        point_at(page, xy[0], nudge % 2)
        with contextlib.suppress(TooLate):
            told.wait_for(timeout=500)
            break
    else:
        told.wait_for()
    page.get_by_text("type ", exact=False).first.wait_for()
    lasso(page, xy, 6000)
    _, drawn = until(page, drawn, "selected cells")
    n = int(drawn.split()[0].replace(",", ""))
    assert abs(n - 6000) < 120  # the circle's corners cut a little
    page.get_by_text("Differential topics").wait_for(timeout=LONG)
    shot(page, "explore-many")
    page.locator(".bk-Figure").first.scroll_into_view_if_needed()
    page.get_by_title("Wheel Zoom").or_(page.locator(".bk-tool-icon-wheel-zoom")).first.click()
    for _ in range(60):
        point_at(page, xy[0])
        page.mouse.wheel(0, -300)
        if len(page.evaluate(COLOURS)) > 0 and page.evaluate(DRAWN) is None:
            break
        page.wait_for_timeout(200)
    wait_until(lambda: 0 < len(page.evaluate(COLOURS)) < 15_000, 30, "points, once few cells are seen")
    assert page.evaluate(LEFT)[1] - page.evaluate(LEFT)[0] < (x1 - x0) / 2
    shot(page, "explore-many-near")
    page.get_by_title("Reset").or_(page.locator(".bk-tool-icon-reset")).first.click()
    wait_until(lambda: page.evaluate(COLOURS) == [], 30, "the image again")


def test_axe_finds_nothing_serious_in_explore(page, explored):
    for tab, shown in {
        "columns": "Click a field", "features": "modelled features", "selection": "Draw around cells",
        "compare": "Compare with", "sets": "The background is",
    }.items():  # fmt: skip
        opened(page, explored, tab=tab, feature="CD3D")
        page.get_by_text(shown).first.wait_for()
        assert serious(page) == []


@pytest.mark.parametrize("width", [1024, 390])
def test_explore_fits_narrow_screens(browser, explored, width):
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    opened(page, explored)
    for tab in ("Features", "Selection", "Batches"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
    shot(page, f"explore-{width}")
    context.close()
