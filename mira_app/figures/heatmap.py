"""Numbers by row and column as colours: topics by category, topics by topics of another modality."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from bokeh.events import Tap
from bokeh.models import BasicTicker, ColorBar, ColumnDataSource, FactorRange, HoverTool, LinearColorMapper
from bokeh.palettes import all_palettes
from bokeh.plotting import figure

from .colours import SEQUENTIAL
from .saving import can_be_saved

DIVERGING = tuple(all_palettes["RdBu"][11])  # blue is high, which the colour-blind can tell from red


class Heatmap:
    """A table of numbers as colours.

    Parameters
    ----------
    title, name
        In words; name of the files it is saved as.
    what
        What a number is, as told on hover.
    diverging
        Whether the scale goes from -1 over 0 to 1.
    on_click
        Called with the names of a row and a column that somebody has clicked.

    Attributes
    ----------
    root
        To show.
    source
        Columns ``row``, ``column``, ``value``.
    """

    def __init__(
        self, title: str, name: str, what: str, diverging: bool = False,
        on_click: Callable[[str, str], None] | None = None,
    ) -> None:  # fmt: skip
        self.on_click = on_click
        self.source = ColumnDataSource({"row": [], "column": [], "value": []})
        self._rows: list[str] = []
        self._columns: list[str] = []
        self.root = figure(
            height=300, sizing_mode="stretch_width", min_width=240, title=title, x_range=FactorRange(),
            y_range=FactorRange(), tools="reset", toolbar_location=None,
        )  # fmt: skip
        self._mapper = LinearColorMapper(
            palette=DIVERGING if diverging else SEQUENTIAL, low=-1 if diverging else 0, high=1, nan_color="#bbbbbb"
        )
        self.diverging = diverging
        rects = self.root.rect(
            "column", "row", width=0.97, height=0.94, source=self.source, line_color=None,
            fill_color={"field": "value", "transform": self._mapper},
        )  # fmt: skip
        self.root.add_tools(
            HoverTool(renderers=[rects], tooltips=[("", "@row"), ("", "@column"), (what, "@value{0.000}")])
        )
        self.root.add_layout(
            ColorBar(color_mapper=self._mapper, ticker=BasicTicker(desired_num_ticks=4), width=10, label_standoff=6,
                     background_fill_alpha=0), "right",
        )  # fmt: skip
        self.root.grid.visible = False
        self.root.axis.axis_line_color = self.root.axis.major_tick_line_color = None
        self.root.outline_line_color = None
        self.root.xaxis.major_label_orientation = 0.9
        self.root.yaxis.axis_label = " "  # room for names, which may be wider once the page's font has come
        can_be_saved(self.root, name)
        self.root.on_event(Tap, self._tapped)

    def update(self, frame: pd.DataFrame) -> None:
        """Show a table, its first row on top."""
        self._rows, self._columns = unique(frame.index), unique(frame.columns)
        values = frame.to_numpy(float)
        self.root.height = int(np.clip(110 + 22 * len(self._rows), 180, 720))
        self.root.x_range.factors = self._columns
        self.root.y_range.factors = self._rows[::-1]
        if not self.diverging:
            finite = values[np.isfinite(values)]
            self._mapper.high = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
        self.source.data = {
            "row": np.repeat(self._rows, len(self._columns)).tolist(),
            "column": self._columns * len(self._rows),
            "value": values.ravel(),
        }

    def _tapped(self, event: Tap) -> None:
        if self.on_click is None or event.x is None or event.y is None or not self._rows:
            return
        column, row = int(event.x), len(self._rows) - 1 - int(event.y)
        if 0 <= column < len(self._columns) and 0 <= row < len(self._rows):
            self.on_click(self._rows[row], self._columns[column])


def unique(names: Sequence[object]) -> list[str]:
    """Return names as text, short enough for an axis; those that would be the same are numbered."""
    out: list[str] = []
    for name in names:
        text = str(name)
        text = text if len(text) <= 40 else text[:39] + "…"
        n = sum(t == text or t.startswith(f"{text} (") for t in out)
        out.append(f"{text} ({n + 1})" if n else text)
    return out
