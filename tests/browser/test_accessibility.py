"""For those who use no mouse, or hear the page: axe-core's rules, and a path by keyboard alone."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe

from .conftest import shot, wait_until
from .test_pages import stored_run
from .test_tune_page import add_trial, tuner_for

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# What the keyboard acts upon, however many shadow roots deep: its own words, or those of its label.
FOCUSED = """() => {
  let at = document.activeElement
  while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement
  if (!at) return ''
  return at.getAttribute('aria-label') || at.labels?.[0]?.innerText || at.innerText || at.tagName
}"""


def serious(page) -> list[str]:
    """Return what axe-core finds serious or worse, in light and in dark, a line each; the theme has changed then.

    Names are given a moment after what they name has come, which on a busy machine goes on coming: asked again.
    """
    found: list[str] = []
    for last in (False, True):
        for _ in range(4):
            page.wait_for_timeout(1000)
            now = _found_by_axe(page)
            if not now:
                break
        found += [f"{_theme(page)}: {line}" for line in now]
        if not last:
            before = _theme(page)
            page.get_by_role("button", name="Toggle theme").click()
            wait_until(lambda t=before: _theme(page) != t, 10, "the other theme")
    return found


def _theme(page) -> str:
    return "dark" if "mira_theme=dark" in page.evaluate("document.cookie") else "light"


def _found_by_axe(page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{v['impact']} {v['id']}: {v['help']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


def test_axe_finds_nothing_serious_before_anything_ran(page, shared):
    page.goto(shared.url("?page=explore"))
    page.get_by_text("No run has topics yet").wait_for()
    assert serious(page) == []


def test_axe_finds_nothing_serious(page, shared):
    stored_run(shared.workspace, "told", 40)
    for query, shown in {
        "?page=data": "Would keep",
        "?page=model": "The same in Python",
        "?page=train&job=told": "Finished",
    }.items():
        page.goto(shared.url(query))
        page.get_by_text(shown).first.wait_for()
        if query == "?page=model":
            page.get_by_label("All options").click()
            page.locator(".option-weight_decay").wait_for()
        assert serious(page) == []


def test_axe_finds_nothing_serious_of_a_study(page, shared):
    page.goto(shared.url("?page=tune"))
    page.get_by_role("button", name="New study").click()
    page.get_by_role("button", name="Begin", exact=True).wait_for()
    assert serious(page) == []
    study = tuner_for(shared, "told").study
    for i, topics in enumerate((3, 5, 7, 9)):
        add_trial(study, topics, 700 + i)
    for part, shown in {
        "": "Trial 1",
        "running": "No trial runs",
        "topics": "Losses by number of topics",
        "steer": "A trial with chosen values",
    }.items():
        page.goto(shared.url(f"?page=tune&study=told&trials=1&part={part}"))
        page.get_by_text(shown).first.wait_for()
        assert serious(page) == []


def tab_to(page, name: str) -> None:
    """Press Tab until what is so called has the focus."""
    seen = []
    for _ in range(120):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUSED).strip().split("\n"))  # with the name of its icon
        if name in seen[-1]:
            return
    raise AssertionError(f"{name!r} is not reached by Tab; {seen}")


def test_from_the_demo_to_topics_by_keyboard_alone(page, shared):
    page.goto(shared.url())
    page.get_by_text("Would keep").wait_for()
    tab_to(page, "Set up a model")
    page.keyboard.press("Enter")
    page.get_by_text("The same in Python").wait_for()
    tab_to(page, "num_epochs")
    page.keyboard.type("8")
    tab_to(page, "Train")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Train").wait_for()
    page.get_by_role("button", name="See the topics").wait_for(timeout=120_000)
    tab_to(page, "See the topics")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Explore", exact=True).wait_for()
    page.get_by_text("mean share").first.wait_for()
    shot(page, "by-keyboard")
    assert serious(page) == []
