"""Train: watch a run, beside others; stop it, go on with it, try it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui

from mira_core import jobs
from mira_core.errors import MiraError

from ..hub import Hub
from ..series import Series
from ..session import Session
from ..widgets.arrived import Arrived
from ..widgets.training import IN_WORDS, RunView
from ..workspace import Workspace
from . import parts

OF_THE_DATA = ("DataError",)  # failures that no other option mends
UPDATES = 4  # between two questions whether the browser has kept up


class TrainPage:
    """One run at a time, live.

    Attributes
    ----------
    run
        Its curves, progress and numbers.
    """

    def __init__(self, workspace: Workspace, session: Session, hub: Hub, arrived: Arrived) -> None:
        self.workspace, self.session, self.hub, self.arrived = workspace, session, hub, arrived
        self.pace = Arrived()
        self._document = pn.state.curdoc
        self.run = RunView()
        self.curves = self.run.curves
        self._leave: Callable[[], None] | None = None
        self._beside: dict[str, Callable[[], None]] = {}
        self._series: dict[str, Series] = {}
        self._told_of = ""
        self.choice = pmui.Select(label="Run", options={}, sizing_mode="stretch_width", searchable=True)
        self.compare = pmui.MultiChoice(
            label="Compare with", options={}, sizing_mode="stretch_width", visual_size="small", max_items=8
        )
        self.stop = pmui.Button(label="Stop", icon="stop", color="error", variant="outlined", visible=False)
        self.resume = pmui.Button(label="Go on", icon="play_arrow", variant="outlined", visible=False)
        self.again = pmui.Button(label="Run again", icon="replay", variant="outlined", visible=False)
        self.explore = pmui.Button(label="See the topics", end_icon="arrow_forward", visible=False)
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        self.differences = pn.Column(sizing_mode="stretch_width", margin=0)
        self.below = pn.Column(
            self.run.bar, self.run.line, self.run.numbers, self.message, self.run.views, self.curves.root,
            self.run.pins, self.differences, sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.nothing = pn.Column(sizing_mode="stretch_width", margin=0)
        self.view = pn.Column(
            parts.title("Train", "A run goes on if you close this page or the server restarts."),
            pn.FlexBox(
                pn.Column(self.choice, sizing_mode="stretch_width", max_width=520, min_width=260, margin=0),
                pn.Column(self.compare, sizing_mode="stretch_width", max_width=420, min_width=240, margin=0),
                self.stop, self.resume, self.again, self.explore,
                sizing_mode="stretch_width", align_items="center",
            ),
            self.nothing,
            self.below,
            self.pace,
            sizing_mode="stretch_width",
        )  # fmt: skip
        parts.on_click(self.stop, lambda: self._ask(self.stop, self.workspace.stop, self._asked))
        parts.on_click(self.resume, lambda: self._ask(self.resume, self.workspace.resume, self._asked))
        parts.on_click(self.again, self._again)
        parts.on_click(self.explore, lambda: setattr(session, "page", "explore"))
        self.choice.param.watch(self._chosen, "value")
        self.compare.param.watch(lambda e: parts.in_turn(lambda: self._compare(e.new)), "value")
        session.param.watch(lambda e: self._follow(e.new), "job")
        session.param.watch(self._shown, "page")
        self._arrived = False
        self._updates, self._behind = 0, False
        self._latest: tuple[Series, jobs.Status] | None = None  # not shown yet
        self._folder: Path | None = None  # of the run
        self._shown()
        pn.state.onload(self._arrive)

    def close(self) -> None:
        """Follow nothing any more."""
        for leave in (self._leave, *self._beside.values()):
            if leave is not None:
                leave()
        self._leave = None
        self._folder = None  # nor begin to, should a page that has gone be answered yet
        self._latest, self._behind = None, False
        self._beside.clear()

    # --- which run ------------------------------------------------------------------------------

    def _shown(self, *_: Any) -> None:
        if self.session.page != "train":
            return
        self._list()
        newest = next((key for key in self.choice.options.values() if key), "")
        if not self.session.job and newest:
            self.session.job = newest
        elif self._leave is None:
            self._follow(self.session.job)
        elif not self._behind:
            self._kept_up()

    def _list(self) -> None:
        options = self.workspace.labels()
        value = self.session.job
        if value not in options.values():
            options, value = {"Choose …": "", **options}, ""  # else the first would be chosen by itself
        self.choice.param.update(options=options, value=value)
        others = {label: key for label, key in options.items() if key not in ("", self.session.job)}
        kept = [key for key in self.session.beside.split(",") if key in others.values()]
        self.compare.param.update(options=others, value=kept, disabled=not others)

    def _chosen(self, event: Any) -> None:
        if event.new and event.new != self.session.job:
            self.session.job = event.new

    def _follow(self, key: str) -> None:
        self.close()
        self.run.clear()
        self.run.name = key
        self._series.clear()
        self.message.objects = self.differences.objects = []
        self._told_of = ""
        self.nothing.visible, self.below.visible = not key, bool(key)
        self.stop.visible = self.explore.visible = self.resume.visible = self.again.visible = False
        if not key:
            go = pmui.Button(label="Set up a model", end_icon="arrow_forward", margin=10)
            parts.on_click(go, lambda: setattr(self.session, "page", "model"))
            self.nothing.objects = [parts.empty("No run yet", "Set up a model and press Train; it appears here."), go]
            return
        self._list()
        try:
            folder = self.workspace.folder_of(key)
        except MiraError as problem:
            self.nothing.visible, self.below.visible = True, False
            self.nothing.objects = [parts.empty(str(problem), "Choose another run above.")]
            return
        if self.choice.value != key:
            self.choice.value = key

        self._folder = folder
        if not self._arrived and (known := self.hub.known(folder)) is not None:
            self._told(*known)  # sent with the page
        elif not self._arrived:
            self.hub.read_ahead(folder)  # while the page is on its way
        self._begin_soon()

    def _arrive(self) -> None:
        """Go on once the browser has the page; what changes while it is being sent can be lost."""
        self._arrived = True
        self._begin_soon()

    def _begin_soon(self) -> None:
        """Follow the run once its figures have arrived, as points must not overtake them."""
        folder = self._folder

        def begin() -> None:
            if self._folder is folder and self._leave is None:
                self.curves.complete()
                self._leave = self.hub.follow(folder, pn.state.curdoc, self._told)
                self._compare(self.compare.value)

        if self._arrived and folder is not None:
            self.arrived.when(self.curves.source, begin)

    def _compare(self, keys: list[str]) -> None:
        """Follow the runs that are drawn beside, as they may be running too."""
        self.session.beside = ",".join(keys)
        for key in [k for k in self._beside if k not in keys]:
            self._beside.pop(key)()
            self._series.pop(key, None)
        for key in keys:
            if key not in self._beside:
                try:
                    folder = self.workspace.folder_of(key)
                except MiraError:
                    continue

                def told(series: Series, _: jobs.Status, key: str = key) -> None:
                    if key in self._beside:
                        self._tell_beside(key, series)

                self._beside[key] = self.hub.follow(folder, pn.state.curdoc, told)
        self._draw_beside()

    def _tell_beside(self, key: str, series: Series) -> None:
        """Take what the hub has read of a run beside; its line alone is drawn anew once it is there."""
        if self._series.get(key) is not series:
            self._series[key] = series
            self._draw_beside()
        elif not self._behind and self.session.page == "train":
            self.curves.update_beside([key])
            self._keep_pace()

    def _draw_beside(self) -> None:
        labels = {key: label for label, key in self.compare.options.items()}
        self.curves.compare({k: (labels.get(k, k), s) for k, s in self._series.items()})
        self.differences.objects = []
        if self._series:
            frame = self.workspace.differences([self.session.job, *self._series])
            heading = "What differs" if len(frame) else "The same data and options; what differs is chance"
            self.differences.objects = [parts.table(heading, frame)] if len(frame) else [parts.note(heading)]

    # --- what it does ---------------------------------------------------------------------------

    def _told(self, series: Series, status: jobs.Status) -> None:
        """Take what the hub has read; runs in this session's turn."""
        if self._behind or self.session.page != "train":
            self._latest = series, status
            return
        self._show(series, status)
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Now and then ask the browser whether it has kept up, and send it nothing until it answers.

        One that draws more slowly than points come would have no time left for clicks.
        """
        self._updates += 1
        if self._leave is not None and self._updates % UPDATES == 0:
            self._behind = True
            self.pace.when(self.curves.source, lambda: parts.in_turn(self._kept_up, self._document))

    def _kept_up(self) -> None:
        """Show what came meanwhile."""
        latest, self._latest, self._behind = self._latest, None, False
        self.curves.update_beside(self._series)
        if latest is not None:
            self._told(*latest)

    def _show(self, series: Series, status: jobs.Status) -> None:
        status = self.run.update(series, status, self._asked_to_stop())
        running = status.state in ("running", "waiting")
        mine = self.workspace.may_change(self.session.job)
        self.stop.visible = mine and running and not self._asked_to_stop()
        self.resume.visible = (
            mine and not running and not jobs.why_not_resume(self.workspace.folder_of(self.session.job))
        )
        ended = status.state in ("finished", "stopped", "failed", "died")
        self.again.visible = ended and self.workspace.person.may("user") and status.error.get("type") not in OF_THE_DATA
        self.explore.visible = status.state in ("finished", "stopped")
        self._explain(status)

    def _explain(self, status: jobs.Status) -> None:
        """Say what went wrong, and how trying again would differ; once for each state."""
        if status.state == self._told_of:
            return
        self._told_of = status.state
        self.again.label = "Try again" if status.state in ("failed", "died") else "Run again"
        if status.state == "failed":
            told = [parts.problem(status.error.get("message", ""), status.error.get("traceback", ""))]
            if status.error.get("type") in OF_THE_DATA:
                self.again.visible = False
                told.append(parts.note("Mend the data on the Data page, then train again."))
                self.message.objects = told
                return
            try:
                told.append(parts.note(f"Try again uses {self.workspace.retry(self.session.job).why}."))
            except MiraError as problem:  # the data have gone
                self.again.visible = False
                told.append(parts.note(parts.escape(f"It cannot be tried again: {problem}")))
            self.message.objects = told
        elif status.state in ("died", "silent"):
            self.message.objects = [parts.problem(IN_WORDS[status.state] + ".", self.workspace.log(self.session.job))]
        else:
            self.message.objects = []

    def _again(self) -> None:
        self._ask(self.again, self.workspace.rerun, lambda key: setattr(self.session, "job", key))

    def _asked(self, _: None) -> None:
        self.stop.visible = self.resume.visible = False
        self.run.tell(self._asked_to_stop())

    def _ask(self, button: Any, action: Callable[[str], Any], done: Callable[[Any], None]) -> None:
        """Do something to the run, in a thread; what came of it is shown if the run still is."""
        key = self.session.job

        def failed(text: str) -> None:
            self.message.objects = [parts.problem(text)]

        parts.in_thread(
            lambda: action(key), lambda told: done(told) if self.session.job == key else None, failed, button
        )

    def _asked_to_stop(self) -> bool:
        return (self.workspace.jobs_folder / self.session.job / "stop").exists()
