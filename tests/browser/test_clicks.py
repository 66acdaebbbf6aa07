"""A click counts once, whatever way its consequences go to the browser."""

from __future__ import annotations

import pytest

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
