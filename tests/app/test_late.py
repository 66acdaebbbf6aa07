"""Pages show what is chosen now, whatever was chosen before and whenever that arrives."""

from __future__ import annotations

import functools

import panel as pn
import pytest
from bokeh.document import Document
from panel.io.state import set_curdoc

from mira_app.hub import Hub
from mira_app.pages import model as model_page
from mira_app.pages import parts
from mira_app.pages.model import ModelPage
from mira_app.pages.tune import steering
from mira_app.pages.tune.begin import Begin
from mira_app.pages.tune.estimate import QuickEstimate
from mira_app.pages.tune.page import TunePage
from mira_app.serving.people import Person
from mira_app.session import Session
from mira_app.settings import Settings
from mira_app.studies import Studies
from mira_app.widgets.arrived import Arrived
from mira_app.workspace import Workspace
from mira_core.data import Recipe
from mira_core.data.simulate import simulate_expression
from mira_core.errors import DataError
from mira_core.tuning.reading import Reading
from tests.helpers import make_tuner

ASKED = {"study": "of ann", "min_topics": 2, "max_topics": 4, "max_trials": 1, "min_trials": 1}


@pytest.fixture
def workspace(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data").mkdir(exist_ok=True)
        simulate_expression(60, 30, 3, seed=1).write_h5ad(tmp_path / "data" / f"{name}.h5ad")
    return Workspace(Settings((tmp_path / "data",), tmp_path / "workspace"))


def filtered(least: float) -> Recipe:
    return Recipe().then("filter_cells", min_counts=least)


def test_a_form_outlives_recipes_that_follow_each_other_or_fail(workspace, monkeypatch):
    session = Session(data="0/a.h5ad")
    page = ModelPage(workspace, session, Hub())
    page.form.load({**page.form.given, "num_topics": 12})
    later, load = [], parts.load
    monkeypatch.setattr(parts, "load", lambda *asked: later.append(asked))
    for n in (1, 2):  # the first has not been looked at when the second is chosen
        session.recipe = workspace.looks.keep(filtered(n), "a")
    for asked in later:
        load(*asked)
    assert page.form.given["num_topics"] == 12
    assert page.recipe.steps == filtered(2).steps

    def fail(*_):
        raise DataError("no cell is left")

    monkeypatch.setattr(parts, "load", load)
    prepared = model_page.prepared
    monkeypatch.setattr(model_page, "prepared", fail)
    session.recipe = workspace.looks.keep(filtered(10**9), "a")
    assert page.form is None
    monkeypatch.setattr(model_page, "prepared", prepared)
    session.recipe = ""
    assert page.form.given["num_topics"] == 12
    session.data = "0/b.h5ad"
    assert "num_topics" not in page.form.given


def test_why_a_run_did_not_begin_is_told_until_one_begins(workspace, monkeypatch):
    session = Session(data="0/a.h5ad")
    page = ModelPage(workspace, session, Hub())

    def refuse(*_, **__):
        raise DataError("no room is left")

    monkeypatch.setattr(workspace, "submit", refuse)
    page._start()
    (told,) = page.message.objects
    assert "no room is left" in str(told.object)
    monkeypatch.setattr(workspace, "submit", lambda *_, **__: "job")
    page._start()
    assert (session.job, page.message.objects) == ("job", [])


def test_an_estimate_is_of_the_recipe_that_is_chosen(workspace, monkeypatch):
    session = Session(data="0/a.h5ad")
    page = ModelPage(workspace, session, Hub())
    monkeypatch.setattr(parts, "in_thread", lambda work, done, *_: done(work()))
    monkeypatch.setattr(workspace, "estimate", lambda *_: "8 s")
    page._estimate()
    assert page.estimated.object == "8 s"

    def meanwhile(*_):
        session.recipe = workspace.looks.keep(filtered(1), "a")
        return "9 s"

    monkeypatch.setattr(workspace, "estimate", meanwhile)
    page._estimate()
    assert page.recipe.steps == filtered(1).steps
    assert page.estimated.object == ""


def test_what_could_not_be_had_does_not_replace_what_was_asked_for_later():
    below, shown = pn.Column(), pn.pane.Markdown("of b")

    def fail():
        below.objects = [shown]  # meanwhile something else was asked for, and was there sooner
        raise DataError("a is damaged")

    parts.load(below, fail, pytest.fail)
    assert below.objects == [shown]
    parts.load(below, lambda: below.append(shown) or 1 / 0, pytest.fail)  # what is said beside the progress is no other
    assert "this could not be shown" in below.objects[0].object
    assert len(below.objects) == 1


def test_an_estimate_of_other_data_is_not_shown(workspace, monkeypatch):
    told = {"num_topics": 12, "contributions": [0.5, 0.3, 0.2], "threshold": 0.1}
    monkeypatch.setattr(QuickEstimate, "_newest", lambda self, asked: "job" if "a.h5ad" in str(asked[0]) else "")
    monkeypatch.setattr(
        QuickEstimate, "_follow",
        lambda self, key: (setattr(self, "key", key), self._show(*told.values())),
    )  # fmt: skip
    monkeypatch.setattr(parts, "in_thread", lambda work, done, *_: done(work()))
    session = Session(data="0/a.h5ad")
    begin = Begin(workspace, Studies(workspace), session, Hub(), print)
    assert "About 12 topics" in begin.quick.line.object
    assert begin.name.value == "a/expression/1"
    session.data = "0/b.h5ad"
    assert (begin.quick.line.object, begin.quick.below.objects, begin.quick.take.visible) == ("", [], False)
    assert begin.name.value == "b/expression/1"
    begin.name.value = "mine"
    session.data = "0/a.h5ad"
    assert begin.name.value == "mine"
    assert "About 12 topics" in begin.quick.line.object


def test_ranges_that_were_narrowed_elsewhere_stay(workspace, monkeypatch):
    studies = Studies(workspace)
    cells = simulate_expression(60, 30, 3, seed=1)
    make_tuner(cells, "s", storage=studies.url, max_trials=1, min_trials=1).fit(cells)

    class Page:
        def __init__(self):
            self.studies, self.session = studies, Session(study="s")

    page = Page()
    panel = steering.Steering(page)

    def read() -> Reading:
        page.reading = studies.readings.read("s")
        panel.update(page.reading)
        return page.reading

    assert read().narrowed == {}
    studies.ask("s", steering.control.narrow, {"num_topics": (4, 6)})
    read()
    assert (panel.low["num_topics"].value, panel.high["num_topics"].value) == ("4", "6")
    panel.high["decoder_dropout"].value = "0.06"
    panel._narrow()
    narrowed = read().narrowed
    assert list(narrowed["num_topics"]) == [4, 6]
    assert narrowed["decoder_dropout"][1] == 0.06
    panel._set({name: None for name in panel.low})
    assert read().narrowed == {}
    assert {w.value for w in (*panel.low.values(), *panel.high.values())} == {""}


def test_a_study_that_is_not_shared_is_told_so(workspace, monkeypatch):
    monkeypatch.setattr(workspace.dispatcher, "wake", lambda: None)  # it stays in the queue
    studies = Studies(workspace)
    ann, bob = (workspace.seen_by(functools.partial(Person, name, "user")) for name in ("ann", "bob"))
    studies.seen_by(ann).begin("0/a.h5ad", {"feature_type": "expression"}, ASKED)
    with set_curdoc(Document()):
        page = TunePage(bob, studies.seen_by(bob), Session(page="tune", study="of ann"), Hub(), Arrived())
        page._arrive()
    assert page.line.object == "<b>It cannot be read</b>"
    assert "not shared with you" in page.message.objects[0].object
