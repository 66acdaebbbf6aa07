"""Cells on two axes, coloured by one thing at a time: as points, or, where they are many, as an image.

What is sent for an image does not grow with the number of cells. It is drawn anew for what is seen when somebody has
zoomed in, and gives way to points where few cells are seen.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from bokeh.events import RangesUpdate, Reset, SelectionGeometry
from bokeh.models import (
    BasicTicker,
    BoxSelectTool,
    ColorBar,
    ColumnDataSource,
    CustomJSHover,
    DataRange1d,
    HoverTool,
    LassoSelectTool,
    LinearColorMapper,
)  # fmt: skip
from bokeh.palettes import all_palettes
from bokeh.plotting import figure

from .colours import SEQUENTIAL, categories
from .raster import Image, Paint, Raster, Window, inside, rgb
from .saving import can_be_saved

MANY = 30_000  # cells above which an image is drawn
FEW = 15_000  # cells seen of an image, below which they are drawn as points
GRAY = "#bbbbbb"
FADED = "#9a9a9a30"
PALETTE = all_palettes["Cividis"][256]

# What is under the pointer, of an image.
_VALUE = """
if (!isFinite(value)) return "–"
if (levels.length) return levels[value] ?? "–"
return Number(value.toPrecision(4)).toString()
"""


def paint_of(title: str, values: pd.Series) -> Paint:
    """Say how a column colours cells: numbers by a scale, anything else by category."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        v = values.to_numpy(np.float32, na_value=np.nan)
        low, high = scale_of(v)
        return Paint(title, numbers=v, low=low, high=high)
    c = values.astype("category").cat
    levels = tuple(str(x) for x in c.categories)
    return Paint(title, codes=c.codes.to_numpy(), levels=levels, colours=tuple(categories(len(levels))))


def scale_of(v: np.ndarray) -> tuple[float, float]:
    """Return the ends of a scale; a few cells far above the others don't darken them."""
    finite = v[np.isfinite(v)]
    if not len(finite):
        return 0.0, 1.0
    low, most = float(finite.min()), float(finite.max())
    some = finite if len(finite) < 200_000 else finite[:: len(finite) // 100_000]
    high = float(np.quantile(some, 0.995))
    if not high > low:
        high = most if most > low else low + 1
    return low, high


class Embedding:
    """Cells on two axes.

    Parameters
    ----------
    xy
        N x 2 coordinates.
    names
        Of the cells, or what gives them once they are wanted.
    many
        Cells above which an image is drawn.

    Attributes
    ----------
    root
        To show.
    source
        Of points: columns ``x``, ``y``, ``name``, ``value`` (as shown on hover) and ``colour``.
    picture
        Of the image: ``image``, ``cells`` and ``value`` by pixel; empty where points are drawn.
    legend
        Names and colours of the categories shown; empty for numbers.
    on_select
        Called with which cells somebody has drawn around, N booleans.
    """

    def __init__(
        self, xy: np.ndarray, names: pd.Index | np.ndarray | Callable[[], np.ndarray], many: int = MANY,
        height: int = 560,
    ) -> None:  # fmt: skip
        self.raster = Raster(xy)
        self.n = len(xy)
        self.as_image = self.n > many
        self._names = names if callable(names) else (lambda: np.asarray(names, str))
        self.legend: list[tuple[str, str]] = []
        self.on_select: Callable[[np.ndarray], None] | None = None
        self.window: Window = self.raster.whole
        self.paint = Paint("", numbers=np.full(self.n, np.nan, np.float32))
        self.meant: np.ndarray | None = None
        self.source = ColumnDataSource({"x": [], "y": [], "name": [], "value": [], "colour": []})
        self.picture = ColumnDataSource({"image": [], "cells": [], "value": [], "x": [], "y": [], "dw": [], "dh": []})
        whole = self.raster.whole
        frame = ColumnDataSource({"x": [whole.x0, whole.x1], "y": [whole.y0, whole.y1]})
        self.root = figure(
            height=height, sizing_mode="stretch_width", min_width=280, match_aspect=True,
            tools="pan,wheel_zoom,box_zoom,reset", x_range=DataRange1d(range_padding=0.0),
            y_range=DataRange1d(range_padding=0.0),
            output_backend="webgl" if self.n > FEW else "canvas",
        )  # fmt: skip
        corners = self.root.scatter("x", "y", source=frame, fill_color=None, line_color=None)
        self.root.x_range.renderers = self.root.y_range.renderers = [corners]  # what is seen first, and after a reset
        self.root.axis.visible = False
        self.root.grid.visible = False
        self.root.outline_line_color = None
        self._image = self.root.image_rgba(image="image", source=self.picture, x="x", y="y", dw="dw", dh="dh")
        self._dots = self.root.scatter(
            "x", "y", source=self.source, size=self._size(self.n), fill_color="colour", line_color=None,
            fill_alpha=0.9,
        )  # fmt: skip
        for renderer in (self._dots, self._image, corners):
            renderer.nonselection_glyph = None  # what is selected is shown by colours, of points and image alike
        self.root.add_tools(LassoSelectTool(renderers=[corners], continuous=False), BoxSelectTool(renderers=[corners]))
        # what is told on hover is text of the data
        self.root.add_tools(HoverTool(renderers=[self._dots], tooltips=[("cell", "@name"), ("value", "@value")]))
        self._told = CustomJSHover(args={"levels": []}, code=_VALUE)
        if self.as_image:
            self.root.add_tools(
                HoverTool(
                    renderers=[self._image], tooltips=[("cells", "@cells"), ("value", "@value{custom}")],
                    formatters={"@value": self._told},
                )
            )  # fmt: skip
        can_be_saved(self.root, "cells")
        self._mapper = LinearColorMapper(palette=SEQUENTIAL, low=0, high=1)
        self._bar = ColorBar(
            color_mapper=self._mapper, ticker=BasicTicker(desired_num_ticks=5), width=10, label_standoff=6,
            background_fill_alpha=0, visible=False,
        )  # fmt: skip
        self.root.add_layout(self._bar, "right")
        self.root.on_event(SelectionGeometry, self._selected)
        if self.as_image:
            self.root.on_event(RangesUpdate, self._ranges)
            self.root.on_event(Reset, lambda _: self._see(self.raster.whole))

    def update(self, title: str, values: pd.Series) -> None:
        """Colour by a column; the view stays."""
        self.show(paint_of(title, values))

    def show(self, paint: Paint, meant: np.ndarray | None = None) -> None:
        """Colour cells; the view stays.

        Parameters
        ----------
        paint
            By what.
        meant
            Which cells are meant, N booleans; the others fade. None: all.
        """
        self.paint, self.meant = paint, meant
        self.legend = list(zip(paint.levels, paint.colours, strict=True)) if paint.codes is not None else []
        # All at once, so that the browser lays the page out once.
        self.root.title.text = paint.title
        numeric = paint.numbers is not None
        if numeric:
            self._mapper.update(low=paint.low, high=paint.high)
        if self._bar.visible != numeric:
            self._bar.visible = numeric
        self._draw()

    # --- what is seen -----------------------------------------------------------------------------

    def _ranges(self, event: RangesUpdate) -> None:
        self._see(Window(event.x0, event.x1, event.y0, event.y1))

    def _see(self, window: Window) -> None:
        whole = self.raster.whole
        cut = Window(
            max(window.x0, whole.x0), min(window.x1, whole.x1), max(window.y0, whole.y0), min(window.y1, whole.y1)
        )
        if cut == self.window or not (cut.x1 > cut.x0 and cut.y1 > cut.y0):
            return
        self.window = cut
        self._draw()

    def _draw(self) -> None:
        if not self.as_image:
            self._draw_points(None)
            return
        seen = None
        if self.window != self.raster.whole:
            within = self.raster.within(self.window)
            seen = np.flatnonzero(within) if within.sum() <= FEW else None
        if seen is None:
            self._draw_image(self.raster.draw(self.paint, self.window, _BYTES, self.meant))
            if len(self.source.data["x"]):
                self.source.data = {name: [] for name in self.source.data}
        else:
            self._draw_points(seen)
            if len(self.picture.data["x"]):
                self.picture.data = {name: [] for name in self.picture.data}

    def _draw_image(self, image: Image) -> None:
        w = image.window
        self._told.args = {"levels": list(self.paint.levels)}
        self.picture.data = {
            "image": [image.rgba], "cells": [image.cells], "value": [image.value],
            "x": [w.x0], "y": [w.y0], "dw": [w.x1 - w.x0], "dh": [w.y1 - w.y0],
        }  # fmt: skip

    def _draw_points(self, seen: np.ndarray | None) -> None:
        at: Any = slice(None) if seen is None else seen
        colour, value = coloured(self.paint, at, None if self.meant is None else self.meant[at])
        x, y = self.raster.xy[:, at]
        before = self.source.data["x"]
        if seen is None and len(before) == self.n:
            self.source.data = {**self.source.data, "colour": colour, "value": value}
            return
        self._dots.glyph.size = self._size(len(x))
        self.source.data = {"x": x, "y": y, "name": self._names()[at], "value": value, "colour": colour}

    def _size(self, n: int) -> float:
        return float(np.clip(500 / np.sqrt(max(n, 1)) / 3, 2.5, 7))

    # --- what is drawn around -----------------------------------------------------------------------

    def _selected(self, event: SelectionGeometry) -> None:
        if event.final and self.on_select is not None and event.geometry.get("type") in ("rect", "poly"):
            self.on_select(inside(self.raster.xy, event.geometry))


_BYTES = rgb(PALETTE)


def coloured(paint: Paint, at: Any, meant: np.ndarray | None) -> tuple[list[str], list[str]]:
    """Return colour and value, in words, of some cells."""
    if paint.numbers is not None:
        v = paint.numbers[at]
        palette = np.array(PALETTE)
        share = np.clip((v - paint.low) / (paint.high - paint.low), 0, 1)
        known = np.isfinite(v)
        colour = np.where(known, palette[np.nan_to_num(share * (len(palette) - 1)).astype(int)], GRAY).astype(object)
        value = [f"{x:.4g}" for x in v]
    else:
        code = paint.codes[at]
        colour = np.array([*paint.colours, GRAY], object)[code]
        value = np.array([*paint.levels, "–"], object)[code].tolist()
    if meant is not None:
        colour[~meant] = FADED
    return colour.tolist(), value


def legend_html(entries: list[tuple[str, str]]) -> str:
    """Return a legend as HTML; names come from the data."""
    return "".join(f'<span><i style="background:{c}"></i>{html.escape(name)}</span>' for name, c in entries)
