"""From cells to topics in a browser, as a newcomer goes; and what happens when the server dies on the way."""

from __future__ import annotations

import os
import sys

import pytest

from mira_core import jobs

from .conftest import Server, shot, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def _found(condition: str, value: str) -> str:
    """Return JavaScript that takes a value of the first Bokeh model of which a condition holds."""
    return f"""() => {{
  for (const document of Bokeh.documents)
    for (const model of document._all_models.values())
      if ({condition}) return {value}
  return []
}}"""


POINTS = _found("model.type === 'ColumnDataSource' && 'learning_rate' in model.data", "Array.from(model.data.step)")
COLOURS = _found("model.type === 'ColumnDataSource' && 'colour' in model.data", "Array.from(model.data.colour)")
AXIS_END = _found("model.type === 'Figure' && model.title.text === 'Loss'", "model.x_range.end")


def _points_or_none(page) -> list[int]:
    try:
        return page.evaluate(POINTS)
    except Exception:  # in the middle of loading again
        return []


def fill(page, option: str, value: str) -> None:
    page.get_by_label(option, exact=True).fill(value)
    page.keyboard.press("Tab")


def start_training(page, **options: str) -> None:
    page.get_by_text("The same in Python").wait_for()
    for option, value in options.items():
        fill(page, option, value)
        page.get_by_text(f"{option}={value}").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("heading", name="Train").wait_for()


def choose(page, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).locator("xpath=ancestor-or-self::*[@role='combobox']").or_(
        page.get_by_role("combobox", name=label)
    ).first.click()
    page.get_by_role("menuitem", name=option, exact=True).click()


def test_from_demo_cells_to_topics_on_the_cells(page, server):
    page.goto(server.url())
    page.get_by_role("heading", name="Data", exact=True).wait_for()
    page.get_by_text("Raw counts in X.").wait_for()
    page.get_by_text("700", exact=True).wait_for()
    shot(page, "data")

    page.get_by_role("button", name="Set up a model").click()
    start_training(page, num_topics="6", num_epochs="150", seed="1")

    wait_until(lambda: len(page.evaluate(POINTS)) > 0, 60, "points on the loss figure")
    first = len(page.evaluate(POINTS))
    assert first < 1350  # they arrive while it trains
    wait_until(lambda: len(page.evaluate(POINTS)) > first, 30, "more points on the loss figure")
    shot(page, "train-live")
    page.get_by_role("button", name="See the topics").wait_for(timeout=120_000)
    steps = page.evaluate(POINTS)
    assert (steps[0], steps[-1]) == (1, 1350)  # 9 steps of 64: a tenth of 700 cells is held out
    shot(page, "train-finished")

    page.get_by_role("button", name="See the topics").click()
    page.get_by_text("Topic with the largest share").or_(page.get_by_text("topic 5")).first.wait_for()
    wait_until(lambda: len(page.evaluate(COLOURS)) == 700, 30, "cells on the embedding")
    by_main_topic = page.evaluate(COLOURS)
    assert 2 <= len(set(by_main_topic)) <= 6
    for name in ("topic_0", "cell_type"):
        choose(page, "Colour by", name)
        wait_until(lambda: page.evaluate(COLOURS) != by_main_topic, 10, f"cells coloured by {name}")
        shot(page, f"explore-{name}")
    page.locator(".mira-legend").get_by_text("CD14+ Monocyte").wait_for()
    wait_until(lambda: "colour=cell_type" in page.url, 5, "the view is in the URL")
    assert "page=explore" in page.url
    assert "job=" in page.url

    # The same link shows a colleague the same view.
    other = page.context.new_page()
    other.goto(page.url)
    wait_until(lambda: other.evaluate(COLOURS) == page.evaluate(COLOURS), 30, "the same colours behind the link")
    other.close()


def test_a_wrong_value_is_told_beside_its_field_and_nothing_can_be_started(page, shared):
    page.goto(shared.url("?page=model"))
    page.get_by_text("The same in Python").wait_for()
    train = page.get_by_role("button", name="Train", exact=True)
    fill(page, "num_topics", "1")
    page.locator(".option-num_topics").get_by_text("num_topics must be an integer of at least 2; got 1").wait_for()
    wait_until(train.is_disabled, 10, "the button is off")
    fill(page, "num_topics", "")
    wait_until(lambda: not train.is_disabled(), 10, "the button is back")
    choose(page, "feature_type", "accessibility")
    page.locator(".option-atac_encoder").get_by_text("the skipDAN encoder needs a GPU to train").wait_for()
    wait_until(train.is_disabled, 10, "the button is off")
    choose(page, "atac_encoder", "fast")
    wait_until(lambda: not train.is_disabled(), 10, "the button is back")
    choose(page, "feature_type", "expression")
    page.get_by_label("All options").click()
    for name in ("weight_decay", "decoder_dropout", "kl_strategy", "extra_features_keys"):
        page.locator(f".option-{name}").wait_for()
    assert not page.locator(".option-dependence_lr").is_visible()  # of models with covariates only
    shot(page, "model-all-options")


def test_a_killed_server_loses_nothing(page, server):
    page.goto(server.url("?page=model"))
    start_training(page, num_epochs="4000", num_topics="5")
    wait_until(lambda: len(page.evaluate(POINTS)) > 20, 60, "points on the loss figure")
    wait_until(lambda: "job=" in page.url, 10, "the run is in the URL")
    link = page.url
    server.kill()
    (folder,) = (server.workspace / "jobs").iterdir()
    at_death = jobs.read_status(folder)
    assert at_death.state == "running"

    server.start()
    # The page that was open comes back by itself.
    wait_until(lambda: _points_or_none(page)[-1:] > [at_death.step], 40, "the open page goes on")
    again = page.context.new_page()
    again.goto(link)
    wait_until(lambda: len(again.evaluate(POINTS)) > 20, 30, "the curve is there again")
    points = again.evaluate(POINTS)
    assert points[0] <= 2  # the whole curve, not only what came since
    assert points[-1] >= at_death.step
    again.get_by_text("Running, training").wait_for()
    wait_until(lambda: again.evaluate(POINTS)[-1] > points[-1], 20, "the curve goes on")
    shot(again, "train-after-restart")

    again.get_by_role("button", name="Stop").click()
    again.get_by_role("button", name="See the topics").wait_for(timeout=180_000)
    status = jobs.read_status(folder)
    assert status.state == "stopped"
    assert (folder / "result" / "model.safetensors").is_file()


def test_a_page_comes_back_also_where_its_server_was_away_for_long(page, server):
    page.goto(server.url("?page=jobs"))
    page.get_by_role("heading", name="Jobs").wait_for()
    page.evaluate("window.before = true")
    asked: list[str] = []
    page.on("websocket", lambda ws: asked.append(ws.url))
    server.kill()
    wait_until(lambda: page.evaluate("window.miraWaits") is not None, 60, "Bokeh has given up")
    assert page.evaluate("window.before")
    tried = len(asked)
    broken: list[str] = []  # the first time, to load it comes to nothing

    def break_once(route) -> None:
        if route.request.is_navigation_request() and not broken:
            broken.append(route.request.url)
            route.abort("aborted")
        else:
            route.continue_()

    page.route("**/*page=jobs*", break_once)
    server.start()
    wait_until(lambda: _loaded_again(page), 30, "the page is loaded again")
    page.get_by_role("heading", name="Jobs").wait_for()
    assert len(asked) > tried
    assert len(broken) == 1
    assert "page=jobs" in page.url


def _loaded_again(page) -> bool:
    try:
        return page.evaluate("window.before") is None
    except Exception:  # in the middle of loading
        return False


def test_training_again_and_again_with_other_pages_between(page, server):
    ends: list[int] = []
    page.goto(server.url("?page=train"))
    page.get_by_text("No run yet").wait_for()
    for epochs in (5, 60, 3):
        page.get_by_role("tab", name="Model").click()
        page.get_by_text("The same in Python").wait_for()
        page.get_by_label("num_epochs", exact=True).fill(str(epochs))
        page.get_by_role("button", name="Train", exact=True).dblclick()  # from within the field, and twice
        page.get_by_role("heading", name="Train").wait_for()
        page.get_by_text(f"epoch {epochs} of {epochs}").wait_for(timeout=270_000)
        wait_until(lambda steps=9 * epochs: page.evaluate(POINTS) == list(range(1, steps + 1)), 10, "every point")
        ends.append(page.evaluate(AXIS_END))
        page.get_by_role("button", name="See the topics").wait_for(timeout=270_000)
    assert ends == [45, 540, 27]  # the whole run is on the axis
    assert len(list((server.workspace / "jobs").iterdir())) == 3

    # A value that is wrong starts nothing, also if the click comes before it is told.
    page.get_by_role("tab", name="Model").click()
    page.get_by_label("num_topics", exact=True).fill("1")
    page.get_by_role("button", name="Train", exact=True).click(force=True)
    page.locator(".option-num_topics").get_by_text("at least 2; got 1").wait_for()
    page.wait_for_timeout(1000)
    assert len(list((server.workspace / "jobs").iterdir())) == 3
    fill(page, "num_topics", "")

    # Looking at topics meanwhile does not lose the run that is watched.
    start_training(page, num_epochs="3000")
    page.get_by_text("of 27,000").wait_for(timeout=180_000)
    watched = max(folder.name for folder in (server.workspace / "jobs").iterdir())
    page.get_by_role("tab", name="Explore").click()
    page.get_by_text("The run that you watch has no topics yet").wait_for()
    page.get_by_role("tab", name="Train").click()
    page.get_by_text("Running, training").wait_for()
    assert f"job={watched}" in page.url
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="See the topics").wait_for(timeout=180_000)

    # Back shows what the URL says.
    page.go_back()
    page.get_by_role("heading", name="Explore", exact=True).wait_for()
    page.goto(server.url("?page=train&job=nope"))
    page.get_by_text("there is no job 'nope'").wait_for()


# What each page has once it is all there, of a demo, before anything ran.
SHOWN = {
    "data": "Would keep", "model": "The same in Python", "train": "No run yet", "tune": "New study",
    "explore": "No run has topics yet",
}  # fmt: skip


def test_pages_fit_desks_and_phones_in_light_and_dark(browser, server):
    """Opened on a phone in light and on a desk in dark, and then made wider and narrower."""
    context = browser.new_context()
    page = context.new_page()
    for theme, widths in {"light": (390, 1024, 1440), "dark": (1440, 1024, 390)}.items():
        for name in ("data", "model", "train", "tune", "explore"):
            page.set_viewport_size({"width": widths[0], "height": 900})
            page.goto(server.url(f"?page={name}"))
            page.get_by_role("heading", name=name.capitalize(), exact=True).wait_for()
            page.get_by_text(SHOWN[name]).first.wait_for()
            wait_until(lambda: page.evaluate("document.fonts.status") == "loaded", 10, "fonts")
            for width in widths:
                page.set_viewport_size({"width": width, "height": 900})
                wait_until(
                    lambda w=width: page.evaluate("document.documentElement.scrollWidth") <= w,
                    5,
                    f"{name} fits {width}",
                )
                for tab in ("Data", "Model", "Train", "Tune", "Explore"):
                    box = page.get_by_role("tab", name=tab).bounding_box()
                    assert box is not None, tab
                    assert box["x"] + box["width"] <= width, tab
                shot(page, f"{name}-{width}-{theme}")
        if theme == "light":
            page.get_by_role("button", name="Toggle theme").click()
            wait_until(lambda: "mira_theme=dark" in page.evaluate("document.cookie"), 10, "the theme is kept")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background in ("rgb(18, 18, 18)", "rgb(0, 0, 0)"), background  # dark survived the reloads
    context.close()


def test_panel_serve_shows_the_same(page, tmp_path):
    workspace = tmp_path / "workspace"

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "panel", "serve", "mira_app", "--port", str(port)]

    server = Server(workspace, command, {"MIRA_WORKSPACE": str(workspace), "MIRA_DATA": os.fspath(tmp_path)})
    try:
        page.goto(server.url("/mira_app"))
        page.get_by_text("No data set is chosen").wait_for()
        page.get_by_text(tmp_path.name, exact=True).wait_for()  # the data folder
    finally:
        server.stop()


def test_a_table_that_is_drawn_anew_before_it_was_built_is_silent(page, shared):
    """Tabulator's own would tell Panel that the new one is ready."""
    page.goto(shared.url("?page=data&data=demo:pbmc700"))
    page.get_by_role("heading", name="Data").wait_for()
    page.wait_for_function("window.Tabulator?.prototype.miraSilent")
    built = page.evaluate("""() => new Promise((done) => {
      const built = [], place = () => document.body.appendChild(document.createElement('div'))
      const table = (name, then) => {
        const made = new Tabulator(place(), { data: [{ a: 1 }], columns: [{ title: 'a', field: 'a' }] })
        made.on('tableBuilt', () => { built.push(name); then() })
        return made
      }
      table('gone', () => {}).destroy()
      table('stays', () => setTimeout(() => done(built), 300))
    })""")
    assert built == ["stays"]
    rows = page.evaluate("""() => new Promise((done) => {
      const place = document.body.appendChild(document.createElement('div'))
      const table = new Tabulator(place, { data: [{ a: 1 }], columns: [{ title: 'a', field: 'a' }] })
      table.setData([{ a: 2 }, { a: 3 }]).then(() => done(table.getData().map((row) => row.a)))
    })""")
    assert rows == [2, 3]  # what came before it was built
