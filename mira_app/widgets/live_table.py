"""A table that changes while somebody looks at it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import panel as pn

from ..ordered import together
from ..pages import parts


class LiveTable:
    """A table that takes newer frames by what has changed in them. The first column names the rows.

    A browser fails at what changes in a table that it is still building, and the server has more to do than to send
    every change at once: so a table takes nothing new before `every` seconds have gone.

    Parameters
    ----------
    every
        Seconds between two changes.
    on_select
        Called with the names of the rows that somebody has selected.
    on_click
        Called with the name of a row that somebody has clicked.
    params
        Of the Tabulator.

    Attributes
    ----------
    view
        What is shown.
    selected
        Names of the selected rows.
    """

    def __init__(
        self,
        every: float = 1.0,
        on_select: Callable[[list[Any]], None] | None = None,
        on_click: Callable[[Any], None] | None = None,
        **params: Any,
    ) -> None:
        self.every, self.on_select, self.on_click, self.params = every, on_select, on_click, params
        self.view = pn.Column(sizing_mode="stretch_width", margin=0)
        self.selected: list[Any] = []
        self.table: Any = None  # made when there is something to show
        self._newest: Callable[[], pd.DataFrame] = pd.DataFrame
        self._due = 0.0
        self._waits = self._quiet = False

    def show(self, frame: Callable[[], pd.DataFrame]) -> None:
        """Show a frame, which is asked for when the table takes it: at once, or with what comes until then."""
        self._newest = frame
        page = pn.state.curdoc
        if self.table is None or page is None or time.monotonic() > self._due:
            self._take()
        elif not self._waits:
            self._waits = True
            page.add_timeout_callback(self._take, int(1000 * self.every))

    def select(self, names: list[Any]) -> None:
        """Select rows; those that come later are selected then."""
        self.selected = list(names)
        if self.table is not None and self.table.selection != (rows := self._rows(self.table.value)):
            with self._quietly():
                self.table.selection = rows

    def _take(self) -> None:
        if self.table is not None and any(key not in pn.state._views for key in self.table._models):
            return  # the page has been left, while this was on its way
        self._waits = False
        self._due = time.monotonic() + self.every
        frame = self._newest()
        if self.table is None or list(self.table.value.columns) != list(frame.columns):
            self._make(frame)
            return
        with self._quietly():
            renew(self.table, frame)
            self.table.selection = self._rows(frame)  # which Panel forgets with the rows

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        self._quiet = True
        try:
            with together(pn.state.curdoc):  # one message: what is selected meanwhile is not drawn
                yield
        finally:
            self._quiet = False

    def _make(self, frame: pd.DataFrame) -> None:
        self.table = parts.sheet(frame, margin=(4, 10), selection=self._rows(frame), **self.params)
        self.table.param.watch(self._chosen, "selection")
        if self.on_click is not None:
            clicked = self.on_click
            self.table.on_click(lambda event: parts.in_turn(lambda: clicked(self.table.value.iloc[event.row, 0])))
        self.view.objects = [self.table]

    def _rows(self, frame: pd.DataFrame) -> list[int]:
        at = {name: i for i, name in enumerate(frame.iloc[:, 0])} if len(frame) else {}
        return [at[name] for name in self.selected if name in at]

    def _chosen(self, event: Any) -> None:
        if self._quiet:
            return
        names = self.table.value.iloc[:, 0].tolist()
        self.selected = [names[i] for i in event.new if i < len(names)]
        if self.on_select is not None:
            told, listener = list(self.selected), self.on_select
            parts.in_turn(lambda: listener(told))


def renew(table: Any, frame: pd.DataFrame) -> None:
    """Show a newer frame of the same columns in a table: only cells that have changed, where the rows are the same."""
    old = table.value
    # of which only a page is sent anyway; Panel patches its first page alone
    if table.pagination == "remote" or not old.iloc[:, :1].equals(frame.iloc[:, :1]):
        if not old.equals(frame):
            table.value = frame
        return
    patches = {}
    for name in frame:
        before, now = old[name].to_numpy(object), frame[name].to_numpy(object)
        at = [i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b and not (a != a and b != b)]
        if at:
            patches[name] = [(i, now[i]) for i in at]
    if patches:
        table.patch(patches, as_index=False)
