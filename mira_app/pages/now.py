"""A line on top of every page: which data are chosen, what runs, and who has logged in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from ..datasets import label_of
from ..hub import Hub, Running
from ..session import Session
from ..workspace import Workspace
from . import parts

MOST = 3  # runs that are named


class Now:
    """Chosen data and running jobs, each a button that leads there; and whose page it is."""

    def __init__(self, workspace: Workspace, session: Session, hub: Hub) -> None:
        self.workspace, self.session, self.hub = workspace, session, hub
        self._running: list[Running] = []
        self._leave: Callable[[], None] | None = None
        self.data = _button("dataset")
        self.jobs = [_button("show_chart") for _ in range(MOST)]
        self.more = parts.markup("note", sizing_mode=None, margin=(7, 8), visible=False)
        name = workspace.person.name or pn.state.user
        self.who = parts.markup("note", sizing_mode=None, margin=(7, 12), visible=bool(name))
        role = f" · {workspace.person.role}" if workspace.person.role != "user" else ""
        self.who.object = f'{parts.escape(name or "")}{role} · <a href="./logout">log out</a>'
        self.view = pn.FlexBox(
            self.data,
            *self.jobs,
            self.more,
            self.who,
            sizing_mode="stretch_width",
            align_items="center",
            margin=(2, 0, 0, 0),
        )
        parts.on_click(self.data, lambda: setattr(session, "page", "data"))
        for i, button in enumerate(self.jobs):
            parts.on_click(button, functools.partial(self._show, i))
        session.param.watch(lambda *_: self._name(), ["data", "recipe"])
        self._name()
        pn.state.onload(self._begin)

    def close(self) -> None:
        """Follow nothing any more."""
        if self._leave is not None:
            self._leave()
            self._leave = None

    def _begin(self) -> None:
        self._leave = self.hub.follow_all(self.workspace.jobs_folder, pn.state.curdoc, self._told)

    def _name(self) -> None:
        key = self.session.data
        self.data.visible = bool(key)
        self.data.label = label_of(key) + (" · recipe" if self.session.recipe else "") if key else "no data"

    def _told(self, running: list[Running]) -> None:
        running = [job for job in running if self.workspace.sees(job.key, job.owner)]
        self._running = running
        for i, button in enumerate(self.jobs):
            button.visible = i < len(running)
            if button.visible:
                button.label = _line(running[i])
        more = len(running) - MOST
        self.more.visible = more > 0
        self.more.object = f"and {more} more" if more > 0 else ""

    def _show(self, i: int) -> None:
        if i >= len(self._running):
            return
        job = self._running[i]
        self.session.show_job(job.key, job.kind, job.name)


def _button(icon: str) -> Any:
    return pmui.Button(
        label="", icon=icon, variant="text", size="small", color="default", visible=False, margin=(0, 2, 0, 6),
        sx={"textTransform": "none", "fontWeight": 400, "minWidth": 0},
    )  # fmt: skip


def _line(job: Running) -> str:
    told = [job.name]
    told.append("starting" if job.percent is None else f"{job.percent} %")
    if job.seconds_left is not None and job.percent != 100:
        s = job.seconds_left
        told.append(
            f"{s:.0f} s left" if s < 120 else f"{s / 60:.0f} min left" if s < 7200 else f"{s / 3600:.1f} h left"
        )
    if job.device:
        told.append("GPU" if job.device.startswith("cuda") else job.device.upper())
    return " · ".join(told)
