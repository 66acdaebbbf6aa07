"""A training to look at: curves, progress and numbers, live; on the Train page, in a notebook, in any page of Panel."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core import jobs

from ..figures.curves import DRAWN, TrainingCurves, at_step
from ..pages import parts
from ..runs import run_of
from ..series import Series
from .notebook import Alone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mira_core.records import Record
    from mira_core.training.writers import Writer

IN_WORDS = {
    "waiting": "Starting",
    "running": "Running",
    "finished": "Finished",
    "recorded": "Recorded",
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
SMOOTH = {"none": 0.0, "a little": 0.8, "more": 0.95, "much": 0.99}
LIVE = ("waiting", "running", "silent")


class RunView:
    """Curves of a run, its progress in a line, and its numbers.

    Attributes
    ----------
    curves
        The figure.
    status
        What is known of the run.
    name
        Of the file with all steps, without suffix.
    bar, line, numbers, views, curves.root, pins
        What to lay out, in this order.
    """

    def __init__(self, name: str = "training") -> None:
        self.name = name
        self.status = jobs.Status()
        self.curves = TrainingCurves()
        self.curves.pinned = self._show_pins
        self.bar = pmui.LinearProgress(value=0, sizing_mode="stretch_width", margin=(4, 10))
        self.line = parts.markup("status", margin=(2, 12))
        self.numbers = parts.markup("numbers", margin=(2, 12))
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
        parts.on_click(self.unpin, self.curves.unpin)
        pn.bind(self._set_view, self.smooth, self.log, self.axis, watch=True)

    def clear(self) -> None:
        """Forget a run, and wait for another one."""
        self.curves.clear()
        self.pins.objects = []
        self.numbers.object = ""
        self.status = jobs.Status()
        self.views.visible = False
        self.line.object = "<b>Reading the run …</b>"
        self.bar.variant = "indeterminate"

    def update(self, series: Series, status: jobs.Status, stopping: bool = False) -> jobs.Status:
        """Show what is new; return the status, with the step that was reached by the points."""
        if len(series.steps):  # they are written more often than the status
            reached = (int(series.steps["step"][-1]), int(series.steps["epoch"][-1]))
            step, epoch = max(reached, (status.step, status.epoch))
            status = dataclasses.replace(status, step=step, epoch=epoch)
        self.status = status
        self._expect()
        self.curves.update(series)
        self.views.visible = len(series.steps) > 0
        self.tell(stopping)
        if len(series.epochs):
            self._tell_numbers(series)
        return status

    def tell(self, stopping: bool = False) -> None:
        """Say how far it is."""
        s = self.status
        share = 100 * s.step / s.num_steps if s.num_steps else 0
        busy = s.state == "waiting" or (s.state == "running" and (s.stage != "training" or not s.num_steps))
        self.bar.param.update(variant="indeterminate" if busy else "determinate", value=round(share))
        words = IN_WORDS[s.state]
        if s.state == "waiting" and s.stage:
            words = f"Waiting: {s.stage}"
        elif s.state == "running":
            words = "Stopping" if stopping else f"{words}, {STAGES.get(s.stage, s.stage)}"
        said = [f"<b>{words}</b>"]
        if s.num_epochs:
            said.append(f"epoch {s.epoch} of {s.num_epochs}, step {s.step:,} of {s.num_steps:,}")
        elif s.step:
            said.append(f"epoch {s.epoch}, step {s.step:,}")
        if (left := s.seconds_left()) is not None and s.num_steps:
            said.append(f"{_duration(left)} left")
        if s.ended and s.started:
            said.append(f"took {_duration(s.ended - s.started)}")
        if s.device:
            said.append(f"on {s.device.upper() if s.device == 'cpu' else s.device}")
        self.line.object = " · ".join(said)

    def _tell_numbers(self, series: Series) -> None:
        s = self.status
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

    def _set_view(self, smoothing: float, log: bool, axis: str) -> None:
        def change() -> None:
            self.curves.set_view(smoothing, log, axis == "epochs")
            self._expect()

        parts.in_turn(change)

    def _expect(self) -> None:
        """Let the axis span all of the training; where nobody knows how long it is, twice as much again and again."""
        s = self.status
        whole = (s.num_steps, s.num_epochs) if s.num_steps else (_above(s.step), _above(s.epoch))
        self.curves.expect(*whole)

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
        self.csv.filename = f"{self.name}.csv"
        return io.StringIO(frame.to_csv(index=False))


class TrainingMonitor(Alone):
    """Curves of a training, live.

    Parameters
    ----------
    run
        What is looked at:

        - records that come, such as ``model.fit_records(adata)``: they are consumed in a thread, so that the notebook
          stays free, and *Stop* ends the training at its next step and leaves a usable model;
        - the folder of a run of ``mira fit`` or of the dashboard, while it runs or after;
        - a `mira.topics.Writer`, or a list of records, such as ``model.history``.
    num_epochs
        Of the training, where records come and nobody else tells, such as ``model.num_epochs``; the axis then spans
        all of it, and the time left is told.
    every
        Seconds after which what is new is drawn; None: when `refresh` is called.

    Attributes
    ----------
    state
        ``waiting``, ``running``, ``finished``, ``stopped``, ``failed`` or ``died``; ``recorded``, of records that are
        there already.

    Raises
    ------
    JobError
        If the folder is no run.
    OptionError
        If it is none of these.

    Examples
    --------
    >>> monitor = TrainingMonitor(model.fit_records(adata), num_epochs=model.num_epochs)
    >>> monitor  # in a cell of a notebook
    >>> monitor.wait()  # in a script, or where the next cell needs the model
    """

    def __init__(
        self,
        run: str | Path | Iterator[Record] | Writer | Sequence[Record | Mapping[str, Any]],
        num_epochs: int | None = None,
        every: float | None = 0.5,
        **params: Any,
    ) -> None:
        super().__init__(**params)
        self._every = every or 0.5
        self._run = run_of(run, num_epochs)
        self.run = RunView(Path(run).name if isinstance(run, str | Path) else "training")
        self._message = pn.Column(sizing_mode="stretch_width", margin=0)
        self._stop = pmui.Button(label="Stop", icon="stop", color="error", variant="outlined", size="small")
        parts.on_click(self._stop, self.stop)
        self._told = ""
        self._timer: Any = None
        head = pn.Row(self.run.line, self._stop, sizing_mode="stretch_width", align="center", margin=0)
        self._view = pn.Column(
            self.run.bar, head, self.run.numbers, self._message, self.run.views, self.run.curves.root, self.run.pins,
            sizing_mode="stretch_width",
        )  # fmt: skip
        self.run.clear()
        self.refresh()
        if every and (self.live or self._run.growing):
            self._timer = pn.state.add_periodic_callback(self.refresh, round(1000 * every))

    def __panel__(self) -> pn.viewable.Viewable:
        """Return what is shown."""
        return self._view

    @property
    def state(self) -> str:
        """How the run stands."""
        return self._run.status.state if self._run.status is not None else "waiting"

    @property
    def live(self) -> bool:
        """Whether anything may still come."""
        return self.state in LIVE

    def refresh(self) -> None:
        """Draw what is new; zoom and pins stay."""
        if not self._run.read():
            return
        with self.changing():
            status = self.run.update(self._run.series, self._run.status, self._run.stopping)
            if len(self._run.series.steps):
                self.run.curves.complete()
            self._stop.visible = (
                status.state in ("waiting", "running") and self._run.can_stop and not self._run.stopping
            )
            if status.state != self._told:
                self._explain(status)
        if not (self.live or self._run.growing) and self._timer is not None:
            self._timer.stop()

    def _explain(self, status: jobs.Status) -> None:
        self._told = status.state
        error = status.error or ({"message": IN_WORDS["died"] + "."} if status.state == "died" else {})
        told = [parts.problem(error.get("message", ""), error.get("traceback", ""))] if error else []
        self._message.objects = told

    def stop(self) -> None:
        """End the training at its next step; what it has learned is kept."""
        self._run.stop()
        with self.changing():
            self._stop.visible = False
            self.run.tell(True)

    def wait(self, timeout: float | None = None) -> TrainingMonitor:
        """Wait until the run has ended, and show meanwhile what comes.

        Parameters
        ----------
        timeout
            Seconds; None: as long as it takes.

        Raises
        ------
        TimeoutError
            If it has not ended by then; it goes on.
        """
        until = None if timeout is None else time.monotonic() + timeout
        self.refresh()
        while self.live:
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"the run has not ended after {timeout:g} s; it goes on")
            self._run.wait(self._every)
            self.refresh()
        return self

    def pictures(self) -> list[Figure]:
        """Return the losses, drawn with matplotlib."""
        from mira_core.plots.training import plot_training

        series = self._run.series
        if not len(series.steps) and not len(series.epochs):
            return []
        tables = ({c: t[c] for c in t.names} for t in (series.steps, series.epochs))
        return [plot_training(*tables)]

    def words(self) -> str:
        """Say how far it is, and what came of it."""
        return f"<p>{self.run.line.object}</p>{self.run.numbers.object}"


def _above(n: int) -> int:
    return 1 << n.bit_length() if n else 0


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
