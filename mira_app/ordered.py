"""Changes of a page reach its browser in the order in which they were made.

Bokeh writes what has changed when the turn of a callback ends; Panel writes its own changes past that, at once or
later, whichever the socket allows. Each message counts on those that were made before it: what arrives too early names
models that the browser does not know ("reference isn't known"), and the page stands still from then on. Here Panel's
changes are handed to Bokeh, whose turns are in order: at once where the document is locked, else in the next turn. And
what Panel does for a click is such a turn, too, also where the click has to wait for what was typed before it: figures,
which are Bokeh's own, can be changed in no other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import panel as pn
from bokeh.document.events import (
    ColumnDataChangedEvent,
    ColumnsPatchedEvent,
    ColumnsStreamedEvent,
    DocumentPatchedEvent,
    ModelChangedEvent,
)
from panel.io import document as panel_document
from panel.reactive import Syncable


def keep_order() -> None:
    """Let Panel hand its changes to Bokeh, in this process; a second call does nothing."""
    past_bokeh = panel_document.unlocked
    if getattr(past_bokeh, "keeps_order", False):
        return
    may_write = type(pn.state)._unblocked

    @contextmanager
    def unlocked(policy: Any = "combine") -> Iterator[None]:
        document = pn.state.curdoc
        session = _session(document)
        elsewhere = pn.state._thread_id not in (pn.state._current_thread, None)
        if session is None or elsewhere or not pn.state.loaded:  # where Panel leaves it to Bokeh itself
            with past_bokeh(policy):
                yield
            return
        if document.callbacks.hold_value:  # whoever holds them lets them go
            yield
            return
        with _held(document, session, policy):
            yield

    def unblocked(self: Any, document: Any) -> bool:
        session = _session(document)
        return may_write(self, document) and (session is None or _is_locked(session))

    unlocked.keeps_order = True  # type: ignore[attr-defined]
    for turn in (Syncable._event_coroutine, Syncable._change_coroutine):
        turn.lock = True  # type: ignore[attr-defined] # which Panel asks for
    type(pn.state)._unblocked = unblocked
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "panel" and getattr(module, "unlocked", None) is past_bokeh:
            module.unlocked = unlocked  # type: ignore[attr-defined]


@contextmanager
def together(document: Any) -> Iterator[None]:
    """Let all that is changed meanwhile reach the browser as one message, where `document` is shown by a server."""
    session = _session(document)
    if session is None or document.callbacks.hold_value:
        yield
        return
    with _held(document, session, "combine"):
        yield


def has_gone(document: Any) -> bool:
    """Tell whether a document was taken down with its session: Bokeh then takes away what calls back."""
    return document is not None and not hasattr(document.callbacks, "_change_callbacks")


@contextmanager
def _held(document: Any, session: Any, policy: Any) -> Iterator[None]:
    document.hold(policy)
    try:
        yield
    finally:
        _let_go(document, session)


def _session(document: Any) -> Any:
    """Return the session of a document that a server shows, else None."""
    return getattr(getattr(document, "session_context", None), "session", None)


def _is_locked(session: Any) -> bool:
    return session._pending_writes is not None  # Bokeh keeps them as long as somebody has the lock


def _as_one(events: list[Any], document: Any) -> list[Any]:
    """Return changes that are right when they are written together, which is after the last of them was made.

    A change of a part that has gone meanwhile would name what the browser never got; whole columns are read when they
    are written, so that rows which were added to them meanwhile are among them already.
    """
    of_parts = (ModelChangedEvent, ColumnDataChangedEvent, ColumnsStreamedEvent, ColumnsPatchedEvent)
    whole: dict[Any, ColumnDataChangedEvent] = {}
    changes = []
    for event in events:
        if isinstance(event, of_parts) and event.model.document is not document:
            continue
        if isinstance(event, ColumnDataChangedEvent) and event.data is None:
            whole[event.model.id] = event
        elif isinstance(event, ColumnsStreamedEvent | ColumnsPatchedEvent) and event.model.id in whole:
            whole[event.model.id].cols = None  # all of them, as all have grown
            continue
        changes.append(event)
    return changes


def _let_go(document: Any, session: Any) -> None:
    """Let held changes go: now if Bokeh takes them, else in the next turn, in which it does.

    They go to the session alone, past what listens to models in this process: that would take a click that Panel counts
    for a further one.
    """
    events = list(document.callbacks._held_events)
    document.callbacks._held_events = []
    document.callbacks.unhold()
    panel_document.monkeypatch_events(events)
    patched = [e for e in events if isinstance(e, DocumentPatchedEvent)]
    changes = _as_one(patched, document)
    # The others need no lock, and are how a turn is asked for.
    panel_document.retrigger_events(document, [e for e in events if e not in patched])

    def send() -> None:
        """Write them as one message, where Bokeh would write one for each."""
        for connection in session._subscribed_connections:
            wanted = [
                c for c in changes if not (c.setter is session and connection is session._current_patch_connection)
            ]
            if wanted:
                message = connection.protocol.create("PATCH-DOC", wanted)
                session._pending_writes.append(connection._socket.send_message(message))

    if not changes:
        return
    if _is_locked(session):
        send()
    else:
        document.add_next_tick_callback(send)
