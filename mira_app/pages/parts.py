"""Small pieces that all pages share. Text that comes from data is escaped here."""

from __future__ import annotations

import asyncio
import functools
import html
import logging
import numbers
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core.errors import MiraError

from ..styles import HTML

T = TypeVar("T")
logger = logging.getLogger(__name__)


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
    more = f"<details><summary>Details</summary><pre>{html.escape(details)}</pre></details>" if details else ""
    return _message("problem", text, more)


def good(text: str) -> pn.viewable.Viewable:
    """Say that something is as it should be."""
    return _message("good", text, "")


def _message(kind: str, text: str, more: str) -> pn.viewable.Viewable:
    role = "alert" if kind == "problem" else "status"
    return markup(kind, f'<div role="{role}">{html.escape(text)}{more}</div>', margin=(4, 10))


escape = html.escape


def figure_of(label: str, value: str) -> pn.viewable.Viewable:
    """One number with its label."""
    text = f"<span>{html.escape(label)}</span><b>{html.escape(value)}</b>"
    return markup("number", text, sizing_mode=None, margin=(4, 10))


def figures_of(shown: list[tuple[str, str]]) -> str:
    """Return the HTML of numbers with their labels, for ``markup("numbers")``, whose text changes as they do."""
    each = (f"<p><span>{html.escape(label)}</span><b>{html.escape(value)}</b></p>" for label, value in shown)
    return f"<section>{''.join(each)}</section>"


def table(heading: str, frame: pd.DataFrame) -> pn.viewable.Viewable:
    """Return a plain table with a heading."""
    first = frame.iloc[0] if len(frame) else [""] * len(frame.columns)
    heads = zip(frame.columns, first, strict=True)
    head = "".join(f"<th{_aligned(value)}>{html.escape(str(column))}</th>" for column, value in heads)
    rows = "".join(
        "<tr>" + "".join(f"<td{_aligned(v)}>{html.escape(_text(v))}</td>" for v in row) + "</tr>"
        for row in frame.itertuples(index=False)
    )
    body = (
        f"<h2>{html.escape(heading)}</h2><div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        if len(frame)
        else f"<h2>{html.escape(heading)}</h2><p>none</p>"
    )
    return markup("table", body, margin=(4, 10))


def legend(entries: list[tuple[str, str]]) -> str:
    """Return the HTML of a legend of categories."""
    return "".join(f'<span><i style="background:{colour}"></i>{html.escape(label)}</span>' for label, colour in entries)


def in_turn(action: Callable[[], None]) -> None:
    """Run in this session's turn, with its document locked.

    Panel runs clicks and coroutines outside of the lock, and figures must not be written there.
    """
    pn.state.execute(action, schedule=True)


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
    below.objects = [pmui.LinearProgress(variant="indeterminate", sizing_mode="stretch_width")]

    async def go() -> None:
        try:
            got = await asyncio.to_thread(fetch)
        except MiraError as wrong:
            told = problem(str(wrong))
        except Exception as wrong:
            logger.exception("a page could not be shown")
            told = problem(f"this could not be shown: {wrong}", traceback.format_exc())
        else:
            in_turn(functools.partial(show, got))
            return
        in_turn(lambda: setattr(below, "objects", [told]))

    pn.state.onload(go)  # at once if the page is there; what changes while it is being sent can be lost


def card(*objects: Any, heading: str = "", **params: Any) -> pn.viewable.Viewable:
    """Return a framed group."""
    head = [pmui.Typography(heading, variant="subtitle1", margin=(6, 10, 0, 10))] if heading else []
    return pmui.Paper(*head, *objects, sizing_mode="stretch_width", variant="outlined", elevation=0, margin=8, **params)


def _text(value: Any) -> str:
    return (
        f"{value:,}"
        if isinstance(value, numbers.Integral)
        else f"{value:.3g}"
        if isinstance(value, float)
        else str(value)
    )


def _aligned(value: Any) -> str:
    number = isinstance(value, numbers.Number) or str(value).endswith("%")
    return ' class="number"' if number else ""
