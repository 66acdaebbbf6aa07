"""Changes of a page arrive in the order in which they were made, also where the browser is slow to read them."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import pytest
from bokeh.document import Document
from bokeh.models import ColumnDataSource, Div, Row
from bokeh.plotting import figure
from bokeh.protocol import Protocol
from tornado.websocket import websocket_connect

from mira_app import ordered
from mira_app.ordered import keep_order
from mira_app.pages import parts
from tests.benchmarks.tabs import Log, Sign, Tab, change, event

LARGE = 1_000_000  # points; more than the sockets hold
READY = {"type": "event", "name": "document_ready", "values": {"type": "map", "entries": []}}
EVENTS = json.dumps({"events": [{"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": READY}]})


def show() -> Any:
    """A page on which Bokeh sends much, Panel adds a figure, and Bokeh changes that figure."""
    keep_order()
    first, box = figure(title="first"), pn.Column()
    first.scatter([1.0], [1.0])

    def change() -> None:
        source = ColumnDataSource({"x": np.arange(LARGE, dtype=float), "y": np.zeros(LARGE)})
        first.line("x", "y", source=source)
        second = figure(title="second")
        second.line("x", "y", source=source)
        box.objects = [pn.pane.Bokeh(second)]
        second.scatter("x", "y", source=source)
        second.title.text = "last"

    document = pn.state.curdoc
    pn.state.onload(lambda: document.add_timeout_callback(change, 200))
    return pn.Column(pn.pane.Bokeh(first), box)


def draw_on_click() -> Any:
    """A page on which a click has Panel call what changes a figure of Bokeh."""
    keep_order()
    p, source = figure(title="steps"), ColumnDataSource({"step": [1.0]})
    p.scatter("step", "step", source=source)
    text, button = pmui.TextInput(label="text"), pmui.Button(label="draw")
    button.on_click(lambda _: source.stream({"step": [2.0]}))
    return pn.Column(text, button, pn.pane.Bokeh(p))


@pytest.fixture
def port(request) -> Iterator[int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = pn.serve(request.param, port=port, threaded=True, show=False, verbose=False)
    yield port
    server.stop()


def token(port: int) -> str:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/", timeout=30) as answer:
                (found,) = re.findall(r'"token":"([^"]+)"', answer.read().decode())
                return found
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def message(kind: str, content: str) -> list[str]:
    return [json.dumps({"msgid": kind, "msgtype": kind}), "{}", content]


async def contents(port: int) -> list[Any]:
    """What a browser is sent that begins to read late."""
    socket = await websocket_connect(
        f"ws://localhost:{port}/ws", subprotocols=["bokeh", token(port)], max_message_size=2**30
    )
    for _ in range(3):  # the server's greeting, before which it hears nothing
        await socket.read_message()
    for part in (*message("PULL-DOC-REQ", "{}"), *message("PATCH-DOC", EVENTS)):
        await socket.write_message(part)
    await asyncio.sleep(3)
    out: list[Any] = []
    while not any(titles(each) for each in out):  # the figure may be written when it has its title already
        text = await asyncio.wait_for(socket.read_message(), 30)
        if text is None:
            raise AssertionError("the connection was closed")
        if isinstance(text, str):
            out.append(json.loads(text))
    socket.close()
    return out


def titles(content: Any) -> list[str]:
    """The titles that this message changes."""
    return [e["new"] for e in content.get("events", []) if e.get("attr") == "text"]


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        yield from walk(each)


@pytest.mark.parametrize("port", [show], indirect=True)
def test_no_message_names_a_model_that_has_not_been_sent(port):
    with ThreadPoolExecutor(1) as thread:  # as Playwright's loop may run in this one
        sent = thread.submit(asyncio.run, contents(port)).result()
    known = {content["id"] for content in sent if set(content) == {"id"}}  # arrays, which follow what names them
    for content in sent:
        nodes = [n for part in ("doc", "events") for n in walk(content.get(part))]
        known |= {n["id"] for n in nodes if "id" in n and "type" in n}
        named = {n["id"] for n in nodes if set(n) == {"id"}}
        assert named <= known
    assert titles(sent[-1]) == ["last"]


async def change_and_click(port: int, log: Log) -> list[float]:
    """What is drawn after somebody typed and clicked at once; the click then waits for what was typed."""
    tab = Tab(f"http://localhost:{port}/", log)
    await tab.open("")
    label, text = tab.widget("draw"), tab.widget("text")
    button = tab.newest("the button", lambda m: m.has.get("data") == {"id": label.id})
    click = event("dom_event", model=button, node="click", data={"type": "map", "entries": []})
    drawn = Sign("another step", lambda m: len((m.has.get("data") or {}).get("step", [])) == 2)
    async with tab.answered("a click", drawn):
        await tab.send(change(text, "value", "new"), click)
    await tab.close()
    return tab.newest("steps", drawn.seen).has["data"]["step"]


@pytest.mark.parametrize("port", [draw_on_click], indirect=True)
def test_a_click_right_after_a_change_may_change_figures(port):
    token(port)  # the server answers
    log = Log()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, change_and_click(port, log)).result()
    assert not log.errors


def _replace_one(source: ColumnDataSource, row: Row) -> None:
    source.data["y"] = [7.0, 8.0]
    source.stream({"x": [3.0], "y": [9.0]})


def _replace_all(source: ColumnDataSource, row: Row) -> None:
    source.patch({"x": [(0, 6.0)]})
    source.data = {"x": [5.0], "z": [6.0]}
    source.stream({"x": [3.0], "z": [9.0]})
    source.patch({"z": [(1, 4.0)]})


def _come_and_go(source: ColumnDataSource, row: Row) -> None:
    row.children = [brief := Div(text="first")]
    brief.text = "second"
    row.children = []


def _come_and_stay(source: ColumnDataSource, row: Row) -> None:
    row.children = [part := Div(text="first")]
    part.text = "second"
    source.name = "named"


@pytest.mark.parametrize("change", [_replace_one, _replace_all, _come_and_go, _come_and_stay])
def test_what_is_written_together_gives_what_is_here(change):
    """A copy of the document, as a browser has it, is the same afterwards."""
    document, source, row = Document(), ColumnDataSource({"x": [1.0, 2.0], "y": [3.0, 4.0]}), Row()
    document.add_root(source)
    document.add_root(row)
    copy = Document.from_json(document.to_json())
    document.hold("combine")
    change(source, row)
    events = ordered._as_one(document.callbacks._held_events, document)
    Protocol().create("PATCH-DOC", events).apply_to_document(copy)
    their_source, their_row = copy.roots
    assert (dict(their_source.data), their_source.name) == (dict(source.data), source.name)
    assert [c.text for c in their_row.children] == [c.text for c in row.children]


def test_for_a_page_that_has_been_left_nothing_is_done():
    here, left, done = Document(), Document(), []
    left.callbacks.destroy()
    for document in (here, left):
        parts.in_turn(functools.partial(done.append, document), document)
    assert done == [here]


def test_a_button_that_turns_late_turns_long_enough(monkeypatch):
    """Where the session is busy, its turn comes when all has been done."""
    button, turned = pmui.Button(label="Begin"), []
    button.param.watch(lambda _: turned.append(time.monotonic()), "loading")
    monkeypatch.setattr(parts, "AT_ONCE", 0.05)
    monkeypatch.setattr(parts, "DRAWN", 0.3)

    async def ask() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        free = loop.time() + 0.6
        monkeypatch.setattr(parts, "in_turn", lambda action, _=None: loop.call_at(max(free, loop.time()), action))
        parts.in_thread(lambda: time.sleep(0.1), lambda _: done.set(), pytest.fail, button)
        await done.wait()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, ask()).result()
    began, ended = turned
    assert ended - began >= 0.3


def test_a_button_turns_only_while_something_takes_long(monkeypatch):
    """What is put back while a browser is about to draw it, Panel's parts write back as it was."""
    button, turned, done = pmui.Button(label="Begin"), [], []
    button.param.watch(lambda e: turned.append(e.new), "loading")

    def long() -> str:
        parts.in_thread(lambda: "a second click", done.append, done.append, button)
        time.sleep(0.2)
        return "long"

    async def ask(work: Callable[[], str]) -> float:
        """Ask in a running loop, as a server has one, and say how long it took until it was told."""
        before, began = len(done), time.monotonic()
        parts.in_thread(work, done.append, done.append, button)
        while len(done) == before:
            await asyncio.sleep(0.01)
        return time.monotonic() - began

    with ThreadPoolExecutor(1) as thread:  # Playwright leaves a loop running in the main one
        monkeypatch.setattr(parts, "AT_ONCE", 60.0)
        thread.submit(asyncio.run, ask(lambda: "at once")).result()
        assert (done, turned) == (["at once"], [])
        monkeypatch.setattr(parts, "AT_ONCE", 0.05)
        monkeypatch.setattr(parts, "DRAWN", 0.3)
        assert thread.submit(asyncio.run, ask(long)).result() > 0.3
        assert (done, turned) == (["at once", "long"], [True, False])
