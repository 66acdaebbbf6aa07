"""Bokeh and Panel tell the same with what is kept as when all is worked out anew."""

from __future__ import annotations

import re
from typing import ClassVar

import bokeh.models
import panel as pn
import panel_material_ui as pmui
import param
import pytest
from bokeh.core.has_props import MetaHasProps, is_DataModel
from bokeh.core.property.descriptors import UnsetValueError
from bokeh.core.serialization import Serializer, UnknownReferenceError
from bokeh.document import Document
from bokeh.model import Model
from bokeh.plotting import figure
from bokeh.protocol import Protocol
from bokeh.themes import Theme
from panel.io.resources import Resources

from mira_app import lighter

CLASSES = sorted(
    (c for c in Model.model_class_reverse_map.values() if c.__module__.startswith("bokeh.models")), key=str
)

IDS = re.compile(r"id='\w+'")


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Lighten for one test."""
    for where, name, instead in lighter.LIGHTER:
        monkeypatch.setattr(where, name, instead)
    monkeypatch.setitem(Serializer._encoders, MetaHasProps, lighter._define)


def plainly(monkeypatch):
    monkeypatch.undo()


def all_subclasses(cls: type) -> set[type]:
    return {cls}.union(*(all_subclasses(c) for c in cls.__subclasses__()))


class Unusual(param.Parameterized):
    """Parameters that can be changed in place."""

    number = param.Number(default=1)
    choice = param.Selector(default="a", objects=["a", "b"])
    named = param.Selector(default=1, objects={"one": 1})


def values(model: Model) -> dict[str, object]:
    told = {}
    for name in model.properties():
        try:
            told[name] = getattr(model, name)
        except UnsetValueError:
            told[name] = UnsetValueError
    return {k: v for k, v in told.items() if not isinstance(v, Model)}


def test_defaults_are_those_of_bokeh_for_every_model(monkeypatch):
    made = []
    for cls in CLASSES:
        try:
            made += [(cls(), cls(), cls())]
        except Exception:  # abstract, or wants arguments
            continue
    assert len(made) > 200
    for _, first, second in made:
        values(first), values(second)  # the first is worked out, the second kept
    kept = [values(second) for _, _, second in made]
    plainly(monkeypatch)
    for (plain, _, _), told in zip(made, kept, strict=True):
        assert IDS.sub("", str(values(plain))) == IDS.sub("", str(told)), type(plain)


def test_a_theme_changes_defaults_and_another_takes_them_back():
    a, b = figure(), figure()
    usual = b.xaxis[0].axis_line_width
    assert usual != 7
    Theme(json={"attrs": {"Axis": {"axis_line_width": 7}}}).apply_to_model(a.xaxis[0])
    assert (a.xaxis[0].axis_line_width, b.xaxis[0].axis_line_width) == (7, usual)
    Theme(json={}).apply_to_model(a.xaxis[0])
    assert a.xaxis[0].axis_line_width == usual


def test_what_is_changed_in_place_belongs_to_one_model():
    a, b = bokeh.models.ColumnDataSource(), bokeh.models.ColumnDataSource()
    a.data["x"] = [1]
    a.tags.append("mine")
    assert dict(b.data) == {}
    assert b.tags == []


def test_all_that_a_model_refers_to_is_found(monkeypatch):
    def page() -> Model:
        plot = figure(tools="pan,lasso_select", tooltips=[("x", "@x")])
        plot.scatter("x", "y", source=bokeh.models.ColumnDataSource({"x": [1, 2], "y": [3, 4]}))
        plot.js_on_event("tap", bokeh.models.CustomJS(args={"a": plot, "b": [bokeh.models.Div()]}, code=""))
        box = pmui.Select(options=["a", "b"], label="many")
        return pn.Column(pmui.Card(box, pn.pane.Bokeh(plot)), pn.widgets.Tabulator()).get_root()

    pn.extension("tabulator")
    root = page()
    twice = [{m.id for m in root.references()} for _ in range(2)]
    plainly(monkeypatch)
    assert twice[0] == twice[1] == {m.id for m in root.references()}
    assert len(twice[0]) > 30


def test_a_change_is_written_as_bokeh_writes_it(monkeypatch):
    def written(serializer: type) -> list[str]:
        monkeypatch.setattr(lighter._patches, "Serializer", serializer)
        document, told = Document(), []
        plot = figure()
        document.add_root(plot)
        document.to_json()
        document.models.flush_synced()  # as when a browser has taken the page
        document.on_change(lambda change: told.append(Protocol().create("PATCH-DOC", [change]).content_json))
        plot.title.text = "of what is known"
        source = bokeh.models.ColumnDataSource({"x": [1, 2], "y": [3, 4]})
        plot.line("x", "y", source=source)  # new, and refers to what is known
        source.data = {"x": [5], "y": [6]}  # of what was new before
        plot.title = bokeh.models.Title(text="another")
        for made in sorted({*re.findall(r"\bp\d+\b", "".join(told))}, key=lambda i: int(i[1:])):
            told = [re.sub(rf"\b{made}\b", "id", text) for text in told]
        return told

    light, plain = written(lighter._Serializer), written(Serializer)
    assert light == plain
    assert len(plain) >= 4


def test_a_change_is_read_as_bokeh_reads_it(monkeypatch):
    def read() -> list[object]:
        document = Document()
        plot, other = figure(title="a"), bokeh.models.Title(text="another")
        document.add_root(bokeh.models.Column(plot, bokeh.models.Div(name="div"), tags=[other]))
        new = {"type": "object", "name": "Title", "id": "theirs", "attributes": {"text": "new"}}

        def change(attr: str, value: object, model: str = plot.id) -> None:
            told = {"kind": "ModelChanged", "model": {"id": model}, "attr": attr, "new": value}
            document.apply_json_patch({"events": [told]})

        change("title", {"id": other.id})
        told: list[object] = [plot.title is other]
        change("title", new)
        change("text", "changed", "theirs")
        told += [plot.title.id, plot.title.text, document.get_model_by_id("theirs") is plot.title]
        gone = document.roots[0].children.pop()
        change("text", "of what has gone", gone.id)  # is dropped
        told.append(gone.text)
        for model in (plot.id, "unknown"):
            with pytest.raises(UnknownReferenceError):
                change("title", {"id": "never seen"}, model)
        return told

    light = read()
    plainly(monkeypatch)
    assert light == read() == [True, "theirs", "changed", True, ""]


def test_classes_are_written_as_bokeh_writes_them(monkeypatch):
    classes = [c for c in Model.model_class_reverse_map.values() if is_DataModel(c)]

    def written() -> list[str]:
        serializer = Serializer()
        return [serializer.encode(c) for c in (*classes, classes[0])]

    light = [written() for _ in range(2)]
    plainly(monkeypatch)
    assert light[0] == light[1] == written()
    assert len(light[0]) > 50
    assert len(lighter._definitions) > 50


def test_files_of_parts_are_those_of_panel(monkeypatch):
    pn.extension("tabulator")

    def files() -> list[list[str]]:
        return [Resources(mode=mode).css_files for mode in ("server", "cdn", "server")]

    light = [files(), files()]

    class Another(pn.custom.JSComponent):
        """A class that comes later."""

        _esm = "export function render() {}"
        __css__: ClassVar = ["https://example.org/another.css"]

    Another()
    light.append(files())
    plainly(monkeypatch)
    assert light[2] == files()
    assert light[0] == light[1]
    assert any("another.css" in f for f in light[2][0])
    assert not any("another.css" in f for f in light[0][0])


def test_few_lists_of_files_are_kept_and_none_that_broke_off(monkeypatch):
    """Each asker can name another place."""
    whole = Resources(mode="server", root_url="/first").css_files
    find = lighter._find_resources

    def break_off(resources, found, kind):
        raise OSError("no memory")

    monkeypatch.setattr(lighter, "_find_resources", break_off)
    with pytest.raises(OSError, match="no memory"):
        Resources(mode="server", root_url="/second").css_files  # noqa: B018 - a property that looks for files
    monkeypatch.setattr(lighter, "_find_resources", find)
    second = Resources(mode="server", root_url="/second").css_files
    assert [f.replace("/second", "/first") for f in second] == whole
    for i in range(2 * lighter.KEPT):
        Resources(mode="server", root_url=f"/{i}").css_files  # noqa: B018
        assert len(lighter._resources) <= lighter.KEPT


@pytest.mark.parametrize("include_defaults", [False, True])
def test_values_are_those_of_bokeh(monkeypatch, include_defaults):
    def told() -> list[str]:
        plot = figure(title="some", tags=["mine"])
        plot.scatter("x", "y", source=bokeh.models.ColumnDataSource({"x": [1, 2], "y": [3, 4]}))
        plot.xaxis[0].ticker.tags.append("changed in place")
        models = [plot, *bokeh.models.Column(plot, bokeh.models.Div(text="a")).references()]
        return sorted(
            IDS.sub("", f"{type(m)} {m.properties_with_values(include_defaults=include_defaults)}") for m in models
        )

    light = [told() for _ in range(2)]
    plainly(monkeypatch)
    assert light[0] == light[1] == told()
    assert any("changed in place" in text for text in light[0])


@pytest.mark.parametrize("cls", [bokeh.models.CustomJS, bokeh.models.GlyphRenderer, bokeh.models.Slider])
def test_what_has_to_be_given_is_missed(cls):
    for _ in range(2):
        with pytest.raises(UnsetValueError):
            cls().properties_with_values(include_defaults=False)


def test_the_parameters_of_one_object_are_copies_as_param_makes_them():
    seen = set()
    for cls in {*all_subclasses(pn.viewable.Viewable), Unusual}:
        one = cls.__new__(cls)
        for parameter in cls.param.objects(instance=False).values():
            seen.add(type(parameter))
            plain = lighter._copy_parameter(parameter, one)
            light = lighter._parameter_of_one(parameter, one)
            assert type(light) is type(plain)
            for slot in type(parameter)._all_slots_:
                ours, theirs = getattr(light, slot), getattr(plain, slot)
                assert type(ours) is type(theirs), (cls, parameter.name, slot)
                assert ours is theirs or ours == theirs
                assert (ours is getattr(parameter, slot)) == (theirs is getattr(parameter, slot))
    assert len(seen) > 20


def test_a_parameter_that_is_changed_for_one_object_is_not_for_another():
    a, b = Unusual(), Unusual()
    a.param.choice.objects.append("mine")
    a.param.number.bounds = (0, 1)
    told = []
    a.param.watch(told.append, "number", what="bounds")
    a.param.number.bounds = (0, 2)
    assert "mine" not in b.param.choice.objects
    assert (b.param.number.bounds, Unusual.param.number.bounds) == (None, None)
    assert len(told) == 1


def test_a_second_call_does_nothing(monkeypatch):
    plainly(monkeypatch)
    for where, name, _ in lighter.LIGHTER:
        monkeypatch.setattr(where, name, getattr(where, name))  # put back in the end
    monkeypatch.setitem(Serializer._encoders, MetaHasProps, Serializer._encoders[MetaHasProps])
    try:
        lighter.lighten()
        lighter.lighten()
    finally:
        lighter.settings.perform_error_diagnostics = lighter.settings.perform_document_validation = True
    assert all(getattr(where, name) is instead for where, name, instead in lighter.LIGHTER)
    assert Serializer._encoders[MetaHasProps] is lighter._define
    assert lighter._work_out is not lighter._default
