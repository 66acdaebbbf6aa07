"""Cells on two axes, coloured by one thing at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from bokeh.models import BasicTicker, ColorBar, ColumnDataSource, HoverTool, LinearColorMapper
from bokeh.plotting import figure

from .colours import SEQUENTIAL, categories
from .saving import can_be_saved

MANY = 20_000  # cells from which WebGL pays


class Embedding:
    """A scatter of cells.

    Attributes
    ----------
    root
        To show.
    source
        Columns ``x``, ``y``, ``value`` (as shown on hover) and ``colour`` (drawn).
    legend
        Names and colours of the categories shown; empty for numbers.
    """

    def __init__(self, xy: np.ndarray, names: pd.Index) -> None:
        n = len(xy)
        self.legend: list[tuple[str, str]] = []
        self.source = ColumnDataSource(
            {
                "x": xy[:, 0],
                "y": xy[:, 1],
                "name": names.to_numpy(str),
                "value": [""] * n,
                "colour": ["gray"] * n,
            }
        )
        self.root = figure(
            height=560, sizing_mode="stretch_width", min_width=280, match_aspect=True,
            tools="pan,wheel_zoom,box_zoom,reset",
            output_backend="webgl" if n > MANY else "canvas",
        )  # fmt: skip
        self.root.axis.visible = False
        self.root.grid.visible = False
        can_be_saved(self.root, "cells")
        self.root.outline_line_color = None
        size = float(np.clip(500 / np.sqrt(n) / 3, 2, 7))
        glyph = self.root.scatter(
            "x", "y", source=self.source, size=size, fill_color="colour", line_color=None, fill_alpha=0.85
        )
        self.root.add_tools(HoverTool(renderers=[glyph], tooltips=[("cell", "@name"), ("value", "@value")]))
        self._mapper = LinearColorMapper(palette=SEQUENTIAL, low=0, high=1)
        self._bar = ColorBar(
            color_mapper=self._mapper, ticker=BasicTicker(desired_num_ticks=5), width=10, label_standoff=6,
            background_fill_alpha=0, visible=False,
        )  # fmt: skip
        self.root.add_layout(self._bar, "right")

    def update(self, title: str, values: pd.Series) -> None:
        """Colour by a column: numbers by a scale, anything else by category; the view stays."""
        self.root.title.text = title
        self.legend = []
        numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        if numeric:
            self._numbers(values.to_numpy(float))
        else:
            self._categories(values.astype("category"))
        self._bar.visible = numeric

    def _numbers(self, v: np.ndarray) -> None:
        finite = v[np.isfinite(v)]
        low, high = (float(finite.min()), float(np.quantile(finite, 0.995))) if len(finite) else (0.0, 1.0)
        if not high > low:
            high = float(finite.max()) if len(finite) and finite.max() > low else low + 1
        self._mapper.update(low=low, high=high)
        palette = np.array(self._mapper.palette)
        at = np.clip((v - low) / (high - low), 0, 1)
        colour = np.where(np.isfinite(v), palette[np.nan_to_num(at * (len(palette) - 1)).astype(int)], "#bbbbbb")
        self._patch(colour.tolist(), [f"{x:.4g}" for x in v])

    def _categories(self, v: pd.Series) -> None:
        levels = [str(c) for c in v.cat.categories]
        colours = np.array([*categories(len(levels)), "#bbbbbb"])
        self._patch(colours[v.cat.codes].tolist(), v.astype(str).tolist())
        self.legend = list(zip(levels, colours.tolist(), strict=False))

    def _patch(self, colour: list[str], value: list[str]) -> None:
        self.source.data = {**self.source.data, "colour": colour, "value": value}
