"""The trials of a study: figures, a table and an inspector, which show the same selection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import panel as pn
import panel_material_ui as pmui

from mira_core.tuning import control
from mira_core.tuning.reading import Reading

from ...styles import WIDE_AND_NARROW
from ...widgets.trials import TrialsView
from .. import parts
from .inspector import Inspector

if TYPE_CHECKING:
    from .page import TunePage


class Trials:
    """Everything that one can see of the trials."""

    def __init__(self, page: TunePage) -> None:
        self.page, self.session = page, page.session
        self.reading: Reading | None = None
        self._quiet = False
        self._awaited: set[int] = set()  # trials in the URL that have not been read yet
        self.hide = pmui.Button(label="Hide the selected", icon="visibility_off", variant="text", size="small",
                                disabled=True)  # fmt: skip
        self.show = pmui.Button(label="Show hidden", icon="visibility", variant="text", size="small", visible=False)
        parts.on_click(self.hide, self._hide)
        parts.on_click(self.show, self._unhide)
        self.trials = TrialsView(self._chosen, page.studies.importance, self.hide, self.show)
        self.drawn = self.trials.figures.source  # which the browser must have before it changes
        self.inspector = Inspector(page)
        self.nothing = parts.empty("No trial has begun", "They appear here as they run.")
        self.nothing.visible = False  # until it is known
        self.plots = pn.Column(
            pn.Column(self.trials.upper, self.inspector.view, stylesheets=[WIDE_AND_NARROW],
                      sizing_mode="stretch_width", margin=0),
            self.trials.lower, sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.view = pn.Column(self.nothing, self.plots, sizing_mode="stretch_width", margin=0)
        self._watchers = [self.session.param.watch(lambda *_: self._selected_in_url(), ["trials", "pin"])]

    def close(self) -> None:
        """Follow nothing any more."""
        for watcher in self._watchers:
            self.session.param.unwatch(watcher)

    def complete(self) -> None:
        """Add what is not needed to begin to look."""
        self.trials.complete()

    def update(self, reading: Reading) -> None:
        """Draw what is new; zoom and selection stay."""
        if reading is self.reading:
            return
        first, self.reading = self.reading is None, reading
        self.trials.update(reading)
        self.nothing.visible, self.plots.visible = not self.trials.shown, bool(self.trials.shown)
        self.show.visible = bool(reading.hidden)
        self.show.label = f"Show hidden ({len(reading.hidden)})"
        if first or any(t["number"] in self._awaited for t in self.trials.shown):
            self._selected_in_url()
        else:
            self.inspector.update(reading)

    def _chosen(self, numbers: list[int]) -> None:
        """Tell of a selection to all but the figures and the table."""
        self._quiet, self._awaited = True, set()
        self.session.trials = ",".join(map(str, numbers[:50]))
        self._quiet = False
        self._tell(numbers)

    def _tell(self, numbers: list[int]) -> None:
        self.hide.disabled = not numbers
        self.inspector.show(numbers, self.reading)

    def _select(self, numbers: list[int]) -> None:
        self.trials.select(numbers)
        self._chosen(numbers)

    def _selected_in_url(self) -> None:
        if self._quiet or self.reading is None:
            return
        wanted, pinned = self.session.selected, self.session.pinned
        known = {t["number"] for t in self.trials.shown}
        self._awaited = {*wanted, *([] if pinned is None else [pinned])} - known
        numbers = [n for n in wanted if n in known]
        self.trials.figures.pin(pinned)
        self.trials.select(numbers)
        self._tell(numbers)

    def _hide(self) -> None:
        if numbers := self.trials.figures.selected:
            self._select([])
            self.page.act(control.hide, numbers)

    def _unhide(self) -> None:
        if self.reading is not None:
            self.page.act(control.hide, sorted(self.reading.hidden), False)
