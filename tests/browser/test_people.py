"""Several people on one server: each sees and changes what is theirs; the Jobs page."""

from __future__ import annotations

import json
import re

import pytest

from mira_app.serving.accounts import Accounts
from mira_core import jobs

from ..servers import wait_until
from .conftest import ARTEFACTS, MIRA, Server, shot
from .test_path import start_training

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PASSWORD = "a long password"
ROLES = {"ann": "user", "bob": "user", "vic": "viewer", "ada": "admin"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server with four accounts, on which one job runs at a time."""
    folder = tmp_path_factory.mktemp("people")
    accounts = Accounts(folder / "users.json")
    for name, role in ROLES.items():
        accounts.set(name, PASSWORD, role)

    def command(port: int) -> list[str]:
        return [*MIRA, "serve", "--demo", "--workspace", str(folder / "workspace"), "--port", str(port), "--users",
                str(accounts.path), "--jobs", "1"]  # fmt: skip

    server = Server(folder / "workspace", command, {})
    yield server
    server.stop()


@pytest.fixture
def people(lab, browser):
    """Return a page of somebody who has logged in, by their name."""
    contexts = []

    def page_of(name: str, query: str = "?page=jobs"):
        contexts.append(context := browser.new_context(viewport={"width": 1440, "height": 900}))
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(lab.url("/login"))
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        page.goto(lab.url(f"/{query}"))
        page.get_by_text(re.compile(rf"^{name}\b.*log out")).wait_for()
        return page

    yield page_of
    for context in contexts:
        context.close()


def train(page, name: str, epochs: int) -> None:
    page.get_by_role("tab", name="Model").click()
    page.get_by_label("Name of the run").fill(name)
    start_training(page, num_epochs=str(epochs))


def row(page, name: str):
    return page.locator(".tabulator-row", has_text=name)


def choose(page, name: str) -> None:
    row(page, name).locator("input[type=checkbox]").check()


def states(lab: Server) -> dict[str, str]:
    folders = [f for f in (lab.workspace / "jobs").iterdir() if not f.name.startswith(".")]
    return {jobs.read_spec(f)["name"]: jobs.read_status(f).state for f in folders}


def audit(lab: Server) -> list[tuple[str, str]]:
    lines = map(json.loads, (lab.workspace / "audit.jsonl").read_text().splitlines())
    return [(line["person"], line["action"]) for line in lines]


def test_a_viewer_looks_and_cannot_run_anything(lab, people):
    vic = people("vic", "?page=model&data=demo:pbmc700")
    vic.get_by_text("Your role is viewer").wait_for()
    assert vic.get_by_role("button", name="Train", exact=True).is_disabled()
    assert vic.get_by_role("button", name="Estimate time and memory").is_disabled()
    vic.get_by_role("tab", name="Data").click()
    vic.get_by_role("heading", name="Data").wait_for()
    assert vic.get_by_text("Drop a file").count() == 0
    vic.get_by_role("tab", name="Jobs").click()
    vic.get_by_text("No job yet").wait_for()


def test_the_jobs_page_fits(lab, people):
    ann = people("ann", "")
    train(ann, "a run with quite a long name of its own", 3)
    ann.get_by_text("Finished").first.wait_for(timeout=120_000)
    ann.get_by_role("tab", name="Jobs").click()
    choose(ann, "a run with quite")
    ann.get_by_role("button", name="Run again").wait_for()
    for theme in ("light", "dark"):
        if theme == "dark":
            ann.evaluate("document.cookie = 'mira_theme=dark; path=/'")
            ann.reload()
            row(ann, "a run with quite").wait_for()
            choose(ann, "a run with quite")
            ann.get_by_role("button", name="Run again").wait_for()
        for width in (1440, 1024, 390):
            ann.set_viewport_size({"width": width, "height": 900})
            row(ann, "a run with quite").wait_for()
            wait_until(lambda w=width: ann.evaluate("document.documentElement.scrollWidth") <= w, 10, f"{width} px fit")
            shot(ann, f"jobs-{width}-{theme}")
            assert (ARTEFACTS / f"jobs-{width}-{theme}.png").exists()


def test_jobs_wait_are_shared_stopped_and_deleted_by_whom_they_belong_to(lab, people):
    before = len(audit(lab))
    ann, bob = people("ann", ""), people("bob", "")
    train(ann, "of ann", 100_000)
    ann.get_by_text("Running").first.wait_for()
    train(bob, "of bob", 100_000)
    bob.get_by_text(re.compile("Waiting: 1 run, as many as may at once; next in the queue")).wait_for()
    shot(bob, "people-waiting")
    for page in (ann, bob):
        page.get_by_role("tab", name="Jobs").click()
        page.locator(".tabulator-row").first.wait_for()
    row(ann, "of ann").wait_for()
    assert row(ann, "of bob").count() == 0
    assert ann.get_by_text("1 run, 0 wait").count() == 1

    # Shared, it is seen, and not changed.
    choose(ann, "of ann")
    ann.get_by_label("Seen by", exact=True).click()
    ann.locator("li", has_text="bob").click()
    ann.mouse.click(5, 5)  # which closes the list
    row(bob, "of ann").wait_for()
    choose(bob, "of ann")
    bob.get_by_role("button", name="Open").wait_for()
    shot(bob, "people-jobs")
    assert bob.get_by_role("button", name="Stop").count() == 0
    assert bob.get_by_role("button", name="Delete").count() == 0

    # An admin sees all, and lets one begin next.
    ada = people("ada")
    row(ada, "of bob").wait_for()
    choose(ada, "of ann")
    ada.get_by_role("button", name="Stop").click()
    wait_until(lambda: "running" in states(lab).get("of bob", ""), 60, "the turn of the second")
    assert states(lab)["of ann"] == "stopped"

    ann.get_by_role("button", name="Delete", exact=True).click()
    ann.get_by_role("button", name="Delete for ever").click()
    wait_until(lambda: "of ann" not in states(lab), 20, "the job has gone")
    row(ann, "of ann").wait_for(state="detached")
    told = [(person, action) for person, action in audit(lab)[before:] if action != "log in"]
    assert told == [("ann", "begin fit"), ("bob", "begin fit"), ("ann", "share"), ("ada", "stop"), ("ann", "delete")]
