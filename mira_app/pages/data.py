"""Data: choose cells, and see what they hold."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core.data.demo import DEMO
from mira_core.data.describe import Column, Description
from mira_core.data.look import Look

from ..datasets import Listing, Source, label_of
from ..session import Session
from ..styles import HALVES, LOW, NARROW_AND_WIDE
from ..widgets.upload import Upload
from ..workspace import Workspace
from . import parts
from .clinic import Clinic


class DataPage:
    """Lists data sets and shows the chosen one.

    Parameters
    ----------
    workspace, session
        What there is, and what is looked at.
    """

    def __init__(self, workspace: Workspace, session: Session) -> None:
        self.workspace, self.session = workspace, session
        self.browser = Browser(workspace, session)
        self.clinic = Clinic(workspace, session, self._looked)
        self.numbers = parts.markup("numbers", margin=(4, 10))
        self.verdict = pn.Column(sizing_mode="stretch_width", margin=0)
        self.tables = pn.Column(stylesheets=[HALVES], sizing_mode="stretch_width")
        self.go = pmui.Button(label="Set up a model", end_icon="arrow_forward", margin=(10, 10))
        parts.on_click(self.go, lambda: setattr(self.session, "page", "model"))
        self.below = pn.Column(sizing_mode="stretch_width", margin=0)
        self.view = pn.Column(
            parts.title("Data", "Choose cells with raw counts. Files are read, never changed."),
            pn.Column(
                self.browser.view, self.below, stylesheets=[NARROW_AND_WIDE], sizing_mode="stretch_width", margin=0
            ),
            sizing_mode="stretch_width",
        )
        session.param.watch(lambda e: self._load(e.new), "data")
        self._load(session.data)

    def close(self) -> None:
        """Forget what has not come whole."""
        self.browser.close()

    def _load(self, key: str) -> None:
        self.clinic.clear()
        if not key:
            self.below.objects = [
                parts.empty("No data set is chosen", "Choose a file or a demo; the demos are real and small.")
            ]
            return
        parts.load(
            self.below,
            lambda: (self.workspace.data.describe(key), self.workspace.data.can_be_prepared(key)),
            lambda got: self._show(key, *got),
        )

    def _show(self, key: str, described: Description, can_be_prepared: bool) -> None:
        if key != self.session.data:
            return
        self._describe(described, (described.n_cells, described.n_features))
        self.below.objects = [
            parts.markup("note", f"<b>{parts.escape(label_of(key))}</b>", margin=(0, 12)),
            self.numbers,
            *([parts.note(parts.escape(described.source))] if described.source else []),
            self.verdict, self.go, self.clinic.view, self.tables,
        ]  # fmt: skip
        if can_be_prepared:
            self.clinic.load(key)

    def _looked(self, seen: Look) -> None:
        self._describe(seen.description, seen.opened)
        # What was found says more than the counts alone, and what to do.
        errors = [f for f in seen.findings if f.severity == "error"]
        if errors and seen.description.counts_layer() is None:
            self.verdict.objects = []
        self.go.variant = "outlined" if errors else "contained"
        self.go.label = "Set up a model anyway" if errors else "Set up a model"

    def _describe(self, d: Description, opened: tuple[int, int]) -> None:
        """Show what there is, of what was opened."""
        cells, features = (
            f"{n:,}" if n == of else f"{n:,} of {of:,}" for n, of in zip((d.n_cells, d.n_features), opened, strict=True)
        )
        self.numbers.object = parts.figures_of(
            [("cells", cells), ("features", features), ("layers", str(len(d.layers))),
             ("columns of cells", str(len(d.obs)))]
        )  # fmt: skip
        counts = d.counts_layer()
        self.verdict.objects = [
            parts.good(f"Raw counts in {_layer_name(counts.name)}.")
            if counts is not None
            else parts.problem(d.layers[0].problem if d.layers else "The data has no counts.")
        ]
        layers = pd.DataFrame(
            [(_layer_name(x.name), "raw counts" if not x.problem else x.problem) for x in d.layers],
            columns=["layer", "holds"],
        )
        self.tables.objects = [
            parts.table("Layers", layers),
            parts.table("Columns of cells (obs)", _columns(d.obs)),
            parts.table("Columns of features (var)", _columns(d.var)),
        ]


class Browser:
    """Folders of the server, one at a time, the demos, and a place to drop a file."""

    def __init__(self, workspace: Workspace, session: Session) -> None:
        self.workspace, self.session = workspace, session
        self.place = ""
        self._entries: dict[str, str] = {}  # label -> key
        self.way = pmui.Breadcrumbs(items=[], margin=(4, 10), sizing_mode="stretch_width")
        self.filter = pmui.TextInput(
            label="Find", placeholder="part of a name", size="small", sizing_mode="stretch_width", margin=(8, 10, 0, 10)
        )
        self.list = pmui.MenuList(items=[], dense=True, sizing_mode="stretch_width", margin=0)
        self.box = pn.Column(sizing_mode="stretch_width", margin=0, max_height=420, scroll=True, stylesheets=[LOW])
        self._listing = Listing([], [])
        self._quiet = False
        limit = workspace.settings.upload_limit
        self.upload = Upload(
            workspace.folder_for_upload, limit, lambda path: parts.in_turn(functools.partial(self._uploaded, path)),
            sizing_mode="stretch_width", margin=(8, 10),
        )  # fmt: skip
        self.upload.visible = limit > 0 and workspace.person.may("user")
        self.view = parts.card(self.way, self.filter, self.box, self.upload)
        self.list.on_click(lambda item: parts.in_turn(lambda: self._chosen(item)))
        self.way.param.watch(lambda e: parts.in_turn(self._went), "active")
        self.filter.param.watch(lambda e: self._draw(), "value_input")
        self.go(session.data.rpartition("/")[0] if "/" in session.data else "")

    def close(self) -> None:
        """Forget an upload that has not come whole."""
        self.upload.close()

    def go(self, place: str) -> None:
        """Show a folder."""
        self.place = place
        parts.load(self.box, lambda: self.workspace.data.browse(place), lambda listing: self._show(place, listing))

    def _show(self, place: str, listing: Listing) -> None:
        if place != self.place:
            return
        self._listing = listing
        roots = {s.key: s.label for s in self.workspace.data.browse("").folders}
        steps = [""]
        if place:
            number, _, below = place.partition("/")
            steps.append(number)
            for name in below.split("/") if below else []:
                steps.append(f"{steps[-1]}/{name}")
        self._steps = steps
        names = ["Data"] + [Path(roots.get(s, s)).name if "/" not in s else s.rsplit("/", 1)[-1] for s in steps[1:]]
        self._quiet = True
        self.way.active = 0  # which must be one of the items at any time
        self.way.items = [{"label": n} for n in names]
        self.way.active = len(names) - 1
        self._quiet = False
        self._draw()

    def _draw(self) -> None:
        words = (self.filter.value_input or "").lower().split()
        items = []
        for source in self._listing.folders:
            items.append((source, {"label": source.label, "icon": "folder"}))
        for source in self._listing.sources:
            items.append((source, {"label": source.label, "secondary": _about(source), "icon": _icon(source)}))
        shown = [(s, item) for s, item in items if all(w in s.label.lower() for w in words)]
        self._entries = {item["label"]: s.key for s, item in shown}
        self.list.param.update(items=[item for _, item in shown], active=None)
        others = self._listing.n_others
        files = f"{others} other file{'s' if others > 1 else ''} here {'are' if others > 1 else 'is'} of no such format"
        formats = "Files of these formats are shown: .h5ad, .h5mu, 10x, .zarr, .loom."
        nothing = parts.empty("Nothing to open here", f"{formats} {files}." if others else formats)
        self.box.objects = [self.list if shown else nothing]
        if shown and others:
            self.box.append(parts.note(f"{files}."))
        if not self.place and not self._listing.folders:
            self.box.append(
                parts.note("No data folder is open: start with <code>mira serve --data FOLDER</code>, or drop a file.")
            )

    def _chosen(self, item: dict[str, Any]) -> None:
        key = self._entries.get(item.get("label", ""))
        if key is None:
            return
        if item.get("icon") == "folder":
            self.filter.param.update(value="", value_input="")
            self.go(key)
        else:
            self.session.param.update(data=key, recipe="")

    def _went(self) -> None:
        at = self.way.active
        at = at[0] if isinstance(at, tuple | list) else at
        if not self._quiet and at is not None and self._steps[at] != self.place:
            self.go(self._steps[at])

    def _uploaded(self, path: Path) -> None:
        key = self.workspace.data.key_of(path) or ""
        place = key.rpartition("/")[0]
        self.go(place)
        found = [s.key for s in self.workspace.data.browse(place).sources if s.key.partition("#")[0] == key]
        if found:
            self.session.param.update(data=found[0], recipe="")


def _icon(source: Source) -> str:
    return "science" if source.key.startswith(DEMO) else "grid_on"


def _about(source: Source) -> str:
    return f"{_size(source.bytes)}" if source.bytes is not None else ""


def _size(n: int) -> str:
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:,.1f} MB" if n >= 1e5 else f"{n / 1e3:,.1f} kB"


def _layer_name(name: str | None) -> str:
    return "X" if name is None else name


def _columns(columns: tuple[Column, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        [(c.name, c.kind, c.n_unique, c.example) for c in columns], columns=["name", "kind", "distinct", "for example"]
    )
