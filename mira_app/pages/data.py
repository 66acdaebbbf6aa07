"""Data: choose cells, and see what they hold."""

from __future__ import annotations

from typing import Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core.data.describe import Column, Description

from ..session import Session
from ..styles import HALVES
from ..workspace import Workspace
from . import parts


class DataPage:
    """Lists data sets and shows the chosen one.

    Parameters
    ----------
    workspace, session
        What there is, and what is looked at.
    """

    def __init__(self, workspace: Workspace, session: Session) -> None:
        self.workspace, self.session = workspace, session
        self.choice = pmui.Select(label="Data set", options={}, sizing_mode="stretch_width", searchable=True)
        self.refresh = pmui.IconButton(icon="refresh", description="Look for new files")
        self.below = pn.Column(sizing_mode="stretch_width", margin=0)
        self.view = pn.Column(
            parts.title("Data", "Choose cells with raw counts. Files are read, never changed."),
            pn.Row(self.choice, self.refresh, sizing_mode="stretch_width", max_width=760, margin=0),
            self._where(),
            self.below,
            sizing_mode="stretch_width",
        )
        self._list()
        parts.on_click(self.refresh, self._list)
        self.choice.param.watch(self._chosen, "value")
        session.param.watch(self._follow, "data")
        self._load(session.data)

    def _where(self) -> pn.viewable.Viewable:
        folders = self.workspace.settings.data
        text = (
            "Files below " + ", ".join(str(p) for p in folders)
            if folders
            else "No data folder is open: start with <code>mira serve --data FOLDER</code> to see your own .h5ad files."
        )
        return parts.note(text)

    def _list(self) -> None:
        options = {"Choose …": ""}
        for s in self.workspace.sources():
            kind = "Demo: " if s.key.startswith("demo:") else ""
            size = f" · {_size(s.bytes)}" if s.bytes is not None else ""
            options[f"{kind}{s.label}{size}"] = s.key
        if self.session.data not in options.values():
            options[self.session.data] = self.session.data
        self.choice.param.update(options=options, value=self.session.data)

    def _chosen(self, event: Any) -> None:
        if event.new != self.session.data:
            self.session.data = event.new

    def _follow(self, event: Any) -> None:
        if event.new not in self.choice.options.values():
            self._list()
        self.choice.value = event.new
        self._load(event.new)

    def _load(self, key: str) -> None:
        if not key:
            self.below.objects = [
                parts.empty("No data set is chosen", "Choose one above; the demos are real and small.")
            ]
            return
        parts.load(self.below, lambda: self.workspace.describe(key), lambda described: self._show(key, described))

    def _show(self, key: str, described: Description) -> None:
        if key == self.session.data:
            self.below.objects = self._shown(described)

    def _shown(self, d: Description) -> list[Any]:
        go = pmui.Button(label="Set up a model", end_icon="arrow_forward", margin=(10, 10))
        parts.on_click(go, lambda: setattr(self.session, "page", "model"))
        counts = d.counts_layer()
        verdict = (
            parts.good(f"Raw counts in {_layer_name(counts.name)}.")
            if counts is not None
            else parts.problem(d.layers[0].problem if d.layers else "The data has no counts.")
        )
        layers = pd.DataFrame(
            [(_layer_name(x.name), "raw counts" if not x.problem else x.problem) for x in d.layers],
            columns=["layer", "holds"],
        )
        return [
            pn.FlexBox(
                parts.figure_of("cells", f"{d.n_cells:,}"),
                parts.figure_of("features", f"{d.n_features:,}"),
                parts.figure_of("layers", str(len(d.layers))),
                parts.figure_of("columns of cells", str(len(d.obs))),
                sizing_mode="stretch_width",
            ),
            parts.note(d.source) if d.source else None,
            verdict,
            go,
            pn.Column(
                parts.table("Layers", layers),
                parts.table("Columns of cells (obs)", _columns(d.obs)),
                parts.table("Columns of features (var)", _columns(d.var)),
                stylesheets=[HALVES],
                sizing_mode="stretch_width",
            ),
        ]


def _size(n: int) -> str:
    return f"{n / 1e6:,.1f} MB" if n >= 1e5 else f"{n / 1e3:,.1f} kB"


def _layer_name(name: str | None) -> str:
    return "X" if name is None else name


def _columns(columns: tuple[Column, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        [(c.name, c.kind, c.n_unique, c.example) for c in columns],
        columns=["name", "kind", "distinct", "for example"],
    )
