"""What one takes away from a run: a card of downloads."""

from __future__ import annotations

import functools
import html
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui

from mira_core.errors import JobError

from .. import downloads
from ..downloads import DOWNLOADS, Download
from ..scripted import script
from ..styles import GRID
from ..workspace import Workspace
from . import parts

SAVE = """
const href = cb_obj.value.split(' ')[0]
if (href) {
  const link = document.createElement('a')
  link.href = href
  link.download = ''
  document.body.appendChild(link)
  link.click()
  link.remove()
}
"""
# Browsers give pages that came without encryption no clipboard.
COPY = """
const text = source.value
if (navigator.clipboard) navigator.clipboard.writeText(text)
else {
  const area = document.createElement('textarea')
  area.value = text
  document.body.appendChild(area)
  area.select()
  document.execCommand('copy')
  area.remove()
}
"""
ICONS = {"data": "dataset", "report": "article", "tables": "table_chart", "methods": "notes", "script": "terminal"}


class ExportsCard:
    """Downloads of one run; each is made when it is first asked for, in a process of its own.

    Parameters
    ----------
    workspace
        Where the run is.
    key
        Of the run; empty: none yet.

    Attributes
    ----------
    view
        To show.
    """

    def __init__(self, workspace: Workspace, key: str = "") -> None:
        self.workspace, self.key = workspace, ""
        self.exports = downloads.exports_of(workspace.jobs_folder)
        self._asked = 0
        self._busy: set[tuple[str, str]] = set()
        self._save = pn.widgets.TextInput(visible=False)
        script(self._save, {"value": SAVE})
        self._items = {what: _Item(what, asked) for what, asked in DOWNLOADS.items()}
        for what, item in self._items.items():
            parts.on_click(item.button, functools.partial(self._get, what))
        self.text = parts.markup("code", margin=(0, 10), visible=False)
        self._source = pn.widgets.TextInput(visible=False)  # the text as the button copies it
        self.copy = pmui.Button(label="Copy the methods text", icon="content_copy", variant="text", visible=False,
                                margin=(0, 10))  # fmt: skip
        script(self.copy, {"dom_event": COPY}, source=self._source)
        self.below = pn.Column(sizing_mode="stretch_width", margin=0)
        grid = pn.Column(*(item.view for item in self._items.values()), stylesheets=[GRID],
                         sizing_mode="stretch_width", margin=0)  # fmt: skip
        self.view = parts.card(grid, self.below, self.text, self._source, self.copy, self._save, heading="Take away")
        if not downloads.MOUNTED.is_set():
            self.below.objects = [parts.problem(
                "Exports cannot be downloaded from this server. Start it with mira serve, or with panel serve "
                "mira_app --plugins mira_app.optuna_board mira_app.downloads; or use mira export."
            )]  # fmt: skip
            for item in self._items.values():
                item.button.disabled = True
        self.show(key)

    def show(self, key: str) -> None:
        """Offer the exports of another run."""
        if key == self.key:
            return
        self.key = key
        self.text.visible = self.copy.visible = False
        if downloads.MOUNTED.is_set():
            self.below.objects = []
        for what, item in self._items.items():
            if (key, what) in self._busy:
                item.busy()
                continue
            try:
                path = self.exports.path(key, what) if key else None
            except JobError:
                path = None
            item.rest(key, path)

    def _get(self, what: str) -> None:
        key, item = self.key, self._items[what]
        if not key or (key, what) in self._busy:
            return
        self._busy.add((key, what))
        item.busy()
        self.below.objects = []

        def done(path: Path) -> None:
            self._busy.discard((key, what))
            if key != self.key:
                return
            item.rest(key, path)
            if what == "methods":
                self._tell(path)
                return
            self._asked += 1
            self._save.value = f"{downloads.link(key, what)} {self._asked}"

        def failed(told: str) -> None:
            self._busy.discard((key, what))
            if key == self.key:
                item.rest(key, None)
                self.below.objects = [parts.problem(f"{DOWNLOADS[what].label}: {told}")]

        def make() -> Path:
            self.workspace.folder_of(key)  # which it may be no more
            return self.exports.make(key, what)

        parts.in_thread(make, done, failed)

    def _tell(self, path: Path) -> None:
        """Show the methods text, to be read and copied."""
        text = path.read_text(encoding="utf-8").strip()
        self._source.value = text
        self.text.param.update(object=f"<pre>{html.escape(text)}</pre>", visible=True)
        self.copy.visible = True


class _Item:
    """A button, and under it what it is, how it goes, and where it is."""

    def __init__(self, what: str, asked: Download) -> None:
        self.what, self.asked = what, asked
        self.button = pmui.Button(label=asked.label, icon=ICONS[what], variant="outlined", sizing_mode="stretch_width",
                                  margin=(4, 10, 0, 10))  # fmt: skip
        self.bar = pmui.LinearProgress(variant="indeterminate", sizing_mode="stretch_width", visible=False,
                                       margin=(4, 10))  # fmt: skip
        self.told = parts.note(html.escape(asked.hint))
        self.view = pn.Column(self.button, self.bar, self.told, sizing_mode="stretch_width", margin=0)

    def busy(self) -> None:
        """Show that it is being made."""
        self.button.disabled = self.bar.visible = True
        self._tell("is being made …")

    def rest(self, key: str, path: Path | None) -> None:
        """Show what it is, and where, if it is made."""
        self.button.disabled = not key or not downloads.MOUNTED.is_set()
        self.bar.visible = False
        if path is None:
            self._tell(html.escape(self.asked.hint))
            return
        link = downloads.link(key, self.what)
        told = f'<a href="{link}" download>Download</a> ({_size(path)})'
        if self.asked.suffix == ".html":
            told += f' · <a href="{link}?view=1" target="_blank" rel="noopener">Open</a>'
        self._tell(told)

    def _tell(self, text: str) -> None:
        view: Any = self.told
        view.object = text


def _size(path: Path) -> str:
    n = path.stat().st_size
    return f"{n / 1e6:,.1f} MB" if n >= 1e5 else f"{n / 1e3:,.1f} kB"
