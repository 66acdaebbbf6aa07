"""Train: watch a run, stop it, find it again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from mira_core import jobs
from mira_core.errors import MiraError

from ..figures.curves import TrainingCurves
from ..hub import Hub, Records
from ..session import Session
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


class TrainPage:
    """One run at a time, live.

    Attributes
    ----------
    curves
        The figure.
    status
        What is known of the run shown.
    """

    def __init__(self, workspace: Workspace, session: Session, hub: Hub) -> None:
        self.workspace, self.session, self.hub = workspace, session, hub
        self.status, self._reached = jobs.Status(), (0, 0)
        self.curves = TrainingCurves()
        self._leave: Callable[[], None] | None = None
        self.choice = pmui.Select(label="Run", options={}, sizing_mode="stretch_width", searchable=True)
        self.stop = pmui.Button(label="Stop", icon="stop", color="error", variant="outlined", visible=False)
        self.explore = pmui.Button(label="See the topics", end_icon="arrow_forward", visible=False)
        self.bar = pmui.LinearProgress(value=0, sizing_mode="stretch_width", margin=(4, 10))
        self.line = parts.markup("status", margin=(2, 12))
        self.numbers = pn.FlexBox(sizing_mode="stretch_width")
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        self.below = pn.Column(
            self.bar,
            self.line,
            self.numbers,
            self.message,
            self.curves.root,
            sizing_mode="stretch_width",
            margin=0,
        )
        self.nothing = pn.Column(sizing_mode="stretch_width", margin=0)
        self.view = pn.Column(
            parts.title("Train", "A run goes on if you close this page or the server restarts."),
            pn.FlexBox(
                pn.Column(self.choice, sizing_mode="stretch_width", max_width=620, margin=0),
                self.stop,
                self.explore,
                sizing_mode="stretch_width",
                align_items="center",
            ),
            self.nothing,
            self.below,
            sizing_mode="stretch_width",
        )
        parts.on_click(self.stop, self._stop)
        parts.on_click(self.explore, lambda: setattr(session, "page", "explore"))
        self.choice.param.watch(self._chosen, "value")
        session.param.watch(lambda e: self._follow(e.new), "job")
        session.param.watch(self._shown, "page")
        # Followed once the browser has the page; what changes while it is being sent can be lost.
        pn.state.onload(self._shown if session.page == "train" else lambda: self._follow(session.job))

    def close(self) -> None:
        """Follow nothing any more."""
        if self._leave is not None:
            self._leave()
            self._leave = None

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

    def _chosen(self, event: Any) -> None:
        if event.new and event.new != self.session.job:
            self.session.job = event.new

    def _follow(self, key: str) -> None:
        self.close()
        self.curves.clear()
        self.message.objects = []
        self.numbers.objects = []
        self.status, self._reached = jobs.Status(), (0, 0)
        self.nothing.visible, self.below.visible = not key, bool(key)
        self.stop.visible = self.explore.visible = False
        if not key:
            go = pmui.Button(label="Set up a model", end_icon="arrow_forward", margin=10)
            parts.on_click(go, lambda: setattr(self.session, "page", "model"))
            self.nothing.objects = [parts.empty("No run yet", "Set up a model and press Train; it appears here."), go]
            return
        if key not in self.choice.options.values():
            self._list()
        try:
            folder = self.workspace.folder_of(key)
        except MiraError as problem:
            self.nothing.visible, self.below.visible = True, False
            self.nothing.objects = [parts.empty(str(problem), "Choose another run above.")]
            return
        if self.choice.value != key:
            self.choice.value = key
        self._leave = self.hub.follow(folder, pn.state.curdoc, self._told)

    def _told(self, records: Records, status: jobs.Status) -> None:
        """Take what the hub has read; runs in this session's turn."""
        if records:  # they are written more often than the status
            last = records[-1]
            self._reached = max(self._reached, (last["step"], last["epoch"]))
        step, epoch = max(self._reached, (status.step, status.epoch))
        self.status = status = dataclasses.replace(status, step=step, epoch=epoch)
        self.curves.expect(status.num_steps)
        self.curves.update(records)
        running = status.state in ("running", "waiting")
        self.stop.visible = running and not self._asked_to_stop()
        self.explore.visible = status.state in ("finished", "stopped")
        self._progress(status)
        last = next((r for r in reversed(records) if r["kind"] == "epoch"), None)
        if last is not None:
            self._numbers(status, last)
        if status.state == "failed":
            self.message.objects = [parts.problem(status.error.get("message", ""), status.error.get("traceback", ""))]
        elif status.state in ("died", "silent"):
            self.message.objects = [parts.problem(IN_WORDS[status.state] + ".", self.workspace.log(self.session.job))]

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

    def _numbers(self, s: jobs.Status, last: dict[str, Any]) -> None:
        self.numbers.objects = [
            parts.figure_of("loss, nats per cell", _fixed(last["loss"])),
            parts.figure_of("distortion", _fixed(last["distortion"])),
            parts.figure_of("rate", _fixed(last["rate"], 2)),
            *([parts.figure_of("dependence", _fixed(last["dependence"], 2))] if last.get("dependence") else []),
            parts.figure_of("cells per second", f"{last['cells_per_second']:,.0f}"),
            parts.figure_of("seconds per epoch", f"{last['seconds']:.3g}"),
            parts.figure_of("waiting for data", f"{last['waiting']:.0%}"),
            *([parts.figure_of(f"{_kind(s.device)} in use", f"{use:.0%}")] if (use := last.get("device_use")) else []),
        ]

    def _stop(self) -> None:
        try:
            self.workspace.stop(self.session.job)
        except (MiraError, OSError) as problem:
            self.message.objects = [parts.problem(str(problem))]
            return
        self.stop.visible = False
        self._progress(self.status)


def _kind(device: str | None) -> str:
    return "GPU" if device and device.startswith("cuda") else "CPU"


def _fixed(value: float | None, digits: int = 1) -> str:
    return "not finite" if value is None else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return time.strftime("%H:%M:%S", time.gmtime(seconds)).removeprefix("00:")
