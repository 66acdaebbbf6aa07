"""The trials of a study, drawn: one table of columns under all figures, so that what is selected in one is in all."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import panel as pn
from bokeh.models import (
    BasicTicker,
    BasicTickFormatter,
    ColorBar,
    ColumnDataSource,
    CustomJSTickFormatter,
    FixedTicker,
    GlyphRenderer,
    HoverTool,
    LinearColorMapper,
)
from bokeh.plotting import figure

from mira_core.errors import OptionError
from mira_core.plots.trials_info import LOSSES, ImportanceInfo, best_so_far, extent, extent_of_measures, medians

from .colours import LINE, SECOND, categories
from .trials_drawn import KEYS, MAKERS, TIPS, label_of, note
from .trials_ranges import Ranges, around
from .trials_rows import Columns, Curves, Rows, Trials

MISSING = "lightgrey"
FEW = 0.2  # share of a column above which it is sent whole rather than patched
BACK = CustomJSTickFormatter(code="return Number(Math.exp(tick).toPrecision(3)).toLocaleString('en')")
Importance = ImportanceInfo | Mapping[str, float]
MEASURES = {"value": "Held-out loss after each epoch", "unweighted": "Held-out loss after each epoch, unweighted",
            "distortion": "Held-out distortion after each epoch", "rate": "Held-out rate after each epoch",
            "score": "Held-out loss after each epoch, unweighted"}  # fmt: skip


class TrialFigures:
    """Figures of the trials of a study, live.

    `pareto`, `curves`, `history`, `topics`, `parallel` and `importance` are made when they are first wanted, as a
    browser takes long to draw many; `pane` gives what shows one of them.

    Attributes
    ----------
    source
        One row for each trial that is drawn, under all figures.
    made
        Figures by name, those that were wanted so far.
    view
        What is shown of the trials; see `set_view`.
    on_select
        Called with the numbers of the trials that somebody selected in the browser.
    """

    def __init__(self) -> None:
        self.on_select: Callable[[list[int]], None] | None = None
        self.view: dict[str, Any] = {
            "x": "num_topics", "y": "value", "hue": "number", "palette": "Blues", "log_x": False, "log_y": False,
            "log_hue": False, "label_pareto_front": True, "include_pruned_trials": True, "measure": "value",
            "curve_hue": "value", "curve_palette": "Spectral_r", "log_curve_hue": False,
        }  # fmt: skip
        self.made: dict[str, figure] = {}
        self._panes: dict[str, pn.pane.Bokeh] = {}
        self._rows, self._columns = Rows(), Rows().columns(self.view)
        self._pinned: int | None = None
        self._quiet = False
        self._ranges = Ranges()
        self._told = ImportanceInfo({}, 0, "")
        # what figures are drawn from
        self.source = ColumnDataSource(self._columns)
        self.source.selected.on_change("indices", self._selected)
        self.marks = ColumnDataSource({"x": [], "y": [], "marker": [], "colour": []})
        self.front = ColumnDataSource({"x": [], "y": []})
        self.best = ColumnDataSource({"number": [], "value": []})
        self.medians = ColumnDataSource({"k": [], "trials": [], "value": []})
        self.axes = ColumnDataSource({"x": [], "low": [], "high": []})
        self.pinned_curve = ColumnDataSource({"x": [], "y": []})
        self.bars = ColumnDataSource({"name": [], "value": [], "share": []})
        self.mapper = LinearColorMapper(palette=_palette("Blues"), nan_color=MISSING)
        self.curve_mapper = LinearColorMapper(palette=_palette("Spectral_r"), nan_color=MISSING)
        self.notes = {name: note(KEYS.get(name, "")) for name in (*KEYS, "importance")}
        # parts of figures that change
        self.size = 11
        self.points: list[GlyphRenderer] = []
        self.lines: GlyphRenderer | None = None
        self.tips: HoverTool | None = None
        self.bars_of: dict[str, ColorBar] = {}

    # --- figures --------------------------------------------------------------------------------

    def figure(self, name: str) -> figure:
        """Return a figure by its name."""
        if name not in self.made:
            self.made[name] = MAKERS[name](self, self._ranges.of(name))
            self._dress()
        return self.made[name]

    def pane(self, name: str) -> pn.pane.Bokeh:
        """Return what shows a figure, also where another must take its place."""
        if name not in self._panes:
            self._panes[name] = pn.pane.Bokeh(self.figure(name), sizing_mode="stretch_width")
        return self._panes[name]

    pareto = property(lambda self: self.figure("pareto"), doc="Any attribute against any other.")
    curves = property(lambda self: self.figure("curves"), doc="Scores by epoch.")
    history = property(lambda self: self.figure("history"), doc="Loss by trial.")
    topics = property(lambda self: self.figure("topics"), doc="Loss by number of topics.")
    parallel = property(lambda self: self.figure("parallel"), doc="Parallel coordinates.")
    importance = property(lambda self: self.figure("importance"), doc="What matters for the loss.")

    @property
    def names(self) -> dict[str, bool]:
        """Attributes of the trials that can be chosen, and whether they are numbers; others can only colour."""
        return self._rows.names

    # --- what is drawn --------------------------------------------------------------------------

    def update(
        self, trials: Trials, curves: Curves, importance: ImportanceInfo | Mapping[str, float] | None = None
    ) -> None:
        """Draw what is new: only that is sent, so that zoom and selection stay.

        Parameters
        ----------
        trials
            As `mira_core.tuning.study.attributes` tells them, in order of their numbers.
        curves
            By number: ``value``, and unweighted ``distortion`` and ``rate``, one for each epoch.
        importance
            As `show_importance` takes it; None: as before.
        """
        keep = self.selected
        n = len(self._rows.numbers)
        anew = self._rows.renew(trials, curves)
        self._send(0 if anew else n, keep)
        if importance is not None:
            self.show_importance(importance)

    def show_importance(self, importance: Importance) -> None:
        """Draw how much each parameter matters, 0 to 1; or say why that is not known."""
        if not isinstance(importance, ImportanceInfo):
            importance = ImportanceInfo(dict(importance), 0, "")
        self._told = importance
        ordered = sorted(importance.shares.items(), key=lambda item: item[1])
        if "importance" in self.made:
            p = self.made["importance"]
            names = [n.replace("_", "\n") for n, _ in ordered]
            if p.y_range.factors != names:
                p.y_range.factors = names
            _set(self.bars, {"name": names, "value": [v for _, v in ordered],
                             "share": [f"{v:.0%}" for _, v in ordered]})  # fmt: skip
            p.x_range.update(start=0, end=1.1)
            p.xaxis.axis_label = "share of the loss's variance" if importance.trials else "share"
            told = f"of {importance.trials} completed trials" if importance.trials else ""
            self.notes["importance"].text = importance.why or told

    def set_view(self, **view: Any) -> None:
        """Draw other attributes, or otherwise.

        Parameters
        ----------
        x, y, hue
            Attributes of the trials, see `names`.
        palette
            Colours, by matplotlib's name.
        log_x, log_y, log_hue
            Whether by their logarithms.
        label_pareto_front
            Whether to number only trials on the front of distortion and rate.
        include_pruned_trials
            Whether they are points, too.
        measure
            What curves show: ``value``, as reported, which is annealed; ``unweighted``, ``distortion`` or ``rate``.
        curve_hue, curve_palette, log_curve_hue
            Of curves and of parallel coordinates.

        Raises
        ------
        OptionError
            If there is no such palette or measure, or the attribute of an axis is text. Nothing changes.
        """
        if unknown := view.keys() - self.view.keys():
            raise TypeError(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(self.view)}")
        self._check(view)
        before, self.view = self.view, {**self.view, **view}
        changed = {name for name, value in self.view.items() if value != before[name]}
        if not changed:
            return
        for axis in ("x", "y"):
            if {axis, f"log_{axis}"} & changed:
                self._ranges.renew("pareto", axis, f"log_{axis}" in changed)
        if "measure" in changed:
            self._ranges.renew("curves", "y")
        other_scale = bool(changed & {"log_x", "log_y"}) and "pareto" in self.made
        if other_scale:  # of which the figure that is there cannot change
            gone = self.made["pareto"].renderers
            self.points = [r for r in self.points if r not in gone]
            self.made["pareto"] = MAKERS["pareto"](self, self._ranges.of("pareto"))
        self._send(len(self._rows.numbers))
        if other_scale and "pareto" in self._panes:
            self._panes["pareto"].object = self.made["pareto"]

    def _check(self, view: Mapping[str, Any]) -> None:
        import matplotlib as mpl

        for name in ("palette", "curve_palette"):
            if name in view and view[name] not in mpl.colormaps:
                near = difflib.get_close_matches(str(view[name]), list(mpl.colormaps), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise OptionError(f"{name} must be a palette of matplotlib; there is no {view[name]!r}{hint}")
        if view.get("measure", "value") not in MEASURES:
            raise OptionError(f"measure must be one of {', '.join(MEASURES)}; got {view['measure']!r}")
        for name in ("x", "y"):
            if name in view and not self.names.get(view[name], True):
                raise OptionError(f"{name} must be a number; {view[name]!r} is text, which can only colour")

    def _send(self, n: int, keep: Sequence[int] = ()) -> None:
        """Send what differs from what the browser has: cells of the first `n` rows, and rows that follow them."""
        columns = self._columns = self._rows.columns(self.view)
        if n:
            self._patch({k: v[:n] for k, v in columns.items()})
            if len(self._rows.numbers) > n:
                self.source.stream({k: v[n:] for k, v in columns.items()})
        else:
            self._quiet = True
            self.source.selected.indices = []
            self.source.data = dict(columns)
            self._quiet = False
            self.select(keep)
        self._dress()

    def _patch(self, columns: Columns) -> None:
        """Send the cells that have changed."""
        patches: dict[str, list[tuple[int, Any]]] = {}
        for name, new in columns.items():
            old = self.source.data[name]
            if isinstance(new, np.ndarray):
                at = np.flatnonzero(~((new == old) | (np.isnan(new) & np.isnan(old)))).tolist()
            else:
                at = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a is not b and a != b]
            if len(at) > max(20, FEW * len(new)):
                self.source.data[name] = new
            elif at:
                patches[name] = [(i, new[i].item() if isinstance(new, np.ndarray) else new[i]) for i in at]
        if patches:
            self.source.patch(patches)

    def _dress(self) -> None:
        """Let all that is not a trial follow: colours, labels, ranges, and what is drawn beside."""
        self._colour(self.mapper, ["hue"], "hue", "palette", "log_hue")
        self._colour(self.curve_mapper, ["curve_hue", "parallel"], "curve_hue", "curve_palette", "log_curve_hue")
        self._draw_beside()
        self._set_ranges()
        self._set_looks()
        self.show_importance(self._told)

    def _colour(self, mapper: LinearColorMapper, bars: Sequence[str], name: str, palette: str, log: str) -> None:
        """Let colours span what there is; categories have colours of their own."""
        hue, values = self.view[name], self._columns[name]
        ticker, formatter, labels = BasicTicker, BasicTickFormatter, {}
        if not self.names.get(hue, True):
            told = self._rows.levels(hue)
            low, high, colours = -0.5, len(told) - 0.5, categories(len(told))
            ticks = list(range(len(told)))
            labels, title = {i: text.lower() for i, text in enumerate(told)}, hue
        else:
            known = values[np.isfinite(values)]
            low, high = (
                extent(values, self._rows.completed) if hue in LOSSES or not known.size else (known.min(), known.max())
            )
            colours, ticks = _palette(self.view[palette]), None
            title = f"{hue}, log" if self.view[log] else hue
        low, high = float(low), float(high) if high > low else float(low) + 1
        if (mapper.low, mapper.high) != (low, high):
            mapper.update(low=low, high=high)
        if list(mapper.palette) != colours:
            mapper.palette = colours
        back = ticks is None and self.view[log]
        for bar in (self.bars_of[b] for b in bars if b in self.bars_of):
            if (bar.title, bar.major_label_overrides) != (title := title.replace("_", " "), labels):
                bar.update(title=title, major_label_overrides=labels,
                           ticker=ticker() if ticks is None else FixedTicker(ticks=ticks),
                           formatter=BACK if back else formatter())  # fmt: skip

    def _draw_beside(self) -> None:
        """Draw what is not a trial: the front, the best so far, medians, axes, rings around the best and the pinned."""
        columns, rows = self._columns, self._rows
        x, y, on = columns["x"], columns["y"], columns["front"] > 0
        drawn = {self.view["x"], self.view["y"]} == {"distortion", "rate"}
        at = np.flatnonzero(on)[np.argsort(x[on])] if drawn else np.zeros(0, int)
        _set(self.front, {"x": x[at].tolist(), "y": y[at].tolist()})
        number, value, completed = columns["number"], columns["value"], rows.completed
        turns, least = best_so_far(number, value, completed)
        _set(self.best, {"number": turns.tolist(), "value": least.tolist()})
        ks, counts, middle = medians(rows.values("num_topics"), value, completed)
        _set(self.medians, {"k": ks.tolist(), "trials": counts.tolist(), "value": middle.tolist()})
        high = [("≥ " if a.beyond else "") + f"{a.high:.4g}" for a in rows.axes]
        _set(self.axes, {"x": list(range(len(rows.axes))), "low": [f"{a.low:.4g}" for a in rows.axes], "high": high})
        ended = completed & np.isfinite(value)
        best = int(number[ended][value[ended].argmin()]) if ended.any() else None
        where = {n: i for i, n in enumerate(rows.numbers)}
        ringed = [(where[n], marker, colour) for n, marker, colour in
                  ((best, "star", SECOND), (self._pinned, "square", LINE)) if n in where]  # fmt: skip
        _set(self.marks, {"x": [float(x[i]) for i, *_ in ringed], "y": [float(y[i]) for i, *_ in ringed],
                          "marker": [m for _, m, _ in ringed], "colour": [c for *_, c in ringed]})  # fmt: skip
        xs, ys = rows.line(self._pinned) if self._pinned is not None else ([], [])
        _set(self.pinned_curve, {"x": xs, "y": ys})

    def _set_looks(self) -> None:
        """Let titles, labels and sizes fit what is drawn."""
        n = max(len(self._rows.numbers), 1)
        self.size = int(np.clip(200 / np.sqrt(n), 4, 11))
        for points in self.points:
            for glyph in (points.glyph, points.selection_glyph, points.nonselection_glyph):
                if glyph.size != self.size:
                    glyph.size = self.size
        if "pareto" in self.made:
            p, v = self.made["pareto"], self.view
            names = [label_of(v["x"], v["log_x"]), label_of(v["y"], v["log_y"])]
            if [p.xaxis[0].axis_label, p.yaxis[0].axis_label] != names:
                p.xaxis.axis_label, p.yaxis.axis_label = names
                told = [
                    (label_of(v[a]), f"@{a}{{0.[000]}}") for a in ("x", "y") if v[a] not in ("number", "value", "elbo")
                ]
                self.tips.tooltips = [*TIPS, *told]
        for name, key in KEYS.items():
            far = self._beyond(name) if name in self.made else 0
            text = f"{key}  ({far} beyond the axes)" if far else key
            if self.notes[name].text != text:
                self.notes[name].text = text
        if "curves" in self.made:
            p, measure = self.made["curves"], self.view["measure"]
            if p.title.text != MEASURES[measure]:
                p.title.text = MEASURES[measure]
            alpha = round(float(np.clip(14 / np.sqrt(n), 0.25, 0.8)), 1)
            if self.lines is not None and self.lines.glyph.line_alpha != alpha:
                self.lines.glyph.line_alpha = alpha
        if "parallel" in self.made:
            labels = {i: a.name.replace("_", " ") + (", log" if a.log else "") for i, a in enumerate(self._rows.axes)}
            axis = self.made["parallel"].xaxis[0]
            if axis.major_label_overrides != labels:
                axis.update(ticker=FixedTicker(ticks=list(labels)), major_label_overrides=labels)

    def _beyond(self, name: str) -> int:
        """Return how many trials lie beyond the axes, as long as nobody zooms."""
        if self._ranges.zoomed(name):
            return 0
        columns = {"pareto": ("x", "y"), "history": ("number", "loss"), "topics": ("jittered", "loss")}[name]
        out = np.zeros(len(self._rows.numbers), bool)
        for column, r in zip(columns, self._ranges.of(name).values(), strict=True):
            out |= (self._columns[column] < r.start) | (self._columns[column] > r.end)
        return int(out.sum())

    def _set_ranges(self) -> None:
        """Show the losses that matter: how trainings begin would flatten the rest. What somebody zoomed stays."""
        columns, rows, v = self._columns, self._rows, self.view
        for axis in ("x", "y"):
            known = columns[axis][np.isfinite(columns[axis])]
            known = known[known > 0] if v[f"log_{axis}"] else known
            if known.size:
                ends = extent(known) if v[axis] in LOSSES else (known.min(), known.max())
                self._set("pareto", axis, *around(*ends, v[f"log_{axis}"]))
        losses, topics = columns["loss"], rows.values("num_topics")
        if np.isfinite(losses).any():
            for name in ("history", "topics"):
                self._set(name, "y", *around(*extent(losses, rows.completed)))
        if rows.numbers:
            self._set("history", "x", *around(rows.numbers[0], rows.numbers[-1]))
            self._set("parallel", "x", -0.4, len(rows.axes) - 0.6)
            self._set("parallel", "y", -0.12, 1.12)
        if np.isfinite(topics).any():
            self._set("topics", "x", *around(np.nanmin(topics), np.nanmax(topics)))
        if np.isfinite(rows.measures()[:, 0]).any():
            self._set("curves", "y", *around(*extent_of_measures(rows.measures())))
            self._set("curves", "x", 0, max(len(x) for x in columns["xs"]))

    def _set(self, name: str, axis: str, low: float, high: float) -> None:
        if name in self.made:
            self._ranges.set(name, axis, low, high)

    # --- selection ------------------------------------------------------------------------------

    @property
    def selected(self) -> list[int]:
        """Numbers of the selected trials."""
        numbers = self._rows.numbers
        return [numbers[i] for i in self.source.selected.indices if i < len(numbers)]

    def select(self, numbers: Sequence[int]) -> None:
        """Select trials by their numbers; those that are not drawn are left out."""
        at = {n: i for i, n in enumerate(self._rows.numbers)}
        indices = [at[n] for n in numbers if n in at]
        if indices != self.source.selected.indices:
            self._quiet = True
            self.source.selected.indices = indices
            self._quiet = False

    def pin(self, number: int | None) -> None:
        """Mark one trial, with which others are compared; None: none."""
        if number != self._pinned:
            self._pinned = number
            self._draw_beside()

    def _selected(self, _: str, __: Any, ___: Any) -> None:
        if not self._quiet and self.on_select is not None:
            self.on_select(self.selected)


def _set(source: ColumnDataSource, data: dict[str, Any]) -> None:
    if dict(source.data) != data:
        source.data = data


@lru_cache(32)
def _palette(name: str) -> list[str]:
    """Return a palette of matplotlib by its name, as colours."""
    import matplotlib as mpl

    return [mpl.colors.to_hex(c) for c in mpl.colormaps[name](np.linspace(0, 1, 128))]
