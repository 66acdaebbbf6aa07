"""Cells, drawn with matplotlib, for where no script runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .raster import Paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 50_000  # cells that are drawn, of more a sample
NAMED = 12  # categories in the legend
NONE = "#bbbbbb"


def draw_cells(xy: np.ndarray, paint: Paint, figsize: tuple[float, float] = (7, 5)) -> Figure:
    """Draw cells (N x 2) in their colours."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=figsize, layout="constrained")
    ax = figure.add_subplot()
    rows = np.random.default_rng(0).permutation(len(xy))[:MOST]  # no category lies above another
    x, y = xy[rows, 0], xy[rows, 1]
    size = float(np.clip(8000 / max(len(rows), 1), 1, 20))
    if paint.numbers is not None:
        v = paint.numbers[rows]
        unknown = ~np.isfinite(v)
        ax.scatter(x[unknown], y[unknown], s=size, c=NONE, lw=0)
        drawn = ax.scatter(x, y, s=size, c=v, cmap="cividis", vmin=paint.low, vmax=paint.high, lw=0)
        figure.colorbar(drawn, ax=ax, label=paint.title, shrink=0.6)
    elif paint.codes is not None:
        colours = np.array([*paint.colours, NONE])
        ax.scatter(x, y, s=size, c=colours[paint.codes[rows]], lw=0)  # -1: the last one
        n = np.bincount(paint.codes[paint.codes >= 0], minlength=len(paint.levels))
        shown = np.argsort(-n, kind="stable")[:NAMED]
        handles = [Line2D([], [], ls="", marker="o", ms=5, color=paint.colours[i]) for i in shown]
        names = [_plain(paint.levels[i]) for i in shown]
        ax.legend(handles, names, title=_plain(paint.title), frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    return figure


def _plain(text: str) -> str:
    """Return text of data, which is no formula, nor to be left out of a legend."""
    return " " + text.replace("$", r"\$")
