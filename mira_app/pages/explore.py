"""Explore: topics on the cells of a run, and what each topic is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui

from mira_core import jobs
from mira_core.errors import MiraError

from ..exploring import runs
from ..exploring.cells import Cells
from ..exploring.values import Values
from ..figures.embedding import Embedding
from ..hub import Hub
from ..session import Session
from ..widgets.explorer import TopicExplorer
from ..workspace import WITH_TOPICS, Workspace
from . import parts
from .exports import ExportsCard

COMING = ("waiting", "running")  # states of a job that has yet to end
# What of the widget is in the URL, and how it is called there.
IN_URL = {"colour": "colour", "feature": "feature", "column": "column", "part": "tab", "beside": "against"}


class ExplorePage:
    """The cells of one finished run.

    Attributes
    ----------
    explorer
        The widget, once a run with topics is chosen.
    """

    def __init__(self, workspace: Workspace, session: Session, hub: Hub) -> None:
        self.workspace, self.session, self.hub = workspace, session, hub
        self._waits_for = ""
        self._leave: Callable[[], None] | None = None
        self.explorer: TopicExplorer | None = None
        self._shown = ("", False)  # which run, and whether in place of the one asked for
        self._instead = self._quiet = False
        self.choice = pmui.Select(
            label="Run", options={}, sizing_mode="stretch_width", max_width=420, searchable=True, size="small",
            margin=(10, 10, 0, 10),
        )  # fmt: skip
        self.below = pn.Column(sizing_mode="stretch_width", margin=0)
        self.view = pn.Column(
            parts.title("Explore", "Each dot is a cell; cells with like topics lie together."),
            self.choice,
            self.below,
            sizing_mode="stretch_width",
        )
        self.choice.param.watch(self._chosen, "value")
        session.param.watch(self._changed, ["job", "page"])
        session.param.watch(self._asked, list(IN_URL.values()))
        if session.page == "explore":
            self._changed()

    @property
    def embedding(self) -> Embedding | None:
        """The figure of the cells, once there is one."""
        return self.explorer.embedding if self.explorer is not None else None

    def close(self) -> None:
        """Follow nothing any more."""
        if self._leave is not None:
            self._leave()
        self._leave, self._waits_for = None, ""
        if self.explorer is not None:
            self.explorer.close()

    def _wait(self) -> bool:
        """Wait for topics that are being inferred; return whether it has to be waited."""
        key = self.session.job
        try:
            folder = self.workspace.folder_of(key) if key else None
            waits = folder is not None and jobs.read_spec(folder)["kind"] == "predict" and _state(folder) in COMING
        except MiraError:
            waits = False
        if not waits:
            if self._leave is not None:
                self._leave()
            self._leave, self._waits_for = None, ""
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
        self.choice.visible = bool(options)
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
            if self.explorer is not None:
                self.explorer.close()
                self.explorer = None
            folder = self.workspace.folder_of(key)
            parts.load(self.below, lambda: runs.ready(folder), lambda values: self._show(key, values))

    def _chosen(self, event: Any) -> None:
        if event.new and event.new != self.session.job and not self._quiet:
            self.session.job = event.new

    def _show(self, key: str, values: Values) -> None:
        if key != self._shown[0]:
            return
        asked = {mine: getattr(self.session, theirs) for mine, theirs in IN_URL.items()}
        asked["colour"] = asked["colour"] or "main topic"
        self.explorer = explorer = TopicExplorer(
            values=values,
            others=(lambda: self._others(key), self._cells_of),
            files=self.workspace.data.feature_sets,
            more={"exports": ("Exports", lambda _: ExportsCard(self.workspace, key))},
            **{name: str(value) for name, value in asked.items()},
        )
        explorer.param.watch(self._told, list(IN_URL))
        notes = []
        if self._instead:
            notes.append("The run that you watch has no topics yet; this is the newest that has.")
        if not values.cells.embedded:
            notes.append("This run was stopped before its embedding.")
        self.below.objects = [*map(parts.note, notes), explorer]

    def _told(self, *events: Any) -> None:
        # In a turn of its own, or the URL waits for the next thing that happens.
        told = {IN_URL[e.name]: e.new for e in events}
        parts.in_turn(lambda: self.session.param.update(**told))

    def _asked(self, *events: Any) -> None:
        """Follow the URL, or whoever changed the session."""
        if self.explorer is None or self.session.page != "explore":
            return
        mine = {theirs: name for name, theirs in IN_URL.items()}
        asked = {mine[e.name]: str(e.new) for e in events if getattr(self.explorer, mine[e.name]) != str(e.new)}
        if not asked.get("colour", "some"):
            asked["colour"] = "main topic"
        self.explorer.param.update(**asked)

    def _others(self, key: str) -> dict[str, str]:
        """Return the other runs with topics."""
        found = self.workspace.labels(("finished", "stopped"), WITH_TOPICS)
        return {label: other for label, other in found.items() if other != key}

    def _cells_of(self, key: str) -> Cells:
        return runs.values_of(self.workspace.folder_of(key)).cells


def _state(folder: Path) -> str:
    return jobs.read_status(folder).state
