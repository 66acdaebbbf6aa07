"""Downloads of a run in a real browser; and its report, which opens where there is no network."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mira_core as mira
from mira_core import jobs
from mira_core.run import run_job

from .conftest import Server, shot, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

EVIL = "<img src=x onerror=alert(1)>"
SMALL = {"feature_type": "expression", "num_topics": 6, "hidden": 16, "num_epochs": 5, "batch_size": 32}
# The card alone, as a page lays it out.
SERVE = """
import sys
from pathlib import Path
import panel as pn
from mira_app import downloads
from mira_app.page import Page
from mira_app.pages.exports import ExportsCard
from mira_app.settings import Settings
from mira_app.workspace import Workspace

folder, port = Path(sys.argv[1]), int(sys.argv[2])
workspace = Workspace(Settings(workspace=folder))

def app():
    pn.extension()
    key = pn.state.session_args.get("key", [b""])[0].decode()
    return Page(title="exports", main=[ExportsCard(workspace, key).view])

pn.serve({"/": app}, port=port, show=False, verbose=False, extra_patterns=downloads.routes(folder),
         websocket_origin=[f"localhost:{port}"])
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A workspace with a run of hostile names, and one whose data are gone."""
    folder = tmp_path_factory.mktemp("exports") / "workspace"
    folder.mkdir()
    cells = mira.data.simulate_expression(300, 80, 4, n_types=3, depth=500, seed=3)
    cells.obs["cell_type"] = pd.Categorical.from_codes(np.arange(300) % 3, [EVIL, "B", "C"])
    cells.var_names = [EVIL, *cells.var_names[1:]]
    for key in ("done", "lost"):
        cells.write_h5ad(folder / f"{key}.h5ad")
        jobs.write_spec(folder / "jobs" / key, data=str(folder / f"{key}.h5ad"), model=SMALL, test_size=0.1, name=EVIL,
                        embedding=False)  # fmt: skip
        assert run_job(folder / "jobs" / key).state == "finished"
    (folder / "lost.h5ad").unlink()
    return folder


def test_what_is_asked_for_is_made_saved_and_offered_again(page, workspace, tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(SERVE)

    server = Server(workspace, lambda port: [sys.executable, str(script), str(workspace), str(port)], {})
    page.set_default_timeout(120_000)
    try:
        page.goto(server.url("/?key=done"))
        page.get_by_text("Take away").wait_for()
        shot(page, "exports")
        with page.expect_download(timeout=120_000) as got:
            page.get_by_role("button", name="Script that repeats it").click()
            page.get_by_text("is being made").wait_for()
        assert got.value.suggested_filename == "done-script.zip"
        names = zipfile.ZipFile(got.value.path()).namelist()
        assert "done-script/repeat/repeat.py" in names
        page.get_by_role("link", name="Download").wait_for()

        page.get_by_role("button", name="Methods text").click()
        page.get_by_text("Cells were described by 6 topics").wait_for()
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name="Copy the methods text").click()
        wait_until(
            lambda: page.evaluate("navigator.clipboard.readText()").startswith("Cells were described by 6 topics"),
            20, "the text is copied",
        )  # fmt: skip
        shot(page, "exports-made")

        page.goto(server.url("/?key=lost"))
        page.get_by_role("button", name="Cells (.h5ad)").click()
        page.get_by_text("the data of this run cannot be opened any more").wait_for()
    finally:
        server.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_opens_without_a_network_and_asks_for_nothing(browser, workspace, tmp_path, scheme):
    path = tmp_path / "report.html"
    path.write_text(mira.export.report(mira.export.FinishedRun(workspace / "jobs" / "done")), encoding="utf-8")
    assert path.stat().st_size < 2e6
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme, offline=True)
    try:
        page, asked, told = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(dialog.message))
        page.goto(path.as_uri())
        page.get_by_role("heading", name=EVIL).wait_for()
        for width in (1440, 1024, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        drawn = page.evaluate("[...document.images].map((i) => i.complete && i.naturalWidth > 0)")
        assert len(drawn) == 8
        assert all(drawn)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 25, 28)"}[scheme]
        ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        assert ink == page.evaluate("getComputedStyle(document.body).color")
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        assert told == []
        page.emulate_media(media="print")
        assert page.pdf()[:4] == b"%PDF"
    finally:
        context.close()
