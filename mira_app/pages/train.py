"""Train: watch a run, beside others; stop it, go on with it, try it again."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core import jobs
from mira_core.errors import MiraError

from ..figures.curves import DRAWN, TrainingCurves, at_step
from ..hub import Hub
from ..series import Series
from ..session import Session
from ..widgets.arrived import Arrived
from ..workspace import Workspace
from . import parts

IN_WORDS = {
    "waiting": "Starting",
    "running": "Running",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
    "died": "Died: its process has ended without a word",
    "silent": "Silent: it runs on another machine and has not been heard of for a minute",
}
STAGES = {
    "reading": "reading the data",
    "training": "training",
    "predicting": "inferring topics",
    "embedding": "computing the embedding",
}
OF_THE_DATA = ("DataError",)  # failures that no other option mends
SMOOTH = {"none": 0.0, "a little": 0.8, "more": 0.95, "much": 0.99}


class TrainPage:
    """One run at a time, live.

    Attributes
    ----------
    curves
        The figure.
    status
        What is known of the run shown.
    """

    def __init__(self, workspace: Workspace, session: Session, hub: Hub, arrived: Arrived) -> None:
        self.workspace, self.session, self.hub, self.arrived = workspace, session, hub, arrived
        self.status = jobs.Status()
        self.curves = TrainingCurves()
        self.curves.pinned = self._show_pins
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
        self.bar = pmui.LinearProgress(value=0, sizing_mode="stretch_width", margin=(4, 10))
        self.line = parts.markup("status", margin=(2, 12))
        self.numbers = parts.markup("numbers", margin=(2, 12))
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        self.smooth = pmui.Select(label="Smoothing", options=SMOOTH, value=0.0, width=130, size="small")
        self.axis = pmui.Select(label="Axis", options=["steps", "epochs"], value="steps", width=110, size="small")
        self.log = pmui.Switch(label="Losses on log axes", value=False)
        self.unpin = pmui.Button(label="Remove pins", icon="push_pin", variant="text", size="small", visible=False)
        self.csv = pmui.FileDownload(
            callback=self._csv, filename="training.csv", label="CSV", icon="download", variant="text", size="small",
        )  # fmt: skip
        self.views = pn.FlexBox(
            self.smooth, self.axis, self.log, self.csv, self.unpin, sizing_mode="stretch_width", align_items="center",
            visible=False,
        )  # fmt: skip
        self.pins = pn.Column(sizing_mode="stretch_width", margin=0)
        self.differences = pn.Column(sizing_mode="stretch_width", margin=0)
        self.below = pn.Column(
            self.bar, self.line, self.numbers, self.message, self.views, self.curves.root, self.pins,
            self.differences, sizing_mode="stretch_width", margin=0,
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
            sizing_mode="stretch_width",
        )  # fmt: skip
        parts.on_click(self.stop, lambda: self._try(self.workspace.stop))
        parts.on_click(self.resume, lambda: self._try(self.workspace.resume))
        parts.on_click(self.again, self._again)
        parts.on_click(self.explore, lambda: setattr(session, "page", "explore"))
        parts.on_click(self.unpin, self.curves.unpin)
        self.choice.param.watch(self._chosen, "value")
        self.compare.param.watch(lambda e: parts.in_turn(lambda: self._compare(e.new)), "value")
        pn.bind(self._set_view, self.smooth, self.log, self.axis, watch=True)
        session.param.watch(lambda e: self._follow(e.new), "job")
        session.param.watch(self._shown, "page")
        self._arrived = False
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
        self._folder = None
        self.curves.clear()
        self._series.clear()
        for box in (self.message, self.pins, self.differences):
            box.objects = []
        self.numbers.object = ""
        self.status, self._told_of = jobs.Status(), ""
        self.nothing.visible, self.below.visible = not key, bool(key)
        self.stop.visible = self.explore.visible = self.resume.visible = self.again.visible = False
        self.views.visible = False
        self.line.object = "<b>Reading the run …</b>"
        self.bar.variant = "indeterminate"
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
                        self._series[key] = series
                        self._draw_beside()

                self._beside[key] = self.hub.follow(folder, pn.state.curdoc, told)
        self._draw_beside()

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
        if len(series.steps):  # they are written more often than the status
            reached = (int(series.steps["step"][-1]), int(series.steps["epoch"][-1]))
            step, epoch = max(reached, (status.step, status.epoch))
            status = dataclasses.replace(status, step=step, epoch=epoch)
        self.status = status
        self.curves.expect(status.num_steps, status.num_epochs)
        self.curves.update(series)
        self.views.visible = len(series.steps) > 0
        running = status.state in ("running", "waiting")
        self.stop.visible = running and not self._asked_to_stop()
        self.resume.visible = not running and not jobs.why_not_resume(self.workspace.folder_of(self.session.job))
        ended = status.state in ("finished", "stopped", "failed", "died")
        self.again.visible = ended and status.error.get("type") not in OF_THE_DATA
        self.explore.visible = status.state in ("finished", "stopped")
        self._progress(status)
        if len(series.epochs):
            self._numbers(status, series)
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
        try:
            key = self.workspace.rerun(self.session.job)
        except (MiraError, OSError) as problem:
            self.message.objects = [parts.problem(str(problem))]
            return
        self.session.job = key

    def _try(self, action: Callable[[str], None]) -> None:
        try:
            action(self.session.job)
        except (MiraError, OSError) as problem:
            self.message.objects = [parts.problem(str(problem))]
            return
        self.stop.visible = self.resume.visible = False
        self._progress(self.status)

    def _asked_to_stop(self) -> bool:
        return (self.workspace.jobs_folder / self.session.job / "stop").exists()

    def _progress(self, s: jobs.Status) -> None:
        share = 100 * s.step / s.num_steps if s.num_steps else 0
        busy = s.state == "waiting" or (s.state == "running" and s.stage != "training")
        self.bar.param.update(variant="indeterminate" if busy else "determinate", value=round(share))
        words = IN_WORDS[s.state]
        if s.state == "running":
            words += f", {STAGES.get(s.stage, s.stage)}"
            if self._asked_to_stop():
                words = "Stopping"
        parts_of_line = [f"<b>{words}</b>"]
        if s.num_epochs:
            parts_of_line.append(f"epoch {s.epoch} of {s.num_epochs}, step {s.step:,} of {s.num_steps:,}")
        if (left := s.seconds_left()) is not None:
            parts_of_line.append(f"{_duration(left)} left")
        if s.ended and s.started:
            parts_of_line.append(f"took {_duration(s.ended - s.started)}")
        if s.device:
            parts_of_line.append(f"on {s.device.upper() if s.device == 'cpu' else s.device}")
        self.line.object = " · ".join(parts_of_line)

    def _numbers(self, s: jobs.Status, series: Series) -> None:
        last = {c: float(series.epochs[c][-1]) for c in series.epochs.names}
        shown = [
            ("loss, nats per cell", _fixed(last["loss"])),
            *([("held-out loss", _fixed(last["held_out_loss"]))] if np.isfinite(last["held_out_loss"]) else []),
            ("distortion", _fixed(last["distortion"])),
            ("rate", _fixed(last["rate"], 2)),
            *([("dependence", _fixed(last["dependence"], 2))] if last["dependence"] else []),
            ("cells per second", f"{last['cells_per_second']:,.0f}"),
            ("seconds per epoch", f"{last['seconds']:.3g}"),
            ("waiting for data", f"{last['waiting']:.0%}"),
            *([(f"{_kind(s.device)} in use", f"{use:.0%}")] if np.isfinite(use := last["device_use"]) else []),
            *([("memory", _bytes(s.memory))] if s.memory else []),
            *([("GPU memory", _bytes(s.device_memory))] if s.device_memory else []),
        ]
        self.numbers.object = parts.figures_of(shown)

    # --- how it is looked at --------------------------------------------------------------------

    def _set_view(self, smoothing: float, log: bool, axis: str) -> None:
        def change() -> None:
            self.curves.set_view(smoothing, log, axis == "epochs")
            self.curves.expect(self.status.num_steps, self.status.num_epochs)

        parts.in_turn(change)

    def _show_pins(self) -> None:
        pins = sorted(set(self.curves.pins))
        self.unpin.visible = bool(pins)
        rows = [at_step(self.curves.series, step) for step in pins]
        frame = pd.DataFrame([[int(r["step"]), int(r["epoch"]), *(r[c] for c in DRAWN)] for r in rows],
                             columns=["step", "epoch", *(c.replace("_", " ") for c in DRAWN)])  # fmt: skip
        self.pins.objects = [parts.table("Pinned steps", frame)] if pins else []

    def _csv(self) -> io.StringIO:
        """Return every step of the run, not only those drawn."""
        steps = self.curves.series.steps
        frame = pd.DataFrame({c: steps[c] for c in steps.names}).astype({"step": int, "epoch": int})
        self.csv.filename = f"{self.session.job}.csv"
        return io.StringIO(frame.to_csv(index=False))


def _kind(device: str | None) -> str:
    return "GPU" if device and device.startswith("cuda") else "CPU"


def _bytes(n: int) -> str:
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:,.0f} MB"


def _fixed(value: float, digits: int = 1) -> str:
    return f"{value:,.{digits}f}" if np.isfinite(value) else "not finite"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return time.strftime("%H:%M:%S", time.gmtime(seconds)).removeprefix("00:")
