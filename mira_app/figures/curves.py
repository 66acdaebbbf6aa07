"""Curves of a training: loss by step and epoch, its parts, and what the schedules did."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import panel as pn
from bokeh.models import (
    ColumnDataSource,
    CrosshairTool,
    DataRange1d,
    HoverTool,
    NumeralTickFormatter,
    Range1d,
    Span,
)
from bokeh.plotting import figure

from ..styles import QUARTERS
from .colours import LINE, SECOND

MAX_POINTS = 4000  # steps kept in the browser; beyond, every second one is dropped
STEP = ("step", "loss", "distortion", "rate", "kl_weight", "learning_rate")
EPOCH = ("step", "loss", "distortion", "rate")


class TrainingCurves:
    """Live curves of one training, on one axis of steps.

    Attributes
    ----------
    root
        To show; hidden until there is a point.
    source, epochs
        Points by step and by epoch.
    """

    def __init__(self) -> None:
        self.source = ColumnDataSource({c: [] for c in STEP})
        self.epochs = ColumnDataSource({c: [] for c in EPOCH})
        self._stride = 1
        self._steps = Range1d(0, 1, bounds=(0, None))
        self._crosshair = Span(dimension="height", line_dash="dotted", line_width=1, line_color="gray")
        loss = self._panel("Loss", "loss", "nats per cell", height=320)
        others = [
            self._panel("Distortion", "distortion", "nats per cell"),
            self._panel("Rate (KL of the topics)", "rate", "nats per cell"),
            self._panel("Weight of the KL terms", "kl_weight", "", epochs=False),
            self._panel("Learning rate", "learning_rate", "", epochs=False, log=True),
        ]
        panes = [pn.pane.Bokeh(p, sizing_mode="stretch_width", margin=(0, 6)) for p in (loss, *others)]
        below = pn.Column(*panes[1:], stylesheets=[QUARTERS], sizing_mode="stretch_width", margin=0)
        self.root = pn.Column(panes[0], below, sizing_mode="stretch_width", margin=0, visible=False)

    def _panel(
        self, title: str, column: str, unit: str, *, height: int = 190, epochs: bool = True, log: bool = False
    ) -> figure:
        main = column == "loss"
        p = figure(
            title=title, height=height, sizing_mode="stretch_width", min_width=240, output_backend="canvas",
            tools="xpan,xbox_zoom,xwheel_zoom,reset,save", toolbar_location="right" if main else None,
            x_range=self._steps, y_axis_label=unit or None, y_axis_type="log" if log else "linear",
            x_axis_label="step" if main else None,
        )  # fmt: skip
        p.toolbar.logo = None
        p.outline_line_color = None
        p.y_range = DataRange1d(only_visible=True)
        width = 1 if epochs else 1.5
        steps = p.line(
            "step", column, source=self.source, color=LINE, alpha=0.55 if epochs else 1, width=width,
            **({"legend_label": "each step"} if main else {}),
        )  # fmt: skip
        if epochs:
            label = {"legend_label": "mean of each epoch"} if main else {}
            p.line("step", column, source=self.epochs, color=SECOND, width=2, **label)
            p.scatter("step", column, source=self.epochs, color=SECOND, size=3)
        if main:
            p.legend.update(background_fill_alpha=0.6, border_line_alpha=0, label_text_font_size="12px", padding=4)
        p.add_tools(
            HoverTool(renderers=[steps], tooltips=[("step", "@step"), (title, f"@{column}{{0.0000}}")], mode="vline"),
            CrosshairTool(overlay=self._crosshair),
        )
        p.xaxis.formatter = NumeralTickFormatter(format="0,0")
        return p

    def update(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records of training, as dictionaries; what is zoomed or selected stays."""
        steps: dict[str, list[Any]] = {c: [] for c in STEP}
        epochs: dict[str, list[Any]] = {c: [] for c in EPOCH}
        for r in records:
            if r.get("kind") == "epoch":
                for c in EPOCH:
                    epochs[c].append(r[c])
            elif r.get("kind") == "step" and r["step"] % self._stride == 0:
                for c in STEP:
                    steps[c].append(r[c])
        if len(self.source.data["step"]) + len(steps["step"]) > MAX_POINTS:
            self.source.data = self._thinned({c: [*self.source.data[c], *steps[c]] for c in STEP})
        elif steps["step"]:
            self.source.stream(steps)
        if epochs["step"]:
            self.epochs.stream(epochs)
        self.root.visible = bool(self.source.data["step"])

    def _thinned(self, points: dict[str, list[Any]]) -> dict[str, list[Any]]:
        while len(points["step"]) > MAX_POINTS:
            self._stride *= 2
            kept = [i for i, s in enumerate(points["step"]) if s % self._stride == 0]
            points = {c: [v[i] for i in kept] for c, v in points.items()}
        return points

    def expect(self, num_steps: int) -> None:
        """Let the axis span the whole training from the start, so that it does not creep."""
        if num_steps and self._steps.reset_end != num_steps:
            self._steps.bounds = (0, num_steps)  # first: the browser keeps the ends within them
            self._steps.update(start=0, end=num_steps, reset_start=0, reset_end=num_steps)

    def clear(self) -> None:
        """Forget all points."""
        self._stride = 1
        self.source.data = {c: [] for c in STEP}
        self.epochs.data = {c: [] for c in EPOCH}
        self.root.visible = False
