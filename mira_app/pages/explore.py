"""Explore: topics on the cells, and what each topic is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core import jobs
from mira_core.analysis import describe_topics
from mira_core.errors import MiraError

from ..figures.embedding import Embedding
from ..hub import Hub
from ..session import Session
from ..styles import GRID, WIDE_AND_NARROW
from ..workspace import WITH_TOPICS, Workspace
from . import parts

COMING = ("waiting", "running")  # states of a job that has yet to end
TOP = 10  # genes shown for each topic


class ExplorePage:
    """The cells of one finished run.

    Attributes
    ----------
    embedding
        The figure, once a run with topics is chosen.
    """

    def __init__(self, workspace: Workspace, session: Session, hub: Hub) -> None:
        self.workspace, self.session, self.hub = workspace, session, hub
        self._waits_for = ""
        self._leave: Callable[[], None] | None = None
        self.embedding: Embedding | None = None
        self.cells: ad.AnnData | None = None
        self._shown = ("", False)  # which run, and whether in place of the one asked for
        self._instead = self._quiet = False
        self.choice = pmui.Select(label="Run", options={}, sizing_mode="stretch_width", searchable=True)
        self.colour = pmui.Select(label="Colour by", options=[], sizing_mode="stretch_width", searchable=True)
        self.below = pn.Column(sizing_mode="stretch_width", margin=0)
        self.legend = parts.markup("legend", margin=(0, 12))
        self.view = pn.Column(
            parts.title("Explore", "Each dot is a cell; cells with like topics lie together."),
            pn.Column(
                self.choice,
                self.colour,
                stylesheets=[GRID],
                sizing_mode="stretch_width",
                max_width=1100,
            ),
            self.below,
            sizing_mode="stretch_width",
        )
        self.choice.param.watch(self._chosen, "value")
        self.colour.param.watch(self._coloured, "value")
        session.param.watch(self._changed, ["job", "page", "colour"])
        if session.page == "explore":
            self._changed()

    def close(self) -> None:
        """Follow nothing any more."""
        if self._leave is not None:
            self._leave()
        self._leave, self._waits_for = None, ""

    def _wait(self) -> bool:
        """Wait for topics that are being inferred; return whether it has to be waited."""
        key = self.session.job
        try:
            folder = self.workspace.folder_of(key) if key else None
            waits = folder is not None and jobs.read_spec(folder)["kind"] == "predict" and _state(folder) in COMING
        except MiraError:
            waits = False
        if not waits:
            self.close()
            return False
        if self._waits_for != key:
            self.close()
            self._waits_for = key
            self._shown = ("", False)
            bar = pmui.LinearProgress(variant="indeterminate", sizing_mode="stretch_width")
            self.below.objects = [bar, parts.note("The topics of the cells are being inferred …")]

            def told(_: Any, status: jobs.Status) -> None:
                if status.state in COMING or self._waits_for != key:
                    return
                self.close()
                if status.state == "finished":
                    self._changed()
                else:
                    self.below.objects = [parts.problem(status.error.get("message", f"It was {status.state}."))]

            self._leave = self.hub.follow(folder, pn.state.curdoc, told)
        return True

    def _changed(self, *_: Any) -> None:
        if self.session.page != "explore":
            return
        options = self.workspace.labels(("finished", "stopped"), WITH_TOPICS)
        if self._wait():
            return
        if not options:
            go = pmui.Button(label="Set up a model", end_icon="arrow_forward", margin=10)
            parts.on_click(go, lambda: setattr(self.session, "page", "model"))
            self.below.objects = [parts.empty("No run has topics yet", "Train a model; its topics appear here."), go]
            return
        # A run that still trains has nothing to show; then the newest that has, and the session keeps its run.
        key = self.session.job if self.session.job in options.values() else next(iter(options.values()))
        if not self.session.job:
            self.session.job = key
            return
        self._instead = key != self.session.job
        self._quiet = True
        self.choice.param.update(options=options, value=key)
        self._quiet = False
        if (key, self._instead) != self._shown:
            self._shown = (key, self._instead)
            parts.load(self.below, lambda: self.workspace.cells(key), lambda cells: self._show(key, cells))
        elif self.session.colour and self.session.colour in self.colour.options:
            self.colour.value = self.session.colour

    def _chosen(self, event: Any) -> None:
        if event.new and event.new != self.session.job and not self._quiet:
            self.session.job = event.new

    def _show(self, key: str, cells: ad.AnnData) -> None:
        if key != self._shown[0]:
            return
        self.cells = cells
        xy = np.asarray(cells.obsm["X_umap"] if "X_umap" in cells.obsm else _two_axes(cells), float)
        self.embedding = Embedding(xy, cells.obs_names)
        topics = [f"topic_{k}" for k in range(cells.obsm["X_topic_compositions"].shape[1])]
        columns = ["main topic", *topics, *(c for c in cells.obs.columns if c not in topics)]
        wanted = self.session.colour if self.session.colour in columns else "main topic"
        self.colour.param.update(options=columns, value=wanted)
        self._paint(wanted)
        notes = []
        if self._instead:
            notes.append("The run that you watch has no topics yet; this is the newest that has.")
        if "X_umap" not in cells.obsm:
            notes.append("This run was stopped before its embedding; the axes are the topics' principal ones.")
        self.below.objects = [
            pn.Column(
                pn.Column(*map(parts.note, notes), pn.pane.Bokeh(self.embedding.root, sizing_mode="stretch_width"),
                          self.legend, sizing_mode="stretch_width", margin=0),
                pn.Column(parts.table("Topics", top_features(cells)), sizing_mode="stretch_width", margin=0),
                stylesheets=[WIDE_AND_NARROW], sizing_mode="stretch_width",
            )
        ]  # fmt: skip

    def _coloured(self, event: Any) -> None:
        if event.new:
            self._paint(event.new)
            self.session.colour = event.new

    def _paint(self, name: str) -> None:
        if self.embedding is None or self.cells is None:
            return
        if name == "main topic":
            theta = np.asarray(self.cells.obsm["X_topic_compositions"])
            levels = [f"topic {k}" for k in range(theta.shape[1])]
            main = pd.Categorical.from_codes(theta.argmax(1), levels)
            self.embedding.update("Topic with the largest share", pd.Series(main))
        elif name in self.cells.obs:
            share = ", share of the cell" if name.startswith("topic_") else ""
            self.embedding.update(name.replace("topic_", "Topic ") + share, self.cells.obs[name])
        self.legend.object = parts.legend(self.embedding.legend)


def top_features(cells: ad.AnnData, n: int = TOP) -> pd.DataFrame:
    """Table of topics: mean share over the cells, and the features that say most about the topic."""
    told = describe_topics(cells, n)
    share = told["mean_share"].map("{:.1%}".format)
    return pd.DataFrame({"topic": told.index, "mean share": share, "top features": told["top_features"]})


def _state(folder: Path) -> str:
    return jobs.read_status(folder).state


def _two_axes(cells: ad.AnnData) -> np.ndarray:
    z = np.asarray(cells.obsm["X_umap_features"], float)
    z = np.column_stack([z - z.mean(0), np.zeros(len(z))])
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    return (u * s)[:, :2]
