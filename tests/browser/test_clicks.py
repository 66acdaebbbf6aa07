"""A click counts once, whatever way its consequences go to the browser."""

from __future__ import annotations

import urllib.request

import pytest
from filelock import FileLock

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_click_opens_and_the_next_one_closes(page, server):
    page.goto(server.url("?page=tune"))
    new = page.get_by_role("button", name="New study")
    begin = page.get_by_role("button", name="Begin", exact=True)
    new.click()
    begin.wait_for(timeout=180_000)
    new.click()
    begin.wait_for(state="hidden")
    new.click()
    begin.wait_for()


def test_who_waits_for_the_queue_holds_up_nobody(page, server):
    """A job is put into the queue while another server, or one that starts a job, has it locked."""
    queue = FileLock(server.workspace / "queue" / ".changes.lock")
    page.goto(server.url("?page=model&data=demo:pbmc700"))
    train = page.get_by_role("button", name="Train", exact=True)
    train.wait_for()
    with queue:
        train.dblclick()
        page.wait_for_timeout(500)  # the click has come
        with urllib.request.urlopen(server.url("/health"), timeout=5) as answer:
            assert answer.status == 200
        assert page.get_by_role("heading", name="Train", exact=True).count() == 0
    page.get_by_role("heading", name="Train", exact=True).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped").first.wait_for()
    jobs = [folder for folder in (server.workspace / "jobs").iterdir() if (folder / "job.json").exists()]
    assert len(jobs) == 1
