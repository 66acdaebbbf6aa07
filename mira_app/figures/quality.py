"""Quality of cells: a histogram of each metric, with limits that can be dragged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import panel as pn
from bokeh.models import BasicTicker, BoxAnnotation, ColumnDataSource, FixedTicker, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

from .colours import LINE
from .saving import can_be_saved

BINS = 60
PAUSE = 80  # ms after a movement until cells are counted again
Limits = tuple[float | None, float | None]


class Metric(NamedTuple):
    """What is measured of a cell, and how its limits are called as options of the step filter_cells."""

    name: str
    title: str
    log: bool
    digits: int
    low: str | None
    high: str


METRICS = (
    Metric("total_counts", "Counts per cell", True, 0, "min_counts", "max_counts"),
    Metric("n_genes_by_counts", "Features seen per cell", True, 0, "min_genes", "max_genes"),
    Metric("pct_counts_mt", "Mitochondrial counts, %", False, 1, None, "max_pct_mt"),
)


class QualityPlots:
    """Histograms of the metrics of cells: all cells, and those within all limits.

    Attributes
    ----------
    panes
        By metric, what to show.
    limits
        By metric, lower and upper limit; None: none.
    kept, of
        How many cells are within all limits, and how many there are.
    moved, counted
        Called when somebody has dragged a limit; when cells were counted anew.
    """

    def __init__(self) -> None:
        self.limits: dict[str, Limits] = {}
        self.kept = self.of = 0
        self.moved: Callable[[], None] = lambda: None
        self.counted: Callable[[], None] = lambda: None
        self._waiting = self._quiet = False
        self._cells: dict[str, np.ndarray] = {}
        self._edges: dict[str, np.ndarray] = {}
        self._bins: dict[str, np.ndarray] = {}
        self._sources: dict[str, ColumnDataSource] = {}
        self._boxes: dict[str, BoxAnnotation] = {}
        self._placed: dict[str, tuple[float, float]] = {}
        self.panes: dict[str, pn.pane.Bokeh] = {}

    def show(self, cells: pd.DataFrame, limits: Mapping[str, Limits]) -> None:
        """Show cells; builds the figures anew."""
        self._cells = {m.name: cells[m.name].to_numpy() for m in METRICS if m.name in cells}
        self.of = len(cells)
        self.limits = {name: limits.get(name, (None, None)) for name in self._cells}
        self.panes = {m.name: self._figure(m) for m in METRICS if m.name in self._cells}
        self._count()

    def place(self, limits: Mapping[str, Limits]) -> None:
        """Put the limits somewhere, without telling anybody but `counted`."""
        for name in self.limits:
            self.limits[name] = limits.get(name, (None, None))
            self._draw(name)
        self._count()

    def options(self) -> dict[str, Any]:
        """Return the limits as options of the step filter_cells."""
        out: dict[str, Any] = {}
        for m in METRICS:
            low, high = self.limits.get(m.name, (None, None))
            if m.low is not None and low is not None:
                out[m.low] = low
            if high is not None:
                out[m.high] = high
        return out

    def of_options(self, options: Mapping[str, Any]) -> dict[str, Limits]:
        """Return limits that options of the step filter_cells say."""
        return {m.name: (options.get(m.low or ""), options.get(m.high)) for m in METRICS}

    def suggested(self, thresholds: pd.DataFrame) -> dict[str, Limits]:
        """Return the limits that `mira_core.data.qc` suggests; those that drop no cell are none.

        Counts are rounded to the last that is kept, as findings round them; shares up.
        """
        out: dict[str, Limits] = {}
        for m in METRICS:
            if m.name in thresholds.index:
                row, unit = thresholds.loc[m.name], 10.0**-m.digits
                low = np.ceil(row["lower"] / unit) * unit if row["n_below"] else None
                inwards = np.floor if m.digits == 0 else np.ceil
                high = inwards(row["upper"] / unit) * unit if row["n_above"] else None
                out[m.name] = (_plain(low, m), _plain(high, m))
        return out

    # --- figures --------------------------------------------------------------------------------

    def _figure(self, m: Metric) -> Any:
        x = self._cells[m.name]
        some = x[np.isfinite(x) & (x > 0)]
        most = float(some.max(initial=1.0))
        if m.log:
            edges = np.geomspace(some.min(initial=most) / 1.05, most * 1.05, BINS + 1)
        else:
            edges = np.linspace(0, most * 1.02, BINS + 1)
        self._edges[m.name] = edges
        # Those below the first edge, which have none, are drawn in the first bin.
        self._bins[m.name] = np.clip(
            np.searchsorted(edges, np.nan_to_num(self._cells[m.name]), "right") - 1, 0, BINS - 1
        )
        every = np.bincount(self._bins[m.name], minlength=BINS)
        source = ColumnDataSource({"left": edges[:-1], "right": edges[1:], "all": every, "kept": every})
        ends = _beyond(edges, 0.03, m.log)
        p = figure(
            title=m.title, height=210, sizing_mode="stretch_width", min_width=220, tools="", toolbar_location=None,
            x_axis_type="log" if m.log else "linear", x_range=Range1d(*ends), output_backend="canvas",
            y_axis_label="cells",
        )  # fmt: skip
        can_be_saved(p, m.name.replace("_", "-"))
        p.outline_line_color = None
        p.xgrid.visible = False
        p.y_range.start = 0
        p.xaxis.formatter = NumeralTickFormatter(format="0[.]0a" if m.log else "0[.]0")
        p.xaxis.ticker = FixedTicker(ticks=_ticks(edges)) if m.log else BasicTicker(desired_num_ticks=4)
        p.yaxis.ticker.desired_num_ticks = 4
        p.quad(left="left", right="right", bottom=0, top="all", source=source, fill_color="gray", fill_alpha=0.35,
               line_color=None)  # fmt: skip
        p.quad(left="left", right="right", bottom=0, top="kept", source=source, fill_color=LINE, line_color=None)
        box = BoxAnnotation(
            editable=True, movable="none", resizable="x" if m.low else "right", use_handles=False, fill_color=LINE,
            fill_alpha=0.08, line_color=LINE, line_width=2,
        )  # fmt: skip
        p.add_layout(box)
        self._sources[m.name], self._boxes[m.name] = source, box
        self._draw(m.name)
        for side in ("left", "right"):
            box.on_change(side, lambda attribute, old, new, m=m: self._dragged(m))
        return pn.pane.Bokeh(p, sizing_mode="stretch_width", margin=(0, 6))

    def _draw(self, name: str) -> None:
        edges, (low, high) = self._edges[name], self.limits[name]
        log = next(m.log for m in METRICS if m.name == name)
        # No limit is drawn a little beyond the cells, where it can be taken hold of.
        start, end = _beyond(edges, 0.012, log)
        left, right = float(max(start, low or start)), float(end if high is None else min(high, end))
        self._placed[name] = (left, right)
        self._quiet = True  # as one end comes before the other
        self._boxes[name].update(left=left, right=right)
        self._quiet = False

    def _dragged(self, m: Metric) -> None:
        edges, box = self._edges[m.name], self._boxes[m.name]
        left, right = sorted((box.left, box.right))
        placed = self._placed[m.name]
        if self._quiet or (left, right) == placed:
            return  # as `_draw` put them
        self._placed[m.name] = (left, right)
        low, high = self.limits[m.name]
        if left != placed[0]:
            low = None if m.low is None or left <= edges[0] else _plain(left, m)
        if right != placed[1]:
            high = None if right >= edges[-1] else _plain(right, m)
        self.limits[m.name] = (low, high)
        self.moved()
        self._count_soon()

    # --- cells ----------------------------------------------------------------------------------

    def _count_soon(self) -> None:
        """Count cells once for all movements of a moment."""
        if self._waiting:
            return

        def count() -> None:
            self._waiting = False
            self._count()

        self._waiting = True
        pn.state.curdoc.add_timeout_callback(count, PAUSE)

    def _count(self) -> None:
        keep = np.ones(self.of, bool)
        for name, (low, high) in self.limits.items():
            x = self._cells[name]
            if low is not None:
                keep &= ~(x < low)  # a cell without counts has no mitochondrial share, and is kept by its limit
            if high is not None:
                keep &= ~(x > high)
        self.kept = int(keep.sum())
        for name, source in self._sources.items():
            if name in self.limits:
                source.data = {**source.data, "kept": np.bincount(self._bins[name][keep], minlength=BINS)}
        self.counted()


def _ticks(edges: np.ndarray) -> list[float]:
    """Return round numbers on a logarithmic axis, so far apart that their labels are."""
    powers = 10.0 ** np.arange(np.floor(np.log10(edges[0])), np.ceil(np.log10(edges[-1])) + 1)
    apart = np.log(edges[-1] / edges[0]) / 6
    ticks: list[float] = []
    for digit in (1, 2, 5, 3, 7, 4, 6, 8, 9):
        for tick in digit * powers:
            if edges[0] <= tick <= edges[-1] and all(abs(np.log(tick / t)) > apart for t in ticks):
                ticks.append(float(tick))
    return sorted(ticks)


def _beyond(edges: np.ndarray, share: float, log: bool) -> tuple[float, float]:
    if log:
        factor = (edges[-1] / edges[0]) ** share
        return float(edges[0] / factor), float(edges[-1] * factor)
    more = share * (edges[-1] - edges[0])
    return float(edges[0] - more), float(edges[-1] + more)


def _plain(value: float | None, m: Metric) -> float | None:
    if value is None:
        return None
    rounded = round(float(value), m.digits)
    return int(rounded) if m.digits == 0 else rounded
