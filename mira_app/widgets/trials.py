"""The trials of a study: what figures show, the figures, and a table, with one selection."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core.plots.trials_info import ENOUGH, ImportanceInfo
from mira_core.tuning.reading import Reading

from ..figures.trials import TrialFigures
from ..pages import parts
from ..styles import GRID
from .live_table import LiveTable

PALETTES = ["Blues", "Spectral_r", "viridis", "cividis", "magma", "Greens", "RdYlBu_r"]
MEASURES = {"as reported (annealed)": "value", "distortion + rate": "unweighted", "distortion": "distortion",
            "rate": "rate"}  # fmt: skip
FURTHER = {"Loss by trial": "history", "Loss by number of topics": "topics", "Parallel coordinates": "parallel",
           "What matters": "importance"}  # fmt: skip
FIRST = ("number", "state", "value", "num_topics")  # columns
LAST = ("epochs_trained", "seconds", "device", "retry_of")
MORE = 1.25  # how many more completed trials, to tell again what matters
TABLE_EVERY = 2.0  # seconds between two updates of the table


class TrialsView:
    """Figures of the trials and their table, which show the same selection.

    Parameters
    ----------
    chosen
        Called with the numbers of the trials that somebody selected, in a figure or in the table.
    weigh
        Computes what matters for the loss, in a thread, for those who want to see it.
    actions
        Widgets that stand above the table.

    Attributes
    ----------
    upper
        Pareto front and curves.
    lower
        Table and further figures, once `complete` was called.
    """

    def __init__(
        self, chosen: Callable[[list[int]], None], weigh: Callable[[Reading], ImportanceInfo], *actions: Any
    ) -> None:
        self.chosen, self.weigh = chosen, weigh
        self.reading: Reading | None = None
        self.shown: list[dict[str, Any]] = []  # trials that are drawn
        self._quiet = False
        self._weighing = False
        self._weighed: int | None = None  # completed trials, when it was last told what matters
        self.figures = TrialFigures()
        self.figures.on_select = self._selected_in_figure
        self._make_controls()
        self.table = LiveTable(
            TABLE_EVERY, self._selected_in_table, header_filters=True, pagination="remote", page_size=12,
            selectable=True,
        )  # fmt: skip
        self.csv = pmui.FileDownload(
            callback=self._csv, filename="trials.csv", label="CSV", icon="download", variant="text", size="small",
        )  # fmt: skip
        self.actions = actions
        self.upper = pn.Column(
            self.controls, self.figures.pane("pareto"), self.curve_controls, self.figures.pane("curves"),
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.lower = pn.Column(sizing_mode="stretch_width", margin=0)

    def _make_controls(self) -> None:
        small: dict[str, Any] = {"size": "small", "sizing_mode": "stretch_width", "margin": (10, 10, 2, 10)}
        self.x = pmui.Select(label="x", options=["num_topics"], value="num_topics", **small)
        self.y = pmui.Select(label="y", options=["value"], value="value", **small)
        self.hue = pmui.Select(label="Colour", options=["number"], value="number", **small)
        self.palette = pmui.Select(label="Palette", options=PALETTES, value="Blues", **small)
        self.log_x = pmui.Switch(label="log x", value=False, margin=(8, 10))
        self.log_y = pmui.Switch(label="log y", value=False, margin=(8, 10))
        self.front = pmui.Switch(label="Number the Pareto front only", value=True, margin=(8, 10))
        self.pruned = pmui.Switch(label="Pruned trials", value=True, margin=(8, 10))
        self.controls = pn.Column(
            pn.Column(self.x, self.y, self.hue, self.palette, stylesheets=[GRID], sizing_mode="stretch_width"),
            pn.FlexBox(self.log_x, self.log_y, self.front, self.pruned, sizing_mode="stretch_width"),
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.measure = pmui.Select(label="Curves show", options=MEASURES, value="value", **small)
        self.curve_hue = pmui.Select(label="Colour of curves", options=["value"], value="value", **small)
        self.curve_palette = pmui.Select(label="Palette of curves", options=PALETTES, value="Spectral_r", **small)
        self.log_hue = pmui.Switch(label="log colours", value=False, margin=(14, 10))
        self.curve_controls = pn.Column(
            self.measure, self.curve_hue, self.curve_palette, self.log_hue, stylesheets=[GRID],
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        wired = {
            "x": self.x, "y": self.y, "hue": self.hue, "palette": self.palette, "log_x": self.log_x,
            "log_y": self.log_y, "label_pareto_front": self.front, "include_pruned_trials": self.pruned,
            "measure": self.measure, "curve_hue": self.curve_hue, "curve_palette": self.curve_palette,
            "log_curve_hue": self.log_hue,
        }  # fmt: skip
        for name, widget in wired.items():
            widget.param.watch(lambda e, name=name: self._set(name, e.new), "value")
        self.figures.set_view(**{name: widget.value for name, widget in wired.items()})

    def _set(self, name: str, value: Any) -> None:
        if not self._quiet and value is not None:
            parts.in_turn(lambda: self.figures.set_view(**{name: value}))

    def complete(self) -> None:
        """Add what is not needed to begin to look: the table, and further figures, one at a time."""
        if self.lower.objects:
            return
        self._fill_table()
        place = pn.Column(self.figures.pane("history"), sizing_mode="stretch_width", margin=0)
        which = pmui.RadioButtonGroup(options=FURTHER, value="history", size="small", margin=(10, 10))

        def choose(name: str) -> None:
            place.objects = [self.figures.pane(name)]
            if self.reading is not None:
                self._weigh(self.reading)

        pn.bind(choose, which, watch=True)
        heading = parts.markup("table", "<h2>Trials</h2>", sizing_mode=None, margin=(8, 10))
        self.lower.objects = [
            pn.FlexBox(heading, self.csv, *self.actions, align_items="center"), self.table.view, which, place,
        ]  # fmt: skip

    # --- what is new ------------------------------------------------------------------------------

    def update(self, reading: Reading) -> None:
        """Draw what is new; zoom and selection stay."""
        if reading is self.reading:
            return
        self.reading = reading
        self.shown = [t for t in reading.trials if t["number"] not in reading.hidden]
        self.figures.update(self.shown, reading.curves)
        self._offer_names()
        if self.table.table is not None:
            self.table.select(self.figures.selected)
            self._fill_table()
        self._weigh(reading)

    def _weigh(self, reading: Reading) -> None:
        """Say what matters for the loss, to those who look; anew once there are many more trials."""
        n = reading.counts.get("COMPLETE", 0)
        seen = "importance" in self.figures.made
        if not seen or self._weighing or (self._weighed is not None and n < max(ENOUGH, MORE * self._weighed)):
            return
        self._weighing, self._weighed = True, n

        def done(importance: ImportanceInfo) -> None:
            self._weighing = False
            if self.reading is not None:
                self.figures.show_importance(importance)

        def failed(_: str) -> None:
            self._weighing = False

        parts.in_thread(lambda: self.weigh(reading), done, failed)

    def _offer_names(self) -> None:
        names = list(self.figures.names)
        if names == self.x.options:
            return
        self._quiet = True
        numbers = [n for n, is_number in self.figures.names.items() if is_number]
        for widget, able in ((self.x, numbers), (self.y, numbers), (self.hue, names), (self.curve_hue, names)):
            if able and widget.options != able:
                value = widget.value if widget.value in able else able[0]
                widget.param.update(options=able, value=value)
        self._quiet = False

    def _fill_table(self) -> None:
        self.table.show(lambda: frame_of(self.shown))

    def _csv(self) -> Any:
        text = frame_of(self.reading.trials, None).to_csv(index=False) if self.reading is not None else ""
        return io.StringIO(text)

    # --- selection ----------------------------------------------------------------------------------

    def select(self, numbers: list[int]) -> None:
        """Select trials everywhere; those that are not drawn are left out."""
        drawn = {t["number"] for t in self.shown}
        told = [n for n in numbers if n in drawn]
        self.figures.select(told)
        self.table.select(told)

    def _selected_in_figure(self, numbers: list[int]) -> None:
        self.table.select(numbers)
        self.chosen(numbers)

    def _selected_in_table(self, numbers: list[int]) -> None:
        self.figures.select(numbers)
        self.chosen(numbers)


def frame_of(trials: list[dict[str, Any]], digits: int | None = 6) -> pd.DataFrame:
    """Return the table of trials: first what they are, then what was tried, then what it took.

    Parameters
    ----------
    trials
        As a reading tells them.
    digits
        Of each number, counted from the first that is not 0; None: all.
    """
    frame = pd.DataFrame(trials).drop(columns=["elbo"], errors="ignore")
    first, last = [c for c in FIRST if c in frame], [c for c in LAST if c in frame]
    frame = frame[[*first, *(c for c in frame if c not in {*first, *last, "weights", "change"}), *last]]
    if digits is not None:
        frame = frame.assign(**{c: _rounded(v.to_numpy(), digits) for c, v in frame.select_dtypes("float").items()})
    return frame.rename(columns={"number": "trial", "epochs_trained": "epochs"})


def _rounded(values: np.ndarray, digits: int) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (digits - 1 - np.floor(np.log10(np.abs(values))))
        rounded = np.round(values * scale) / scale
    return np.where(np.isfinite(rounded), rounded, values)
