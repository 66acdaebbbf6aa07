"""Curves of a training: loss by step and epoch, its parts, and what the schedules did; other runs beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import panel as pn
from bokeh.events import MouseLeave, MouseMove, RangesUpdate, Tap
from bokeh.models import (
    ColumnDataSource,
    CrosshairTool,
    CustomJS,
    DataRange1d,
    Div,
    GlyphRenderer,
    Legend,
    LegendItem,
    NumeralTickFormatter,
    Range1d,
    Span,
)
from bokeh.plotting import figure

from ..series import Series
from ..styles import THIRDS
from .colours import LINE, SECOND, categories

MAX_POINTS = 3000  # steps of the run that are in the browser, and as many again where it is zoomed in
MAX_BESIDE = 1000  # of each other run
MOST_BESIDE = 8  # other runs


class Panel(NamedTuple):
    """One set of axes: what is drawn by step, and by epoch beside it."""

    title: str
    column: str
    unit: str = "nats per cell"
    epochs: tuple[str, ...] = ()
    log: bool = False


PANELS = (
    Panel("Loss", "loss", epochs=("loss", "held_out_loss")),
    Panel("Distortion", "distortion", epochs=("distortion", "held_out_distortion")),
    Panel("Rate (KL of the topics)", "rate", epochs=("rate", "held_out_rate")),
    Panel("Dependence (CODAL)", "dependence", epochs=("dependence",)),
    Panel("Weight of the KL terms", "kl_weight", ""),
    Panel("Learning rate", "learning_rate", "", log=True),
    Panel("Momentum", "momentum", ""),
)
DRAWN = ("loss", "distortion", "rate", "dependence", "kl_weight", "learning_rate", "momentum")
NOISY = ("loss", "distortion", "rate", "dependence")  # what is smoothed
HELD_OUT = "#cc79a7"

# The readout follows the cursor in the browser: asking the server at every movement would lag.
READ = """
const x = cb_obj.x, d = source.data, steps = d.x
if (x == null || !steps.length) return
let low = 0, high = steps.length - 1
while (low < high) { const mid = (low + high) >> 1; if (steps[mid] < x) low = mid + 1; else high = mid }
if (low > 0 && x - steps[low - 1] < steps[low] - x) low -= 1
const show = (n) => n == null || isNaN(n) ? "–" : Math.abs(n) >= 1e-3 ? n.toLocaleString("en", {maximumSignificantDigits: 5}) : n.toExponential(2)
div.text = names.filter(([_, column]) => d[column][low] !== 0).map(([name, column]) => `${name} <b>${show(d[column][low])}</b>`).join(" &nbsp; ")
"""  # noqa: E501


class Beside:
    """A place for another run, drawn for comparison; empty until there is one."""

    def __init__(self, colour: str) -> None:
        self.colour, self.key, self.series = colour, "", Series()
        self.source = ColumnDataSource({"x": [], **{c: [] for c in DRAWN}})
        self.item = LegendItem(label="", renderers=[], visible=False)


class TrainingCurves:
    """Live curves of one training, on one axis.

    Nothing is built anew while points come, as the browser and the server would lose each other's models; only linear
    and logarithmic axes, which the user chooses, take other figures.

    Attributes
    ----------
    root
        To show; hidden until there is a point.
    source, epochs
        Points by step and by epoch. ``x`` is what the axis shows.
    pins
        Steps that somebody pinned.
    """

    def __init__(self) -> None:
        self.series = Series()
        self.smoothing, self.log, self.by_epoch = 0.0, False, False
        self.pins: list[int] = []
        self.pinned: Callable[[], None] = lambda: None
        self._expected = 0
        self._window: tuple[float, float] | None = None
        self.root = pn.Column(sizing_mode="stretch_width", margin=0, visible=False)
        self._build(0, 1)

    # --- figures --------------------------------------------------------------------------------

    def _build(self, start: float, end: float) -> None:
        self.source, self.epochs = ColumnDataSource(self._steps(np.arange(0))), ColumnDataSource(self._epochs())
        self.beside = [Beside(colour) for colour in categories(MOST_BESIDE + 2)[2:]]
        self._x = Range1d(start, end, bounds=(0, None), reset_start=0, reset_end=self._expected or end)
        self._crosshair = Span(dimension="height", line_dash="dotted", line_width=1, line_color="gray")
        self._raw: list[GlyphRenderer] = []
        self._smooth: list[GlyphRenderer] = []
        self._held_out: list[GlyphRenderer] = []
        self._spans: list[tuple[figure, Span]] = []
        self._items = {
            "each step": LegendItem(label="each step"),
            "smoothed": LegendItem(label="smoothed", visible=False),
            "mean of each epoch": LegendItem(label="mean of each epoch"),
            "held-out cells, after each epoch": LegendItem(label="held-out cells, after each epoch", visible=False),
        }
        self.readout = Div(
            text="", styles={"font-size": "12px", "font-variant-numeric": "tabular-nums", "min-height": "18px"}
        )
        self.figures = {panel.column: self._figure(panel) for panel in PANELS}
        panes = {name: pn.pane.Bokeh(f, sizing_mode="stretch_width", margin=(0, 6)) for name, f in self.figures.items()}
        # boxes, as a pane is as visible as its figure and not the other way round
        self.boxes = {name: pn.Column(pane, sizing_mode="stretch_width", margin=0) for name, pane in panes.items()}
        main, *others = self.boxes.values()
        below = pn.Column(*others, stylesheets=[THIRDS], sizing_mode="stretch_width", margin=0)
        read = pn.pane.Bokeh(self.readout, sizing_mode="stretch_width", margin=(0, 12))
        self.root.objects = [main, read, below]

    def _figure(self, panel: Panel) -> figure:
        main = panel.column == "loss"
        noisy = panel.column in NOISY
        p = figure(
            title=panel.title, height=320 if main else 190, sizing_mode="stretch_width", min_width=240,
            output_backend="canvas", tools="xpan,box_zoom,xwheel_zoom,reset,save",
            toolbar_location="right" if main else None, active_drag="box_zoom", x_range=self._x,
            y_axis_label=panel.unit or None, y_axis_type="log" if panel.log or (self.log and noisy) else "linear",
            x_axis_label=("epoch" if self.by_epoch else "step") if main else None,
        )  # fmt: skip
        p.toolbar.logo = None
        p.outline_line_color = None
        p.min_border_left = 62  # so that the steps of all panels stand below each other
        p.y_range = DataRange1d(only_visible=True)
        lines = [p.line("x", panel.column, source=b.source, color=b.colour, width=1.2) for b in self.beside]
        raw = p.line("x", panel.column, source=self.source, color=LINE, width=1 if noisy else 1.5)
        self._raw += [raw] if noisy else []
        shown = {"each step": [raw]}
        if noisy:
            smooth = p.line("x", f"smooth_{panel.column}", source=self.source, color=LINE, width=2, visible=False)
            self._smooth.append(smooth)
            shown["smoothed"] = [smooth]
        for column in panel.epochs:
            held_out = column.startswith("held_out")
            look = {"source": self.epochs, "color": HELD_OUT if held_out else SECOND, "visible": not held_out}
            drawn = [p.line("x", column, width=2, **look), p.scatter("x", column, size=3, **look)]
            self._held_out += drawn if held_out else []
            shown["held-out cells, after each epoch" if held_out else "mean of each epoch"] = drawn
        if main:
            for label, renderers in shown.items():
                self._items[label].renderers = renderers
            for b, line in zip(self.beside, lines, strict=True):
                b.item.renderers = [line]
            p.add_layout(
                Legend(
                    items=[*(b.item for b in self.beside), *self._items.values()], background_fill_alpha=0.6,
                    border_line_alpha=0, label_text_font_size="12px", padding=4, click_policy="hide",
                )
            )  # fmt: skip
            p.on_event(RangesUpdate, lambda event: self.show_window(event.x0, event.x1))
        p.add_tools(CrosshairTool(overlay=self._crosshair))
        names = [["epoch" if self.by_epoch else "step", "x"], *([c.replace("_", " "), c] for c in DRAWN)]
        p.js_on_event(MouseMove, CustomJS(args={"source": self.source, "div": self.readout, "names": names}, code=READ))
        p.js_on_event(MouseLeave, CustomJS(args={"div": self.readout}, code="div.text = ''"))
        p.on_event(Tap, lambda event: self.pin(event.x))
        p.xaxis.formatter = NumeralTickFormatter(format="0,0")
        return p

    # --- points ---------------------------------------------------------------------------------

    def _steps(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        steps = self.series.steps
        out = {c: steps[c][rows] for c in ("step", *DRAWN)}
        out["x"] = self._as_x(self.series, out["step"])
        for c in NOISY:
            out[f"smooth_{c}"] = self.series.smoothed(c, self.smoothing)[rows]
        return out

    def _epochs(self) -> dict[str, np.ndarray]:
        epochs = self.series.epochs
        columns = sorted({c for p in PANELS for c in p.epochs})
        return {"x": self._as_x(self.series, epochs["step"]), "step": epochs["step"], **{c: epochs[c] for c in columns}}

    def _as_x(self, series: Series, steps: np.ndarray) -> np.ndarray:
        return steps / per_epoch(series) if self.by_epoch else steps

    def update(self, series: Series) -> None:
        """Show what is new; what is zoomed, selected or pinned stays."""
        if series is not self.series:
            before, self.series = self.series, series
            if len(before.steps) or len(before.epochs):
                self._replace()
        rows = series.chosen(MAX_POINTS, self._window)
        shown = self.source.data["step"]
        kept = series.steps["step"][rows[: len(shown)]]
        if len(kept) == len(shown) and np.array_equal(kept, shown):
            if len(rows) > len(shown):
                self.source.stream(self._steps(rows[len(shown) :]))
        else:
            self.source.data = self._steps(rows)
        known = len(self.epochs.data["x"])
        if len(series.epochs) > known:
            self.epochs.stream({c: v[known:] for c, v in self._epochs().items()})
        held_out = bool(np.isfinite(series.epochs["held_out_loss"]).any())
        if held_out != self._items["held-out cells, after each epoch"].visible:
            self._items["held-out cells, after each epoch"].visible = held_out
            for renderer in self._held_out:
                renderer.visible = held_out
        self.boxes["dependence"].visible = bool(np.any(series.steps["dependence_weight"] > 0))
        self.root.visible = len(series.steps) > 0

    def _replace(self) -> None:
        self.source.data = self._steps(self.series.chosen(MAX_POINTS, self._window))
        self.epochs.data = self._epochs()
        for b in self.beside:
            if b.key:
                self._draw_beside(b)

    def _draw_beside(self, b: Beside) -> None:
        rows, steps = b.series.chosen(MAX_BESIDE), b.series.steps
        values = {c: b.series.smoothed(c, self.smoothing) if c in NOISY else steps[c] for c in DRAWN}
        b.source.data = {
            "x": self._as_x(b.series, steps["step"][rows]),
            **{c: v[rows] for c, v in values.items()},
        }

    # --- what the user asks for -----------------------------------------------------------------

    def expect(self, num_steps: int, num_epochs: int) -> None:
        """Let the axis span the whole training from the start, so that it does not creep."""
        end = num_epochs if self.by_epoch else num_steps
        if end and self._expected != end:
            self._expected, self._window = end, None
            self._x.update(start=0, end=end, reset_start=0, reset_end=end)

    def set_view(self, smoothing: float, log: bool, by_epoch: bool) -> None:
        """Smooth, show losses on log axes, or show epochs in place of steps."""
        if by_epoch != self.by_epoch:
            self._window, self._expected = None, 0
        self.smoothing, self.by_epoch = smoothing, by_epoch
        if log != self.log:
            self.log, series = log, self.series
            runs = {b.key: (b.item.label.value, b.series) for b in self.beside if b.key}
            self._build(self._x.start, self._x.end)
            self.compare(runs)
            self.update(series)
        self.figures["loss"].xaxis.axis_label = "epoch" if by_epoch else "step"
        for renderer in self._raw:
            renderer.glyph.line_alpha = 0.3 if smoothing else 1.0
        for renderer in self._smooth:
            renderer.visible = smoothing > 0
        self._items["smoothed"].visible = smoothing > 0
        self._replace()
        self._place_pins()

    def compare(self, runs: Mapping[str, tuple[str, Series]]) -> None:
        """Draw other runs beside this one: key -> label and series; each keeps its colour."""
        for b in self.beside:
            if b.key and b.key not in runs:
                b.key, b.series, b.item.visible = "", Series(), False
                self._draw_beside(b)
        for key, (label, series) in runs.items():
            b = next((b for b in self.beside if b.key == key), None) or next(
                (b for b in self.beside if not b.key), None
            )
            if b is not None:
                b.key, b.series = key, series
                b.item.update(label={"value": label}, visible=True)
                self._draw_beside(b)

    def show_window(self, start: float, end: float) -> None:
        """Bring the points between two places of the axis, all of them if they are not too many."""
        scale = per_epoch(self.series) if self.by_epoch else 1.0
        whole = start <= 0 and end * scale >= self.series.steps["step"][-1:].max(initial=0)
        self._window = None if whole else (start * scale, end * scale)
        if len(self.series.steps) > MAX_POINTS:
            self.source.data = self._steps(self.series.chosen(MAX_POINTS, self._window))

    def pin(self, x: float) -> None:
        """Mark the step nearest to a place of the axis."""
        steps = self.series.steps["step"]
        if not len(steps):
            return
        at = int(np.clip(np.searchsorted(self._as_x(self.series, steps), x), 0, len(steps) - 1))
        self.pins.append(int(steps[at]))
        self._place_pins()
        self.pinned()

    def unpin(self) -> None:
        """Remove all marks."""
        self.pins.clear()
        self._place_pins()
        self.pinned()

    def _place_pins(self) -> None:
        for p, span in self._spans:
            p.center = [r for r in p.center if r is not span]
        self._spans = []
        for x in self._as_x(self.series, np.array(self.pins, dtype=float)):
            for p in self.figures.values():
                span = Span(location=float(x), dimension="height", line_color=SECOND, line_dash="dashed")
                p.add_layout(span)
                self._spans.append((p, span))

    def clear(self) -> None:
        """Forget all points and marks."""
        if self.pins:
            self.pins.clear()
            self._place_pins()
        self._window = None
        if len(self.series.steps):  # changes of what the browser has not got yet overtake it
            self.update(Series())


def per_epoch(series: Series) -> float:
    """Return how many steps an epoch has; 1 while nobody knows."""
    if len(series.epochs):
        return float(series.epochs["step"][0] / max(series.epochs["epoch"][0], 1))
    return float(max(len(series.steps), 1))


def at_step(series: Series, step: int) -> dict[str, Any]:
    """Return all that is known of one step."""
    row = int(np.searchsorted(series.steps["step"], step))
    return {c: float(series.steps[c][row]) for c in series.steps.names}
