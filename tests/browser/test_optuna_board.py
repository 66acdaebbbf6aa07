"""optuna-dashboard below /optuna in a real browser: it shows a study, changes one, and asks for nothing that fails."""

from __future__ import annotations

import re

import optuna
import pytest

from mira_app import optuna_board
from mira_app.settings import Settings

from ..app.test_optuna_board import PASSWORD, Proxy, Served, mira_serve, panel_serve, write_study
from .conftest import shot

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def calm(page):
    """A page that must ask for nothing that fails, and say nothing of errors."""
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("requestfailed", lambda r: wrong.append(f"{r.url}: {r.failure}") if r.failure != "net::ERR_ABORTED" else 0)
    page.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.asked, page.wrong = [], wrong
    page.on("request", lambda r: page.asked.append(r.url))
    yield page
    assert not wrong, wrong


def look_at_a_study(page, at: str, picture: str) -> None:
    """Go from the list of studies to one, to its trials, and back to it by its address."""
    page.goto(f"{at}/optuna")
    page.get_by_text("lungs/0").click()
    page.wait_for_url(re.compile(f"{at}/optuna/dashboard/studies/1"))
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    shot(page, f"{picture}-study")
    page.get_by_title("Trials (List)").get_by_role("link").click()
    page.wait_for_url(re.compile(f"{at}/optuna/dashboard/studies/1/trials"))
    page.get_by_text("8 Trials").wait_for()
    page.get_by_text("Trial 2", exact=True).click()
    page.get_by_text("dropout 0.197").wait_for()
    shot(page, f"{picture}-trials")
    page.get_by_title("Smart Selection").get_by_role("link").click()
    page.get_by_role("row").filter(has_text="Pruned").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV File").click()
    assert download.value.suggested_filename == "lungs0.csv"
    page.reload()
    page.get_by_role("row").filter(has_text="Fail").wait_for()
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    shot(page, f"{picture}-selection")
    assert all(url.startswith((f"{at}/optuna", "data:", "blob:")) for url in page.asked), page.asked


def test_a_study_is_looked_at_and_renamed(calm, tmp_path):
    workspace = tmp_path / "workspace"
    storage = Settings(workspace=workspace).storage
    write_study(storage)
    served = Served(tmp_path, mira_serve(workspace))
    try:
        look_at_a_study(calm, served.url().rstrip("/"), "optuna")
        calm.goto(served.url("optuna"))
        calm.get_by_role("button", name="Create").click()
        calm.get_by_label("Study name").fill("kidneys")
        calm.get_by_role("dialog").get_by_role("button", name="Create").click()
        calm.get_by_role("link", name="kidneys").wait_for()
        assert set(optuna.get_all_study_names(storage)) == {"lungs/0", "kidneys"}
    finally:
        served.stop()


def test_behind_a_proxy_and_a_login(calm, tmp_path):
    storage = f"sqlite:///{tmp_path / 'studies.db'}"
    write_study(storage)
    proxy = Proxy()
    flags = ["--basic-auth", PASSWORD, "--cookie-secret", "stirred", "--prefix", "/lab"]
    command = panel_serve(*flags, "--allow-websocket-origin", f"localhost:{proxy.port}")
    (tmp_path / "workspace").mkdir()
    served = Served(
        tmp_path, command, "/lab/mira_app", MIRA_STORAGE=storage, MIRA_WORKSPACE=str(tmp_path / "workspace")
    )
    proxy.upstream = served.port
    try:
        at = f"http://localhost:{proxy.port}/lab"
        calm.goto(f"{at}/mira_app/" + optuna_board.link(1))
        calm.get_by_placeholder("username").fill("me")
        calm.get_by_placeholder("password").fill(PASSWORD)
        calm.keyboard.press("Enter")
        calm.get_by_text("lungs/0").first.wait_for()
        calm.asked.clear()
        calm.wrong.clear()  # the page for the login, Panel's own, may ask for what is not there
        proxy.outside.clear()
        look_at_a_study(calm, at, "optuna-proxied")
        assert not proxy.outside
    finally:
        served.stop()
        proxy.stop()
