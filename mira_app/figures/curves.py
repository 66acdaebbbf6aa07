"""Curves of a training: loss by step and epoch, its parts, and what the schedules did; other runs beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
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
    Line,
    NumeralTickFormatter,
    Range1d,
    Scatter,
    Span,
)
from bokeh.plotting import figure

from ..series import Series
from ..styles import SHARED
from .colours import LINE, SECOND, categories
from .saving import can_be_saved

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


LOSSES = (
    Panel("Loss", "loss", epochs=("loss", "held_out_loss")),
    Panel("Distortion", "distortion", epochs=("distortion", "held_out_distortion")),
    Panel("Rate (KL of the topics)", "rate", epochs=("rate", "held_out_rate")),
    Panel("Dependence (CODAL)", "dependence", epochs=("dependence",)),
)
SCHEDULES = (
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
    """A place for another run, drawn for comparison; used again once that has gone."""

    def __init__(self, colour: str) -> None:
        self.colour, self.key, self.series = colour, "", Series()
        self.source = ColumnDataSource({"x": [], **{c: [] for c in DRAWN}})
        self.item = LegendItem(label="", renderers=[], visible=False)
        self.drawn: tuple[Any, ...] = ()  # what is drawn of it, and how


class TrainingCurves:
    """Live curves of one training, on one axis.

    Nothing is built anew while points come, as the browser and the server would lose each other's models; only linear
    and logarithmic axes, which the user chooses, take other figures.

    Attributes
    ----------
    root
        To show; hidden until there is a point. Schedules come with `complete`, as the losses are wanted first.
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
        self._scale = 1.0  # steps of an epoch, as they are drawn
        self.root = pn.Column(sizing_mode="stretch_width", margin=0, visible=False)
        self._build(0, 1)

    # --- figures --------------------------------------------------------------------------------

    def _build(self, start: float, end: float) -> None:
        self.source, self.epochs = ColumnDataSource(self._steps(np.arange(0))), ColumnDataSource(self._epochs())
        self.beside: list[Beside] = []
        self._x = Range1d(start, end, bounds=(0, None), reset_start=0, reset_end=self._expected or end)
        self._crosshair = Span(dimension="height", line_dash="dotted", line_width=1, line_color="gray")
        self._raw: list[GlyphRenderer] = []
        self._smooth: list[GlyphRenderer] = []
        self._held_out: list[GlyphRenderer] = []
        self._spans: list[tuple[figure, Span]] = []
        self._reads: list[CustomJS] = []
        self._items = {
            "each step": LegendItem(label="each step"),
            "smoothed": LegendItem(label="smoothed", visible=False),
            "mean of each epoch": LegendItem(label="mean of each epoch"),
            "held-out cells, after each epoch": LegendItem(label="held-out cells, after each epoch", visible=False),
        }
        self.readout = Div(
            text="", styles={"font-size": "12px", "font-variant-numeric": "tabular-nums", "min-height": "18px"}
        )
        self.figures: dict[str, figure] = {}
        self.boxes: dict[str, pn.Column] = {}
        main, *others = [self._box(panel) for panel in LOSSES]
        below = pn.Column(*others, stylesheets=[SHARED], sizing_mode="stretch_width", margin=0)
        read = pn.pane.Bokeh(self.readout, sizing_mode="stretch_width", margin=(0, 12))
        self._schedules = pn.Column(stylesheets=[SHARED], sizing_mode="stretch_width", margin=0)
        self.root.objects = [main, read, below, self._schedules]

    def complete(self) -> None:
        """Show the schedules, too."""
        if self._schedules.objects:
            return
        boxes = [self._box(panel) for panel in SCHEDULES]
        for panel in SCHEDULES:
            for b in self.beside:
                self._line(panel.column, b)
        self._place_pins()
        self._schedules.objects = boxes

    def _box(self, panel: Panel) -> pn.Column:
        """Make a figure, in a box, as a pane is as visible as its figure and not the other way round."""
        self.figures[panel.column] = p = self._figure(panel)
        pane = pn.pane.Bokeh(p, sizing_mode="stretch_width", margin=(0, 6))
        self.boxes[panel.column] = pn.Column(pane, sizing_mode="stretch_width", margin=0)
        return self.boxes[panel.column]

    def _line(self, column: str, b: Beside) -> GlyphRenderer:
        return _draw(self.figures[column], Line(x="x", y=column, line_color=b.colour, line_width=1.2), b.source,
                     level="underlay")  # fmt: skip

    def _figure(self, panel: Panel) -> figure:
        main = panel.column == "loss"
        noisy = panel.column in NOISY
        p = figure(
            title=panel.title, height=320 if main else 190, sizing_mode="stretch_width", min_width=240,
            output_backend="canvas", tools="xpan,box_zoom,xwheel_zoom,reset",
            toolbar_location="right" if main else None, active_drag="box_zoom", x_range=self._x,
            y_axis_label=panel.unit or None, y_axis_type="log" if panel.log or (self.log and noisy) else "linear",
            x_axis_label=("epoch" if self.by_epoch else "step") if main else None,
        )  # fmt: skip
        can_be_saved(p, f"training-{panel.column.replace('_', '-')}")
        p.outline_line_color = None
        p.min_border_left = 62  # so that the steps of all panels stand below each other
        # Not told to the server, which has no use for it: live figures would tell it a dozen times a second.
        p.y_range = DataRange1d(only_visible=True, syncable=False)
        look = Line(x="x", y=panel.column, line_color=LINE, line_width=1 if noisy else 1.5)
        raw = _draw(p, look, self.source)
        self._raw += [raw] if noisy else []
        shown = {"each step": [raw]}
        if noisy:
            look = Line(x="x", y=f"smooth_{panel.column}", line_color=LINE, line_width=2)
            smooth = _draw(p, look, self.source, visible=self.smoothing > 0)
            self._smooth.append(smooth)
            shown["smoothed"] = [smooth]
        for column in panel.epochs:
            held_out = column.startswith("held_out")
            colour = HELD_OUT if held_out else SECOND
            looks = (Line(x="x", y=column, line_color=colour, line_width=2),
                     Scatter(x="x", y=column, size=3, line_color=colour, fill_color=colour))  # fmt: skip
            drawn = [_draw(p, look, self.epochs, visible=not held_out) for look in looks]
            self._held_out += drawn if held_out else []
            shown["held-out cells, after each epoch" if held_out else "mean of each epoch"] = drawn
        if main:
            for label, renderers in shown.items():
                self._items[label].renderers = renderers
            p.add_layout(
                Legend(
                    items=[*self._items.values()], background_fill_alpha=0.6, border_line_alpha=0,
                    label_text_font_size="12px", padding=4, click_policy="hide",
                )
            )  # fmt: skip
            p.on_event(RangesUpdate, lambda event: self.show_window(event.x0, event.x1))
        p.add_tools(CrosshairTool(overlay=self._crosshair, visible=False))
        read = CustomJS(args={"source": self.source, "div": self.readout, "names": self._read_out()}, code=READ)
        self._reads.append(read)
        p.js_on_event(MouseMove, read)
        p.js_on_event(MouseLeave, CustomJS(args={"div": self.readout}, code="div.text = ''"))
        p.on_event(Tap, lambda event: self.pin(event.x))
        p.xaxis.formatter = NumeralTickFormatter(format="0,0")
        return p

    def _read_out(self) -> list[list[str]]:
        return [["epoch" if self.by_epoch else "step", "x"], *([c.replace("_", " "), c] for c in DRAWN)]

    def _place_beside(self) -> Beside | None:
        """Return a free place for another run; a new one as long as there may be more."""
        free = next((b for b in self.beside if not b.key), None)
        if free is not None or len(self.beside) == MOST_BESIDE:
            return free
        b = Beside(categories(MOST_BESIDE + 2)[2 + len(self.beside)])
        page = self.figures["loss"].document
        # Else Bokeh goes through all that the page has, for each line.
        with page.models.freeze() if page is not None else contextlib.nullcontext():
            lines = {column: self._line(column, b) for column in self.figures}
            b.item.renderers = [lines["loss"]]
            self.beside.append(b)
            (legend,) = self.figures["loss"].legend
            legend.items = [*(b.item for b in self.beside), *self._items.values()]
        return b

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
        columns = sorted({c for p in LOSSES for c in p.epochs})
        return {"x": self._as_x(self.series, epochs["step"]), "step": epochs["step"], **{c: epochs[c] for c in columns}}

    def _as_x(self, series: Series, steps: np.ndarray) -> np.ndarray:
        return steps / per_epoch(series) if self.by_epoch else steps

    def update(self, series: Series) -> None:
        """Show what is new; what is zoomed, selected or pinned stays."""
        if series is not self.series:
            before, self.series = self.series, series
            if len(before.steps) or len(before.epochs):
                self._replace()
        if self.by_epoch and self._scale != per_epoch(series):  # which is known once an epoch has ended
            self._replace()
            self._place_pins()
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
        self.root.visible = len(series.steps) > 0 or len(series.epochs) > 0

    def _replace(self) -> None:
        self._scale = per_epoch(self.series)
        self.source.data = self._steps(self.series.chosen(MAX_POINTS, self._window))
        self.epochs.data = self._epochs()
        for b in self.beside:
            if b.key:
                self._draw_beside(b)

    def _draw_beside(self, b: Beside) -> None:
        wanted = b.series, len(b.series.steps), self.smoothing, self.by_epoch, per_epoch(b.series)
        if wanted == b.drawn:
            return
        b.drawn = wanted
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
            self.complete()
            self.compare(runs)
            self.update(series)
        self.figures["loss"].xaxis.axis_label = "epoch" if by_epoch else "step"
        for read in self._reads:
            read.args = {**read.args, "names": self._read_out()}
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
            b = next((b for b in self.beside if b.key == key), None) or self._place_beside()
            if b is not None:
                b.key, b.series = key, series
                b.item.update(label={"value": label}, visible=True)
                self._draw_beside(b)

    def update_beside(self, keys: Iterable[str]) -> None:
        """Show what is new of other runs that are drawn."""
        wanted = set(keys)
        for b in self.beside:
            if b.key in wanted:
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
        at = int(np.abs(self._as_x(self.series, steps) - x).argmin())
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


def _draw(p: figure, look: Any, source: ColumnDataSource, **how: Any) -> GlyphRenderer:
    """Draw without the looks of what is selected or muted: nothing is, and each is more for the browser to make."""
    return p.add_glyph(source, look, nonselection_glyph=None, muted_glyph=None, **how)


def per_epoch(series: Series) -> float:
    """Return how many steps an epoch has; 1 while nobody knows."""
    if len(series.epochs):
        return float(series.epochs["step"][0] / max(series.epochs["epoch"][0], 1))
    return float(max(len(series.steps), 1))


def at_step(series: Series, step: int) -> dict[str, Any]:
    """Return all that is known of one step."""
    row = int(np.searchsorted(series.steps["step"], step))
    return {c: float(series.steps[c][row]) for c in series.steps.names}
