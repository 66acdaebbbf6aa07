"""Pages of the dashboard without a browser: each speaks Bokeh's protocol over a websocket, as an open one does.

A page is asked for, its websocket is opened with the token that is in it, its document is pulled, and what the server
says of it is kept, though nothing is drawn: of columns of numbers only their lengths. What a person does is what their
browser would send, and it is answered once the server has sent what they wait to see.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from bokeh.client.websocket import WebSocketClientConnectionWrapper
from bokeh.protocol import Protocol as Messages
from bokeh.protocol.messages.patch_doc import patch_doc
from bokeh.protocol.receiver import Receiver
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

from tests.servers import PATIENCE

LONGEST = 30.0 * PATIENCE  # seconds after which an action counts as not answered
NO_LIMIT: Any = {"request_timeout": 0, "connect_timeout": 0}  # as `LONGEST` is that of all
LARGEST = 100 * 2**20  # bytes of a message
TOKEN = re.compile(rb'"token":\s*"([^"]+)"')
MESSAGES = Messages()
AsyncHTTPClient.configure(None, max_clients=10_000)  # no browser waits for another


@dataclass
class Log:
    """Seconds that each action took, by its name, and errors, by their text."""

    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)
    visits: int = 0

    def error(self, text: str) -> None:
        """Count an error."""
        self.errors[text] += 1


class Unanswered(Exception):
    """The server has not shown what an action should."""


@dataclass(eq=False)
class Model:
    """A Bokeh model, as a browser knows it."""

    id: str
    type: str
    has: dict[str, Any] = field(default_factory=dict)


class Sign(NamedTuple):
    """What somebody waits to see: a model, new or changed, of which something is true."""

    what: str
    seen: Callable[[Model], bool]


def address(**told: str) -> Sign:
    """Return the sign that the page's address says so; "": does not name it."""

    def seen(model: Model) -> bool:
        asked = dict(parse_qsl(str(model.has.get("search", "")).lstrip("?")))
        return model.type.endswith(".Location") and all(asked.get(k, "") == v for k, v in told.items())

    return Sign(f"the address with {told}", seen)


def says(*texts: str) -> Sign:
    """Return the sign that a text holds one of these."""

    def seen(model: Model) -> bool:
        text = model.has.get("text")
        return isinstance(text, str) and any(t in re.sub("<[^>]*>", "", html.unescape(text)) for t in texts)

    return Sign(f"the text {' or '.join(texts)}", seen)


def labelled(label: str) -> Sign:
    """Return the sign that a widget has this label."""
    return Sign(f"the widget {label}", lambda model: model.has.get("label") == label)


def draws(*columns: str) -> Sign:
    """Return the sign that data with these columns have rows."""

    def seen(model: Model) -> bool:
        data = model.has.get("data")
        return isinstance(data, dict) and all(c in data and len(data[c]) for c in columns)

    return Sign(f"data with the columns {', '.join(columns)}", seen)


def change(model: Model, name: str, new: Any) -> dict[str, Any]:
    """Return what a browser sends when a property has changed."""
    return {"kind": "ModelChanged", "model": {"id": model.id}, "attr": name, "new": new}


def event(name: str, **values: Any) -> dict[str, Any]:
    """Return what a browser sends of an event."""
    told = {"type": "map", "entries": [[k, {"id": v.id} if isinstance(v, Model) else v] for k, v in values.items()]}
    return {"kind": "MessageSent", "msg_type": "bokeh_event",
            "msg_data": {"type": "event", "name": name, "values": told}}  # fmt: skip


class Tab:
    """An open page.

    It takes every change, answers what `mira_app.widgets.arrived.Arrived` asks, and tells the ranges of figures whose
    data have changed, as a browser does that draws them anew; not the sizes and colours that it tells at first. A
    change that names a model which was never sent is an error: the page of a browser would stand still from then on.

    Parameters
    ----------
    cookies
        Sent with each request, such as that of a login.

    Attributes
    ----------
    models
        What the page has, by id; also what it had before, as nobody looks through it for garbage.
    """

    def __init__(self, url: str, log: Log, cookies: Mapping[str, str] = MappingProxyType({})) -> None:
        self.url, self.log = url, log
        self.headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())} if cookies else {}
        self.models: dict[str, Model] = {}
        self._missing: list[Sign] = []
        self._answered: asyncio.Future[None] | None = None
        self._replies: dict[str, asyncio.Future[Any]] = {}
        self._asked: dict[str, str] = {}  # by `Arrived`, and not answered yet
        self._figures: dict[str, list[Model]] = {}  # id of data -> ranges of the figures that draw them
        self._drawn: dict[str, Model] = {}  # ranges that have moved, and are to be told
        self._socket: WebSocketClientConnectionWrapper | None = None
        self._reading: asyncio.Task[None] | None = None
        self._told = 0.0
        self._leaving = False

    async def open(self, query: str) -> None:
        """Load the page, as far as a person's browser does before it can draw."""
        page = await AsyncHTTPClient().fetch(f"{self.url}{query}", headers=self.headers, **NO_LIMIT)
        found = TOKEN.search(page.body)
        if found is None:
            raise Unanswered("the page has no token")
        headers = {**self.headers, "Origin": self.url.rstrip("/")}
        request = HTTPRequest(f"{self.url.replace('http', 'ws', 1)}ws", headers=headers, **NO_LIMIT)
        protocols = ["bokeh", found[1].decode()]
        socket = await websocket_connect(request, subprotocols=protocols, max_message_size=LARGEST)
        self._socket = WebSocketClientConnectionWrapper(socket)
        self._replies["ACK"] = ready = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())
        await ready
        await self.pull()
        await self.send(event("document_ready"))
        await self._tell_what_arrived()

    async def pull(self) -> None:
        """Ask for the whole page, which is answered after all that was sent before."""
        reply = await self._reply_to(MESSAGES.create("PULL-DOC-REQ"))
        self._keep(reply["doc"]["roots"])

    async def send(self, *changes: dict[str, Any]) -> None:
        """Send changes and events; the server does not tell them back."""
        for each in changes:
            if each["kind"] == "ModelChanged":
                self.models[each["model"]["id"]].has[each["attr"]] = each["new"]
        await self.say(*changes)

    async def say(self, *changes: dict[str, Any]) -> None:
        """Send what is not kept, as the page of a browser would not have it."""
        await patch_doc(patch_doc.create_header(), {}, {"events": list(changes)}).send(self._socket)

    @contextlib.asynccontextmanager
    async def answered(self, what: str, *signs: Sign) -> AsyncIterator[None]:
        """Do something, wait until all signs of it have been seen, and keep how long that took.

        Raises
        ------
        Unanswered
            If they are not seen within `LONGEST`, or the connection breaks.
        """
        began = time.perf_counter()
        self._missing, self._answered = list(signs), asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(LONGEST):
                yield
                await self._answered
        except TimeoutError:
            missing = ", ".join(s.what for s in self._missing)
            raise Unanswered(f"{what}: not within {LONGEST:.0f} s: {missing}") from None
        finally:
            self._missing, self._answered = [], None
        self.log.times[what].append(time.perf_counter() - began)

    def widget(self, label: str) -> Model:
        """Return the newest widget with a label."""
        return self.newest(f"a widget {label!r}", lambda m: m.has.get("label") == label)

    def newest(self, what: str, wanted: Callable[[Model], bool]) -> Model:
        """Return the newest model of which something is true."""
        found = next((m for m in reversed(self.models.values()) if wanted(m)), None)
        if found is None:
            raise Unanswered(f"the page has not {what}")
        return found

    async def close(self) -> None:
        """Leave, as somebody does who closes the page."""
        self._leaving = True
        if self._socket is not None and self._reading is not None:
            self._socket.close(1001)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reading, LONGEST)

    # --- what the server says ---------------------------------------------------------------------

    async def _reply_to(self, message: Any) -> Any:
        self._replies[message.header["msgid"]] = reply = asyncio.get_running_loop().create_future()
        await message.send(self._socket)
        return await reply

    async def _read(self) -> None:
        assert self._socket is not None
        receiver = Receiver(MESSAGES)
        while (fragment := await self._socket.read_message()) is not None:
            message = await receiver.consume(fragment)
            if message is not None and not self._leaving:
                await self._take(message)
        if not self._leaving:
            self.log.error("the server closed the connection")
            for waiting in (self._answered, *self._replies.values()):
                if waiting is not None and not waiting.done():
                    waiting.set_exception(Unanswered("the connection broke"))
                    waiting.exception()  # nobody may be waiting any more

    async def _take(self, message: Any) -> None:
        if message.msgtype == "ERROR":
            self.log.error(f"the server could not take a change: {message.content.get('text')}")
        elif message.msgtype == "PATCH-DOC":
            for told in message.content["events"]:
                self._change(told)
        reply = self._replies.pop(message.header.get("reqid", message.msgtype), None)
        if reply is not None and not reply.done():
            reply.set_result(message.content)
        await self._tell_what_arrived()
        moved, self._drawn = self._drawn, {}
        for each in moved.values():
            await self.send(change(each, "start", self._told), change(each, "end", self._told + 1.0))
            self._told += 1e-3

    def _change(self, told: dict[str, Any]) -> None:
        new = self._keep({k: v for k, v in told.items() if k != "kind"})
        model = self.models.get((new.get("model") or {}).get("id", ""))
        if model is None:
            return
        if told["kind"] == "ModelChanged":
            model.has[new["attr"]] = new["new"]
        elif told["kind"] == "ColumnDataChanged":
            model.has["data"] = {**model.has.get("data", {}), **new["data"]}
        elif told["kind"] == "ColumnsStreamed":
            before = model.has.get("data", {})
            model.has["data"] = {k: [*before.get(k, []), *v][-(new["rollover"] or 0) :] for k, v in new["data"].items()}
        if told["kind"].startswith("Column") or told.get("attr") == "data":
            self._drawn |= {r.id: r for r in self._ranges_of(model)}
        self._look_at(model)

    def _ranges_of(self, data: Model) -> list[Model]:
        """Return what follows the data in the figures that draw them, and is told."""
        if data.id not in self._figures:
            drawn = {m.id for m in self.models.values() if m.has.get("data_source") == {"id": data.id}}
            figures = [m for m in self.models.values() if m.type == "Figure"
                       and any(r.get("id") in drawn for r in m.has.get("renderers", []))]  # fmt: skip
            ranges = (
                self.models.get((f.has.get(r) or {}).get("id", "")) for f in figures for r in ("x_range", "y_range")
            )
            follows = [r for r in ranges if r is not None and r.type == "DataRange1d"]
            self._figures[data.id] = [r for r in follows if r.has.get("syncable", True)]
        return self._figures[data.id]

    def _keep(self, told: Any) -> Any:
        """Keep the models that are told of, and return the rest in Python's terms, with ids in place of models."""
        if isinstance(told, list):
            return [self._keep(each) for each in told]
        if not isinstance(told, dict):
            return told
        kind = told.get("type")
        if kind == "object" and "id" in told:
            model = self.models.setdefault(told["id"], Model(told["id"], told["name"]))
            if model.type == "Figure":
                self._figures.clear()
            model.has.update(self._keep(told.get("attributes", {})))
            if str(model.has.get("url")).startswith("http"):
                self.log.error(f"the page wants {model.has['url']} from the network")
            self._look_at(model)
            return {"id": model.id}
        if kind == "map":
            return {str(key): self._keep(value) for key, value in told.get("entries", [])}
        if kind == "ndarray":
            return told["array"] if isinstance(told["array"], list) else range(told["shape"][0])
        if told.keys() == {"id"} and told["id"] not in self.models:
            self.log.error("a change names a model that was never sent")
        return told if kind == "bytes" else {key: self._keep(value) for key, value in told.items()}

    def _look_at(self, model: Model) -> None:
        """See whether a model that is new or has changed is what somebody waits for."""
        if asked := model.has.get("ask"):
            self._asked[model.id] = asked
        if self._missing:
            self._missing = [sign for sign in self._missing if not sign.seen(model)]
            if not self._missing and self._answered is not None and not self._answered.done():
                self._answered.set_result(None)

    async def _tell_what_arrived(self) -> None:
        for asking, asked in list(self._asked.items()):
            if asked.split()[0] in self.models:
                del self._asked[asking]
                if self.models[asking].has.get("told") != asked:
                    self.models[asking].has["told"] = asked
                    await self.send(change(self.models[asking], "told", asked))
