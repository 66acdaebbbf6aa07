"""Many cells as an image, computed here, so that what is sent does not grow with their number.

By `numpy.bincount`: a million cells take some hundredths of a second. Datashader gives the same, but its first image
comes seconds later, as it is compiled first, in every process anew.

Shapes: N cells, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.path import Path

FINEST, COARSEST = 560, 160  # pixels across
OTHERS = (0x9A, 0x9A, 0x9A, 70)  # red, green, blue, opacity of cells that are not meant
FAINTEST = 0.55  # opacity of a pixel with one cell, of those that show categories


class Window(NamedTuple):
    """What is seen of the plane."""

    x0: float
    x1: float
    y0: float
    y1: float


@dataclass(frozen=True)
class Paint:
    """What cells are coloured by.

    Attributes
    ----------
    title
        In words.
    numbers
        N numbers, NaN where there is none; or None.
    codes
        N numbers of categories, -1 where there is none; or None.
    levels, colours
        Name and colour of each category.
    low, high
        Ends of the scale of numbers.
    """

    title: str
    numbers: np.ndarray | None = None
    codes: np.ndarray | None = None
    levels: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Image:
    """An image of cells; rows from below, as Bokeh draws them.

    Attributes
    ----------
    rgba
        H x W colours, a byte each, packed.
    cells
        H x W numbers of cells.
    value
        H x W means of the numbers, or the category of most cells; NaN where there is none.
    """

    window: Window
    rgba: np.ndarray
    cells: np.ndarray
    value: np.ndarray


class Raster:
    """Puts cells into pixels.

    Parameters
    ----------
    xy
        N x 2 coordinates; cells without are drawn nowhere.
    """

    def __init__(self, xy: np.ndarray) -> None:
        self.xy = np.ascontiguousarray(xy.T, dtype=np.float32)  # by axis, as they are read
        finite = np.isfinite(self.xy).all(0)
        self.finite = None if finite.all() else finite
        shown = self.xy if self.finite is None else self.xy[:, finite]
        low, high = (shown.min(1), shown.max(1)) if shown.size else (np.zeros(2), np.ones(2))
        pad = np.maximum(0.02 * (high - low), 1e-6)
        self.whole = Window(*(float(v) for v in (low[0] - pad[0], high[0] + pad[0], low[1] - pad[1], high[1] + pad[1])))
        self._placed: tuple[Window, np.ndarray | None, np.ndarray, tuple[int, int], np.ndarray] | None = None

    def within(self, window: Window) -> np.ndarray:
        """Return which cells are seen."""
        x, y = self.xy
        return (x >= window.x0) & (x < window.x1) & (y >= window.y0) & (y < window.y1)

    def draw(self, paint: Paint, window: Window, palette: np.ndarray, meant: np.ndarray | None = None) -> Image:
        """Draw cells.

        Parameters
        ----------
        paint
            What they are coloured by.
        window
            What is seen.
        palette
            Colours of numbers from low to high, n x 3 bytes.
        meant
            Which cells are meant; the others are gray. None: all.
        """
        cells, pixel, shape, count = self._place(window)
        n_pixels = len(count)
        seen = (lambda v: v) if cells is None else (lambda v: v[cells])
        has = None if meant is None else seen(meant)
        value = np.full(n_pixels, np.nan, np.float32)
        rgba = np.zeros((n_pixels, 4), np.uint8)
        if paint.numbers is not None:
            v = seen(paint.numbers)
            known = np.isfinite(v) if has is None else np.isfinite(v) & has
            at, v = (pixel, v) if known.all() else (pixel[known], v[known])
            n = np.bincount(at, minlength=n_pixels)
            filled = n > 0
            value[filled] = np.bincount(at, weights=v, minlength=n_pixels)[filled] / n[filled]
            share = np.clip((value[filled] - paint.low) / (paint.high - paint.low), 0, 1)
            rgba[filled, :3] = palette[(share * (len(palette) - 1)).astype(int)]
            rgba[filled, 3] = 255
        else:
            code = seen(paint.codes)
            known = (code >= 0) if has is None else (code >= 0) & has
            at, code = (pixel, code) if known.all() else (pixel[known], code[known])
            which, level, n = most(at, code, max(1, len(paint.levels)))
            value[which] = level
            filled = np.zeros(n_pixels, bool)
            filled[which] = True
            rgba[which, :3] = rgb(paint.colours)[level] if len(paint.levels) else 0
            dense = max(float(np.quantile(n, 0.98)), 1.0) if len(n) else 1.0
            light = FAINTEST + (1 - FAINTEST) * np.minimum(np.log(n) / np.log(dense + 1), 1)
            rgba[which, 3] = (255 * light).astype(np.uint8)
        rgba[(count > 0) & ~filled] = OTHERS
        h, w = shape
        return Image(
            window, rgba.view(np.uint32).reshape(h, w),
            np.minimum(count, 65535).astype(np.uint16).reshape(h, w), value.reshape(h, w),
        )  # fmt: skip

    def _place(self, window: Window) -> tuple[np.ndarray | None, np.ndarray, tuple[int, int], np.ndarray]:
        """Return which cells are seen (None: all), the pixel of each, the shape, and cells by pixel."""
        if self._placed is not None and self._placed[0] == window:
            return self._placed[1:]
        x, y = self.xy
        cells = self.finite if window == self.whole else self.within(window)
        if cells is not None:
            cells = np.flatnonzero(cells)
            x, y = x[cells], y[cells]
        across = int(np.clip(1.2 * np.sqrt(len(x)), COARSEST, FINEST))
        wide, high = window.x1 - window.x0, window.y1 - window.y0
        w = across if wide >= high else max(1, round(across * wide / high))
        h = across if high >= wide else max(1, round(across * high / wide))
        column = ((x - np.float32(window.x0)) * np.float32(w / wide)).astype(np.int32)
        row = ((y - np.float32(window.y0)) * np.float32(h / high)).astype(np.int32)
        pixel = np.clip(row, 0, h - 1) * np.int32(w) + np.clip(column, 0, w - 1)
        count = np.bincount(pixel, minlength=w * h)
        self._placed = (window, cells, pixel, (h, w), count)
        return self._placed[1:]


def most(pixel: np.ndarray, code: np.ndarray, n_levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels with cells, the category of most cells of each (of equal ones the first), and how many."""
    key, n = np.unique(pixel.astype(np.int64) * n_levels + code, return_counts=True)
    if not len(key):
        return np.array([], int), np.array([], int), np.array([], int)
    at = key // n_levels
    first = np.flatnonzero(np.append(True, at[1:] != at[:-1]))
    greatest = np.maximum.reduceat(n, first)
    is_greatest = np.flatnonzero(n == np.repeat(greatest, np.diff(np.append(first, len(n)))))
    best = is_greatest[np.append(True, at[is_greatest][1:] != at[is_greatest][:-1])]
    return at[best], key[best] % n_levels, greatest


def rgb(colours: tuple[str, ...] | list[str]) -> np.ndarray:
    """Return colours such as #0072b2 as n x 3 bytes."""
    return np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours], np.uint8).reshape(-1, 3)


def inside(xy: np.ndarray, geometry: Mapping[str, Any]) -> np.ndarray:
    """Return which cells lie in what was drawn around them.

    Parameters
    ----------
    xy
        2 x N coordinates.
    geometry
        Of Bokeh's ``SelectionGeometry``: a rectangle or a polygon, in the units of the data.
    """
    x, y = xy
    if geometry.get("type") == "rect":
        x0, x1 = sorted((geometry["x0"], geometry["x1"]))
        y0, y1 = sorted((geometry["y0"], geometry["y1"]))
        return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    gx, gy = np.asarray(geometry["x"], float), np.asarray(geometry["y"], float)
    out = np.zeros(len(x), bool)
    if len(gx) < 3:
        return out
    near = np.flatnonzero((x >= gx.min()) & (x <= gx.max()) & (y >= gy.min()) & (y <= gy.max()))
    out[near] = Path(np.column_stack([gx, gy])).contains_points(np.column_stack([x[near], y[near]]))
    return out
