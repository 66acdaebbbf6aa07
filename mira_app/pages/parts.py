"""Small pieces that all pages share. Text that comes from data is escaped here."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import html
import logging
import numbers
import re
import time
import traceback
import urllib.parse
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pandas as pd
import panel as pn
import panel_material_ui as pmui
from panel.io.state import set_curdoc

from mira_core.data import Finding
from mira_core.errors import MiraError

from ..ordered import has_gone, together
from ..styles import HTML, SHEET

T = TypeVar("T")
logger = logging.getLogger(__name__)

_FETCHING = ThreadPoolExecutor(16, "fetch")  # what pages show, of all sessions
_WORKING = ThreadPoolExecutor(32, "work")  # what people ask for; the loop's own threads, a few, are for logins
AT_ONCE = 0.3  # seconds within which nobody has to be told that something is being done
DRAWN = 1.0  # seconds after which a browser has drawn what it was told
LEFT = 60.0  # seconds without a turn, after which a page has been left
_BUSY: weakref.WeakSet[Any] = weakref.WeakSet()  # buttons that have asked for something
LONG = 12  # rows from which a table is one to search in
WIDE = 40  # letters above which text is broken into lines


def markup(kind: str, text: str = "", **params: Any) -> pn.pane.HTML:
    """Return trusted HTML in one of the looks of `mira_app.styles`."""
    params = {"sizing_mode": "stretch_width", **params}
    return pn.pane.HTML(text, css_classes=[f"mira-{kind}"], stylesheets=[HTML[kind]], **params)


def title(text: str, below: str = "") -> pn.viewable.Viewable:
    """Head of a page."""
    return markup("title", f"<h1>{html.escape(text)}</h1><p>{html.escape(below)}</p>", margin=(0, 10))


def note(text: str) -> pn.viewable.Viewable:
    """Return a quiet line; `text` is trusted HTML unless it comes from data, which callers escape."""
    return markup("note", text, margin=(0, 12, 8, 12))


def empty(what: str, do: str) -> pn.viewable.Viewable:
    """Say that there is nothing yet, and what to do."""
    return markup("empty", f"<b>{html.escape(what)}</b><br>{html.escape(do)}")


def problem(text: str, details: str = "") -> pn.viewable.Viewable:
    """Say what is wrong; the traceback is one click away."""
    return markup("problem", problem_html(text, details), margin=(4, 10))


def problem_html(text: str, details: str = "") -> str:
    """Return the same as HTML, in the look "problem"."""
    more = f"<details><summary>Details</summary><pre>{html.escape(details)}</pre></details>" if details else ""
    return f'<div role="alert">{html.escape(text)}{more}</div>'


def good(text: str) -> pn.viewable.Viewable:
    """Say that something is as it should be."""
    return markup("good", f'<div role="status">{html.escape(text)}</div>', margin=(4, 10))


def finding(f: Finding) -> pn.viewable.Viewable:
    """Show what an inspection found; why it matters is one click away."""
    text = (
        f'<div class="{f.severity}"><b>{html.escape(f.title)}</b><p>{html.escape(f.what)} {html.escape(f.fix)}</p>'
        f"<details><summary>Why it matters</summary>{html.escape(f.why)}</details></div>"
    )
    return markup("finding", text, margin=(4, 10))


escape = html.escape


def figure_of(label: str, value: str) -> pn.viewable.Viewable:
    """One number with its label."""
    text = f"<span>{html.escape(label)}</span><b>{html.escape(value)}</b>"
    return markup("number", text, sizing_mode=None, margin=(4, 10))


def figures_of(shown: list[tuple[str, str]]) -> str:
    """Return the HTML of numbers with their labels, for ``markup("numbers")``, whose text changes as they do."""
    each = (f"<p><span>{html.escape(label)}</span><b>{html.escape(value)}</b></p>" for label, value in shown)
    return f"<section>{''.join(each)}</section>"


def sheet(frame: pd.DataFrame, **params: Any) -> Any:
    """Return a Tabulator that is read, not edited, in the app's look."""
    # columns are resized in the header only: a handle between two cells takes the click that would select the row
    look = {"disabled": True, "show_index": False, "layout": "fit_columns", "theme": "simple",
            "stylesheets": [SHEET], "sizing_mode": "stretch_width",
            "configuration": {"columnDefaults": {"resizable": "header"}}}  # fmt: skip
    return pn.widgets.Tabulator(frame, **look, **params)


def table(heading: str, frame: pd.DataFrame) -> pn.viewable.Viewable:
    """Return a table with a heading and a link to it as CSV; a long one can be sorted and filtered."""
    if len(frame) <= LONG:
        return markup("table", table_html(heading, frame), margin=(4, 10))
    long = sheet(
        frame, header_filters=True, max_height=400, margin=(0, 10),
        text_align={c: "right" for c in frame if pd.api.types.is_numeric_dtype(frame[c])},
        formatters={c: {"type": "textarea"} for c in frame if frame[c].astype(str).str.len().max() > WIDE},
        widths={c: f"{100 * share:.0f}%" for c, share in _shares(frame).items()},
    )  # fmt: skip
    head = markup("table", _headed(heading, frame), margin=(4, 10, 0, 10))
    return pn.Column(head, long, sizing_mode="stretch_width", margin=0)


def _headed(heading: str, frame: pd.DataFrame) -> str:
    file = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
    link = f"data:text/csv;charset=utf-8,{urllib.parse.quote(frame.to_csv(index=False))}"
    return f'<h2>{html.escape(heading)} <a download="{file}.csv" href="{link}" title="Download">CSV</a></h2>'


def table_html(heading: str, frame: pd.DataFrame) -> str:
    """Return a short table as HTML, in the look "table"."""
    if not len(frame):
        return f"<h2>{html.escape(heading)}</h2><p>none</p>"
    names = zip(frame.columns, frame.iloc[0], strict=True)
    heads = "".join(f"<th{_aligned(value)}>{html.escape(str(column))}</th>" for column, value in names)
    rows = "".join(
        "<tr>" + "".join(f"<td{_aligned(v)}>{html.escape(_text(v))}</td>" for v in row) + "</tr>"
        for row in frame.itertuples(index=False)
    )
    body = f"<div class='scroll'><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    return _headed(heading, frame) + body


def legend(entries: list[tuple[str, str]]) -> str:
    """Return the HTML of a legend of categories."""
    return "".join(f'<span><i style="background:{colour}"></i>{html.escape(label)}</span>' for label, colour in entries)


def in_turn(action: Callable[[], None], document: Any = None) -> None:
    """Run in a session's turn, with its document locked.

    Panel runs clicks and coroutines outside of the lock, and figures must not be written there.

    Parameters
    ----------
    action
        What to do; nothing is done for a page that has been left meanwhile.
    document
        Whose turn; by default that of who asks. What runs by itself, as after a while, has to say it: whose turn it is
        then is anybody's.
    """
    if has_gone(document or pn.state.curdoc):
        return

    def turn() -> None:
        with together(pn.state.curdoc):
            action()

    with contextlib.nullcontext() if document is None else set_curdoc(document):
        pn.state.execute(turn, schedule=True)


def on_click(button: Any, action: Callable[[], None]) -> None:
    """Let a click run `action` in the session's turn."""
    button.on_click(lambda _: in_turn(action))


def load(below: Any, fetch: Callable[[], T], show: Callable[[T], None]) -> None:
    """Fetch something in a thread, so that a slow disk holds up no other session, then show it in this one's turn.

    Parameters
    ----------
    below
        Box that shows progress meanwhile, and what went wrong.
    fetch, show
        What to get, and what to do with it.
    """
    waiting = pmui.LinearProgress(variant="indeterminate", sizing_mode="stretch_width")
    below.objects = [waiting]
    fetched = _FETCHING.submit(contextvars.copy_context().run, fetch)  # while the browser loads the page
    document = pn.state.curdoc

    async def go() -> None:
        try:
            got = await asyncio.wrap_future(fetched)
        except MiraError as wrong:
            told = problem(str(wrong))
        except Exception as wrong:
            logger.exception("a page could not be shown")
            told = problem(f"this could not be shown: {wrong}", traceback.format_exc())
        else:
            in_turn(functools.partial(show, got), document)
            return

        def tell() -> None:
            if waiting in below.objects:  # else something else is shown by now
                below.objects = [told]

        in_turn(tell, document)

    pn.state.onload(go)  # at once if the page is there; what changes while it is being sent can be lost


def in_thread(
    work: Callable[[], T], done: Callable[[T], None], failed: Callable[[str], None], busy: Any = None
) -> None:
    """Do something that may take long, then tell of it in this session's turn.

    Parameters
    ----------
    work
        Run in a thread.
    done, failed
        Given what came of it; given what is wrong, in words.
    busy
        Button that asked for it: it turns while that takes, and a further click does nothing. Not if it is done at
        once: what is put back while a browser is about to draw it, Panel's parts write back as it was.
    """
    document = pn.state.curdoc
    if busy is not None:
        if is_busy(busy):
            return
        _BUSY.add(busy)

    def end(then: Callable[[], None]) -> None:
        if busy is not None:
            _BUSY.discard(busy)
            busy.loading = False
        then()

    async def go() -> None:
        task = asyncio.get_running_loop().run_in_executor(_WORKING, contextvars.copy_context().run, work)
        if busy is not None and not (await asyncio.wait({task}, timeout=AT_ONCE))[0]:
            turned = asyncio.get_running_loop().create_future()

            def turn() -> None:
                busy.loading = True
                if not turned.done():
                    turned.set_result(time.monotonic())

            in_turn(turn, document)
            await asyncio.wait({task})
            if (await asyncio.wait({turned}, timeout=LEFT))[0]:
                await asyncio.sleep(turned.result() + DRAWN - time.monotonic())
        try:
            got = await task
        except MiraError as wrong:
            told = str(wrong)
        except Exception as wrong:
            logger.exception("something was asked that could not be done")
            told = f"this could not be done: {wrong}"
        else:
            in_turn(functools.partial(end, functools.partial(done, got)), document)
            return
        in_turn(functools.partial(end, functools.partial(failed, told)), document)

    pn.state.execute(go)


def is_busy(button: Any) -> bool:
    """Tell whether what a button asked for is still being done."""
    return button in _BUSY


def card(*objects: Any, heading: str = "", **params: Any) -> pn.viewable.Viewable:
    """Return a framed group."""
    head = [pmui.Typography(heading, variant="subtitle1", margin=(6, 10, 0, 10))] if heading else []
    return pmui.Paper(*head, *objects, sizing_mode="stretch_width", variant="outlined", elevation=0, margin=8, **params)


def _shares(frame: pd.DataFrame) -> dict[str, float]:
    """Share out a table's width by what its columns hold."""
    letters = {c: min(max(len(str(c)) + 9, frame[c].astype(str).str.len().max()), 2 * WIDE) for c in frame}
    return {c: n / sum(letters.values()) for c, n in letters.items()}


def _text(value: Any) -> str:
    return (
        f"{value:,}"
        if isinstance(value, numbers.Integral)
        else ("–" if value != value else f"{value:.3g}")
        if isinstance(value, float)
        else str(value)
    )


def _aligned(value: Any) -> str:
    number = isinstance(value, numbers.Number) or re.fullmatch(r"[-+]?[\d,.]+(e[-+]?\d+)?\s?%?", str(value))
    return ' class="number"' if number else ""
