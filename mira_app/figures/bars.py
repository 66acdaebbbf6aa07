"""A number for each of several names: topics of a feature, topics of a selection against the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from bokeh.events import Tap
from bokeh.models import ColumnDataSource, FactorRange, HoverTool
from bokeh.plotting import figure
from bokeh.transform import dodge

from .heatmap import unique
from .saving import can_be_saved

OTHERS = "#9a9a9a"


class Bars:
    """Bars by name, one or two of each.

    Parameters
    ----------
    title, name, what
        In words; name of the files it is saved as; what a number is, with its unit.
    series
        Names of the numbers of each bar, the first in the bar's colour, the second gray.
    on_click
        Called with the position of the bar that somebody has clicked.

    Attributes
    ----------
    root
        To show.
    source
        Columns ``name``, ``colour``, and one for each of the series.
    """

    def __init__(
        self, title: str, name: str, what: str, series: Sequence[str] = ("value",),
        on_click: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        self.series, self.on_click = list(series), on_click
        self.source = ColumnDataSource({"name": [], "colour": [], **{s: [] for s in self.series}})
        self.root = figure(
            height=260, sizing_mode="stretch_width", min_width=240, title=title, x_range=FactorRange(),
            tools="reset", toolbar_location=None, y_axis_label=what,
        )  # fmt: skip
        width = 0.8 / len(self.series)
        for i, s in enumerate(self.series):
            at = (i - (len(self.series) - 1) / 2) * width
            bars = self.root.vbar(
                dodge("name", at, range=self.root.x_range), top=s, width=width * 0.95, source=self.source,
                fill_color="colour" if i == 0 else OTHERS, line_color=None,
                legend_label=s if len(self.series) > 1 else "",
            )  # fmt: skip
            self.root.add_tools(HoverTool(renderers=[bars], tooltips=[("", "@name"), (s, f"@{{{s}}}{{0.0000}}")]))
        if len(self.series) > 1:
            legend = self.root.legend
            legend.background_fill_alpha = legend.border_line_alpha = 0
            legend.label_text_font_size, legend.orientation, legend.location = "11px", "horizontal", "top_right"
        else:
            self.root.legend.visible = False
        self.root.grid.grid_line_alpha = 0.3
        self.root.xgrid.visible = False
        self.root.outline_line_color = None
        self.root.xaxis.major_label_orientation = 0.9
        can_be_saved(self.root, name)
        self.root.on_event(Tap, self._tapped)

    def update(
        self, title: str, names: Sequence[str], colours: Sequence[str], values: Mapping[str, Sequence[float]]
    ) -> None:
        """Show numbers of each series."""
        self.root.title.text = title
        shown = unique(names)
        self.root.x_range.factors = shown
        self.source.data = {
            "name": shown,
            "colour": list(colours),
            **{s: np.asarray(values[s], float) for s in self.series},
        }

    def _tapped(self, event: Tap) -> None:
        if self.on_click is not None and event.x is not None and 0 <= event.x < len(self.root.x_range.factors):
            self.on_click(int(event.x))
