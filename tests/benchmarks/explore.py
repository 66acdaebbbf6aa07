"""What Explore costs with many cells.

    python -m tests.benchmarks.explore

A real server, freshly started, and a real headless Chromium; a run of 1,000,000 simulated cells with 20 topics, a UMAP
that is given, names and columns. Told are: seconds until the cells are drawn for the first page of a fresh server, and
for the next; seconds until they are drawn in other colours (a topic, categories, a column of numbers); until 100,000
cells that somebody has drawn a lasso around are drawn as selected; until a stretch that somebody has zoomed into is
drawn anew; the bytes that the server sent; and its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import psutil
from playwright.sync_api import sync_playwright

from mira_core import jobs
from tests.browser.conftest import CHROMIUM, MIRA, Server

# Whether the cells are drawn, and in what: the title, a sum that changes with the colours, and the place.
DRAWN = """() => {
  for (const document of window.Bokeh?.documents ?? [])
    for (const model of document._all_models.values())
      if (model.type === 'Figure' && model.renderers.some((r) => r.glyph.type === 'ImageRGBA')) {
        const picture = model.renderers.find((r) => r.glyph.type === 'ImageRGBA').data_source
        const image = picture.data.image[0] ?? []
        if (!image.length || !Bokeh.index.find_one(model)?.has_finished()) return null
        let sum = 0
        for (let i = 0; i < image.length; i += 7) sum = (sum + image[i] * (i % 1009 + 1)) % 4294967291
        return [model.title.text, sum, picture.data.x[0], picture.data.dw[0]].join('|')
      }
  return null
}"""


def store(folder: Path, n: int, K: int = 20, features: int = 2000, seed: int = 0) -> np.ndarray:
    """Write a finished run of so many cells; return their coordinates."""
    rng = np.random.default_rng(seed)
    jobs.write_spec(folder, data="demo:pbmc700", model={"feature_type": "expression"}, name="many cells")
    kind = rng.integers(0, K, n)
    theta = rng.gamma(0.1, size=(n, K)).astype(np.float32)
    theta[np.arange(n), kind] += rng.gamma(2, size=n).astype(np.float32)
    theta /= theta.sum(1, keepdims=True)
    centres = rng.normal(size=(K, 2)) * 7
    xy = (centres[kind] + rng.normal(size=(n, 2)) * (0.6 + rng.random(K)[kind, None])).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(kind, [f"type {k}" for k in range(K)]),
            "batch": pd.Categorical.from_codes(rng.integers(0, 4, n), list("abcd")),
            "depth": rng.lognormal(8, 0.5, n).astype(np.float32),
            **{f"topic_{k}": theta[:, k] for k in range(K)},
        },
        index=[f"cell-{i:07d}" for i in range(n)],
    )
    cells = ad.AnnData(obs=obs, var=pd.DataFrame(index=[f"gene{j}" for j in range(features)]))
    cells.obsm["X_topic_compositions"], cells.obsm["X_umap"] = theta, xy
    beta = rng.gamma(0.2, size=(features, K)).astype(np.float32) + 1e-6
    cells.varm["topic_feature_compositions"] = beta / beta.sum(0)
    cells.varm["topic_feature_activations"] = rng.normal(size=(features, K)).astype(np.float32)
    (folder / "result").mkdir(parents=True)
    cells.write_h5ad(folder / "result" / "cells.h5ad")
    now = time.time()
    status = jobs.Status(state="finished", stage="done", n_cells=n, device="cpu", started=now - 300, ended=now)
    (folder / "status.json").write_text(json.dumps(status.__dict__))
    return xy


def until(page: Any, before: str = "", title: str = "", seconds: float = 60) -> tuple[float, str]:
    """Return seconds until other pixels than before are drawn, under a title that has these words; and what."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        now = page.evaluate(DRAWN)
        if now is not None and now.split("|")[1:] != before.split("|")[1:] and title in now:
            return time.perf_counter() - began, now
        time.sleep(0.01)
    raise TimeoutError(f"still {before!r} after {seconds} s")


def first(browser: Any, server: Server, sent: list[int]) -> tuple[float, Any]:
    """Return seconds from asking for the page until the cells are drawn, and the page."""
    page = browser.new_page()
    page.on("websocket", lambda ws: ws.on("framereceived", lambda frame: sent.append(len(frame))))
    began = time.perf_counter()
    page.goto(server.url("?page=explore&job=many"), wait_until="commit")
    until(page)
    return time.perf_counter() - began, page


CALL = """([x, y]) => {
  for (const document of Bokeh.documents)
    for (const model of document._all_models.values())
      if (model.type === 'Figure' && model.renderers.some((r) => r.glyph.type === 'ImageRGBA')) {
        const view = Bokeh.index.find_one(model)
        const frame = view.frame
        return [frame.x_scale.v_compute(x), frame.y_scale.v_compute(y)].map((a) => Array.from(a))
          .concat([[view.canvas.el.getBoundingClientRect().x, view.canvas.el.getBoundingClientRect().y]])
      }
}"""


def choose(page: Any, value: str) -> None:
    """Choose a colour as a hand would."""
    page.get_by_role("combobox", name="Colour by").click()
    page.get_by_role("menuitem", name=value, exact=True).click()


def ring(xy: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a circle around a dense place that holds about n cells."""
    centre = np.median(xy[: len(xy) // 50], axis=0)
    radius = np.partition(np.hypot(*(xy - centre).T), n)[n]
    at = np.linspace(0, 2 * np.pi, 120)
    return centre[0] + radius * np.cos(at), centre[1] + radius * np.sin(at)


def lasso(page: Any, xy: np.ndarray, n: int) -> None:
    """Draw a lasso around about n cells, as a hand would."""
    page.get_by_title("Lasso Select").or_(page.locator(".bk-tool-icon-lasso-select")).first.click()
    x, y = ring(xy, n)
    sx, sy, (left, top) = page.evaluate(CALL, [x.tolist(), y.tolist()])
    page.mouse.move(left + sx[0], top + sy[0])
    page.mouse.down()
    for a, b in zip(sx[1:], sy[1:], strict=True):
        page.mouse.move(left + a, top + b)
    page.mouse.up()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        workspace = Path(folder) / "workspace"
        xy = store(workspace / "jobs" / "many", arguments.cells)
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        firsts, nexts, colours, lassos, zooms = [], [], [], [], []
        sent: list[int] = []
        try:
            for _ in range(arguments.repeats):
                server = Server(
                    workspace,
                    lambda port: [*MIRA, "serve", "--demo", "--workspace", str(workspace), "--port", str(port)],
                    {},
                )
                try:
                    browser = chromium.new_context(viewport={"width": 1440, "height": 900})
                    process = psutil.Process(server.process.pid)
                    empty = process.memory_info().rss / 1e6
                    sent.clear()
                    seconds, page = first(browser, server, sent)
                    firsts.append(seconds)
                    payload = sum(sent) / 1e6
                    page.get_by_text("mean share").first.wait_for()
                    drawn = until(page)[1]
                    for value, title in (("topic_3", "Topic 3"), ("cell_type", "cell_type"), ("depth", "depth")):
                        choose(page, value)
                        seconds, drawn = until(page, drawn, title)
                        colours.append(seconds)
                    lasso(page, xy, arguments.cells // 10)
                    seconds, drawn = until(page, drawn, "selected cells")
                    lassos.append(seconds)
                    selected = drawn.split("|")[0]
                    page.get_by_text("Differential topics").wait_for(timeout=60_000)
                    used = process.memory_info().rss / 1e6
                    page.get_by_title("Wheel Zoom").or_(page.locator(".bk-tool-icon-wheel-zoom")).first.click()
                    sx, sy, (left, top) = page.evaluate(CALL, [[float(xy[0, 0])], [float(xy[0, 1])]])
                    page.mouse.move(left + sx[0], top + sy[0])
                    page.mouse.wheel(0, -400)
                    seconds, drawn = until(page, drawn)
                    zooms.append(seconds)
                    page.close()
                    seconds, page = first(browser, server, [])
                    nexts.append(seconds)
                    page.close()
                finally:
                    server.stop()
            told = {
                "first paint, first page of a fresh server": firsts, "first paint, next page": nexts,
                "recolouring": colours, "lasso": lassos, "zoom": zooms,
            }  # fmt: skip
            print(f"{arguments.cells:,} cells, load at the end {os.getloadavg()[0]:.1f}; {selected}")
            for name, values in told.items():
                print(f"{name}: {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
            print(f"sent until the first paint: {payload:.1f} MB; in all {sum(sent) / 1e6:.1f} MB")
            print(f"the server's memory: {empty:.0f} MB empty, {used:.0f} MB with the cells and a selection")
        finally:
            chromium.close()


if __name__ == "__main__":
    main()
