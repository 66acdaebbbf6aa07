"""Figures of a run, as SVG and PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.description import categories_of, topics_by
from ..analysis.predicted import topics_of
from ..plots import topics as plots
from . import tables
from .run import FinishedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = {
    "main_topics": "the cells by their largest topic",
    "column": "the cells by the categories of a column",
    "topics": "each topic on the cells",
    "training": "losses by epoch",
    "topics_by_column": "mean topics of the cells in each category of a column",
    "top_features": "the features that say most about each topic, and how much",
}
BARS = 10  # features of each topic
INK = "#1c1c1e"


def write_figures(run: FinishedRun, folder: Path, told: Callable[[str], None] = lambda _: None) -> list[str]:
    """Write all figures into a folder, each as .svg and .png; return the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    with style():
        for name, figure in figures(run):
            told(name)
            for suffix in ("svg", "png"):
                figure.savefig(folder / f"{name}.{suffix}", dpi=200, bbox_inches="tight", metadata={"Date": None}
                               if suffix == "svg" else None)  # fmt: skip
                out.append(f"{name}.{suffix}")
    return out


def figures(run: FinishedRun) -> Iterator[tuple[str, Figure]]:
    """Draw them one after the other; those that need what the run has not are left out."""
    from matplotlib.figure import Figure

    info = plots.cells_info(run.xy)
    figure = Figure(figsize=(5, 5))
    plots.plot_main_topics(run.theta, info, ax=figure.add_subplot()).set_title(run.axes, fontsize=9)
    yield "main_topics", figure
    if run.column is not None:
        codes, levels = categories_of(run.cells.obs[run.column], run.column)
        figure = Figure(figsize=(5, 5))
        ax = figure.add_subplot()
        plots.plot_categories(codes, [plots.shortened(v) for v in levels], info, ax=ax)
        ax.set_title(plots.shortened(run.column), fontsize=9)
        yield "column", figure
    yield "topics", plots.plot_shares(run.theta, info)
    if run.history:
        yield "training", plots.plot_training(run.history)
    if run.column is not None:
        yield "topics_by_column", heatmap(run)
    yield "top_features", plots.plot_top_features(top_features(run))


def heatmap(run: FinishedRun) -> Figure:
    """Draw the mean topics of the cells in each category of the run's column."""
    from matplotlib.figure import Figure

    table = topics_by(run.cells, str(run.column))
    figure = Figure(figsize=(2.6 + 0.34 * (table.shape[1] - 1), 1.1 + 0.26 * len(table)), layout="constrained")
    plots.plot_topics_by(table, ax=figure.add_subplot())
    return figure


def top_features(run: FinishedRun, top: int = BARS) -> list[list[tuple[str, float]]]:
    """Return the top features of each topic, and how much they say."""
    table = tables.top_features(topics_of(run.cells), top)
    return [list(zip(each["name"], each["says"], strict=True)) for _, each in table.groupby("topic", sort=False)]


@contextmanager
def style(**more: Any) -> Iterator[None]:
    """Draw text as text, without taking dollars in names for mathematics."""
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "mira", "text.parse_math": False, "text.color": INK,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "font.family": "sans-serif", "axes.linewidth": 0.7, **more,
    }  # fmt: skip
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of names in letters that the font has not
        yield


def to_bytes(figure: Figure, form: str, **more: Any) -> bytes:
    """Return a figure as a file of a format, on a transparent ground."""
    out = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else None
    figure.savefig(out, format=form, transparent=True, metadata=metadata, **more)
    return out.getvalue()
