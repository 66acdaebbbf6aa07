"""The learning-rate range test: loss against learning rate, and the bounds, which can be dragged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import panel as pn
from bokeh.models import BoxAnnotation, ColumnDataSource, DataRange1d, FixedTicker, PrintfTickFormatter, Range1d
from bokeh.plotting import figure

from ..series import Series
from .colours import LINE, SECOND
from .saving import can_be_saved


class RangeCurve:
    """Loss by learning rate, live, and the bounds.

    Attributes
    ----------
    root
        To show.
    source, spline
        What was measured, and what was fitted to it.
    bounds
        Where the handles are; None while there are none.
    moved
        Called when somebody has dragged them.
    """

    def __init__(self) -> None:
        self.source = ColumnDataSource({"rate": [], "loss": []})
        self.spline = ColumnDataSource({"rate": [], "loss": []})
        self.bounds: tuple[float, float] | None = None
        self.moved: Callable[[], None] = lambda: None
        self._x = Range1d(1e-6, 5)
        self.figure = figure(
            height=260, sizing_mode="stretch_width", min_width=240, x_axis_type="log", x_range=self._x,
            tools="reset", toolbar_location="right", x_axis_label="learning rate",
            y_axis_label="nats per cell and feature",
        )  # fmt: skip
        can_be_saved(self.figure, "learning-rates")
        self.figure.outline_line_color = None
        self.figure.y_range = DataRange1d(syncable=False)
        self.figure.scatter("rate", "loss", source=self.source, size=4, color=LINE, alpha=0.7)
        self.figure.line("rate", "loss", source=self.spline, color=SECOND, width=2)
        self.figure.xaxis.ticker = FixedTicker(ticks=[10.0**k for k in range(-6, 1)])
        self.figure.xaxis.formatter = PrintfTickFormatter(format="%.0e")
        self._box = BoxAnnotation(
            left=1e-3, right=1e-1, visible=False, editable=True, movable="x", resizable="x", use_handles=False,
            fill_color=LINE, fill_alpha=0.12, line_color=LINE, line_width=2,
        )  # fmt: skip
        self.figure.add_layout(self._box)
        for side in ("left", "right"):
            self._box.on_change(side, self._dragged)
        self.root = pn.pane.Bokeh(self.figure, sizing_mode="stretch_width", margin=(4, 6))

    def update(self, series: Series) -> None:
        """Show what has been measured."""
        rates = series.rates
        n = len(self.source.data["rate"])
        new = {"rate": rates["learning_rate"][n:], "loss": rates["loss"][n:]}
        if len(rates) < n:
            self.source.data = {"rate": rates["learning_rate"], "loss": rates["loss"]}
        elif len(new["rate"]):
            self.source.stream(new)

    def show(self, curve: Mapping[str, Any]) -> None:
        """Show what came of it; the handles stand at the bounds."""
        self.source.data = {"rate": np.array(curve["rates"]), "loss": np.array(curve["losses"], dtype=float)}
        spline = curve.get("spline")
        self.spline.data = (
            {"rate": np.array(spline["rates"]), "loss": np.array(spline["losses"], dtype=float)}
            if spline
            else {"rate": [], "loss": []}
        )
        self._x.update(start=min(curve["rates"]) * 0.8, end=max(curve["rates"]) * 1.25)
        if curve.get("bounds"):
            self.place(*curve["bounds"])

    def place(self, low: float, high: float) -> None:
        """Put the handles somewhere, without telling anybody."""
        self.bounds = (low, high)
        self._box.update(left=low, right=high, visible=True)

    def _dragged(self, attribute: str, old: Any, new: Any) -> None:
        left, right = sorted((self._box.left, self._box.right))
        if (left, right) != self.bounds and left > 0:
            self.bounds = (float(left), float(right))
            self.moved()

    def clear(self, lowest: float = 1e-6, highest: float = 5.0) -> None:
        """Forget everything."""
        self.bounds = None
        self._box.visible = False
        self.source.data = {"rate": [], "loss": []}
        self.spline.data = {"rate": [], "loss": []}
        self._x.update(start=lowest, end=highest)


def moved_to(curve: Mapping[str, Any], low: float, high: float) -> dict[str, Any]:
    """Return a curve whose bounds are elsewhere, told as how far they are moved inwards from where the loss falls."""
    start, end = curve["falling"]
    return {**curve, "bounds": [low, high], "trim": [math.log(low / start), math.log(end / high)]}
