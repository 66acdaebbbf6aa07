"""Topics drawn: on the cells, by a column, by their features; and how they were trained.

Shapes: N cells, K topics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ..colours import LINE, NONE, SECOND, categories
from ..records import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 30_000  # cells above which an image is drawn in place of as many dots
PIXELS = 700  # of such an image on each side
SMALL_PIXELS = 260  # of one in a small panel, where lone pixels of the other would be lost
SCALE = "cividis"
MOST_LEGEND = 60


class CellsInfo(NamedTuple):
    """Cells on two axes as they are drawn: places, N x 2, in an order in which no group lies above the others."""

    xy: np.ndarray
    order: np.ndarray
    size: float  # of a dot, in points squared


def cells_info(xy: np.ndarray) -> CellsInfo:
    """Decide how cells are drawn."""
    size = float(np.clip(40_000 / max(1, len(xy)), 1.0, 16.0))
    return CellsInfo(np.asarray(xy, float), np.random.default_rng(0).permutation(len(xy)), size)


def plot_main_topics(theta: np.ndarray, info: CellsInfo, *, ax: Axes, legend: bool = True) -> Axes:
    """Draw the cells in the colours of their largest topics."""
    main, colours = theta.argmax(1), categories(theta.shape[1])
    plot_categories(main, [f"topic {k}" for k in range(theta.shape[1])], info, colours, ax=ax, legend=legend)
    return ax


def plot_categories(
    codes: np.ndarray, names: Sequence[str], info: CellsInfo, colours: Sequence[str] | None = None, *, ax: Axes,
    legend: bool = True,
) -> Axes:  # fmt: skip
    """Draw the cells in the colours of categories, given by number; -1 has none."""
    from matplotlib.colors import to_rgba_array
    from matplotlib.lines import Line2D

    colours = list(colours if colours is not None else categories(len(names)))
    rgba = to_rgba_array([*colours, NONE])
    _dots(info, rgba[codes], ax)
    if legend and len(names) <= MOST_LEGEND:
        there = np.flatnonzero(np.bincount(codes[codes >= 0], minlength=len(names))).tolist()
        entries = [Line2D([], [], ls="", marker="o", ms=5, color=colours[i], label=str(names[i])) for i in there]
        ax.legend(handles=entries, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8,
                  ncols=math.ceil(len(entries) / 20), handletextpad=0.2, columnspacing=1.0)  # fmt: skip
    return ax


def plot_share(share: np.ndarray, info: CellsInfo, *, ax: Axes) -> float:
    """Draw the cells by their share of one topic, from 0 to nearly the greatest; return that end of the scale."""
    import matplotlib

    top = float(np.quantile(share, 0.995)) or float(share.max()) or 1.0
    palette = matplotlib.colormaps[SCALE]
    if len(share) > MANY:
        at, n = _pixels(info.xy, SMALL_PIXELS)
        hit = np.bincount(at, minlength=n * n)
        mean = np.bincount(at, weights=share, minlength=n * n) / np.maximum(hit, 1)
        rgba = palette(np.clip(mean / top, 0, 1))
        rgba[hit == 0] = 0
        _image(rgba, n, info.xy, ax)
    else:
        _dots(info, palette(np.clip(share / top, 0, 1)), ax)
    return top


def plot_shares(theta: np.ndarray, info: CellsInfo, *, panel: float = 2.2) -> Figure:
    """Draw each topic on the cells, in small panels of `panel` inches."""
    from matplotlib.figure import Figure

    K = theta.shape[1]
    columns = min(K, max(3, math.ceil(math.sqrt(K))))
    rows = math.ceil(K / columns)
    figure = Figure(figsize=(panel * columns, (panel + 0.25) * rows), layout="constrained")
    info = info._replace(size=max(0.5, info.size * (panel / 5) ** 2))  # of a dot, as the panel is smaller
    for k in range(K):
        ax = figure.add_subplot(rows, columns, k + 1)
        top = plot_share(theta[:, k], info, ax=ax)
        ax.set_title(f"topic {k}, 0 to {top:.2g}", fontsize=8)
    return figure


class TrainingInfo(NamedTuple):
    """Losses by epoch, nats per cell; `held_out` is NaN where no cells were."""

    epoch: np.ndarray
    loss: np.ndarray  # unweighted: distortion and rate
    distortion: np.ndarray
    rate: np.ndarray
    held_out: np.ndarray
    kl_weight: np.ndarray


def training_info(history: Sequence[EpochRecord]) -> TrainingInfo:
    """Collect what the curves show."""

    def of(name: str) -> np.ndarray:
        return np.array([math.nan if (v := getattr(r, name)) is None else v for r in history], float)

    d, r = of("distortion"), of("rate")
    return TrainingInfo(of("epoch"), d + r, d, r, of("held_out_loss"), of("kl_weight"))


def plot_training(history: Sequence[EpochRecord], *, figsize: tuple[float, float] = (9, 3.2)) -> Figure:
    """Draw the losses of the epochs, and what anneals them."""
    from matplotlib.figure import Figure

    info = training_info(history)
    figure = Figure(figsize=figsize, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    marker = "o" if len(info.epoch) < 3 else None
    left.plot(info.epoch, info.loss, color=LINE, lw=1.4, marker=marker, label="trained on")
    if np.isfinite(info.held_out).any():
        left.plot(info.epoch, info.held_out, color=SECOND, lw=1.4, marker=marker, label="held out")
        left.legend(frameon=False, fontsize=8)
    left.set_title("distortion and rate", fontsize=9)
    middle.plot(info.epoch, info.rate, color=LINE, lw=1.4, marker=marker)
    middle.set_title("rate", fontsize=9)
    right.plot(info.epoch, info.kl_weight, color=LINE, lw=1.4, marker=marker)
    right.set_title("weight of the rate", fontsize=9)
    for ax, unit in ((left, "nats per cell"), (middle, "nats per cell"), (right, "")):
        ax.set_xlabel("epoch", fontsize=8)
        ax.set_ylabel(unit, fontsize=8)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    if len(info.loss) > 3:  # the first epochs are far above the rest
        shown = np.concatenate([info.loss[1:], info.held_out[np.isfinite(info.held_out)][1:]])
        low, high = np.nanmin(shown), np.nanmax(shown)
        left.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9)
    return figure


def plot_topics_by(table: pd.DataFrame, *, ax: Axes) -> Axes:
    """Draw mean shares of topics by category, as of `mira_core.analysis.topics_by`."""
    shares = table.drop(columns="cells").to_numpy(float)
    image = ax.imshow(shares, cmap=SCALE, aspect="auto", vmin=0, vmax=max(float(shares.max()), 1e-9))
    ax.set_xticks(range(shares.shape[1]), [str(k) for k in range(shares.shape[1])], fontsize=8)
    ax.set_yticks(range(len(table)), [shortened(v) for v in table.index], fontsize=8)
    ax.set_xlabel("topic", fontsize=8)
    ax.set_ylabel(shortened(table.index.name), fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if shares.size <= 400:
        for (i, j), value in np.ndenumerate(shares):
            if value >= 0.01:
                dark = value < 0.6 * image.get_clim()[1]
                ax.text(j, i, f"{value:.2f}"[1:] if value < 0.995 else "1", ha="center", va="center", fontsize=6.5,
                        color="white" if dark else "black")  # fmt: skip
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02)
    bar.set_label("mean share", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    return ax


def plot_top_features(features: Sequence[Sequence[tuple[str, float]]], *, width: float = 2.2) -> Figure:
    """Draw the top features of each topic as bars of what they say about it (see `mira_core.analysis`).

    Parameters
    ----------
    features
        For each topic names and how much they say, in nats, the most telling first.
    width
        Of a panel, in inches.
    """
    from matplotlib.figure import Figure

    K, colours = len(features), categories(len(features))
    columns = min(K, 5)
    rows = math.ceil(K / columns)
    most = max((len(each) for each in features), default=1)
    figure = Figure(figsize=(width * columns, (0.16 * most + 0.5) * rows), layout="constrained")
    for k, each in enumerate(features):
        ax = figure.add_subplot(rows, columns, k + 1)
        at = np.arange(len(each))
        ax.barh(at, [value for _, value in each], color=colours[k], height=0.75)
        ax.set_yticks(at, [shortened(name, 18) for name, _ in each], fontsize=7)
        ax.invert_yaxis()
        ax.set_title(f"topic {k}", fontsize=8)
        ax.tick_params(axis="x", labelsize=6, length=2)
        ax.tick_params(axis="y", length=0)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def shortened(value: Any, most: int = 30) -> str:
    """Return text from data as it can be drawn: in a line, of printable letters, not too long."""
    text = "".join(c if c.isprintable() else " " for c in str(value)).strip()
    return text if len(text) <= most else f"{text[: most - 1]}…"


# --- dots -----------------------------------------------------------------------------------------


def _dots(info: CellsInfo, rgba: np.ndarray, ax: Axes) -> None:
    """Draw a dot for each cell, or where there are many a pixel, of the last of those that lie there."""
    if len(info.xy) > MANY:
        at, n = _pixels(info.xy, PIXELS)
        image = np.zeros((n * n, 4))
        image[at[info.order]] = rgba[info.order]
        _image(image, n, info.xy, ax)
        return
    x, y = info.xy[info.order].T
    ax.scatter(x, y, s=info.size, c=rgba[info.order], linewidths=0, rasterized=True)
    _bare(ax, *info.xy.min(0), *info.xy.max(0))


def _pixels(xy: np.ndarray, n: int) -> tuple[np.ndarray, int]:
    low, span = xy.min(0), np.maximum(np.ptp(xy, axis=0), 1e-12)
    column, row = np.minimum((xy - low) / span * n, n - 1).astype(np.int64).T
    return row * n + column, n


def _image(rgba: np.ndarray, n: int, xy: np.ndarray, ax: Axes) -> None:
    (left, bottom), (right, top) = xy.min(0), xy.max(0)
    shape = rgba.reshape(n, n, 4)
    ax.imshow(shape, origin="lower", extent=(left, right, bottom, top), aspect="auto", interpolation="nearest")
    _bare(ax, left, bottom, right, top)


def _bare(ax: Axes, left: float, bottom: float, right: float, top: float) -> None:
    pad = 0.03 * max(right - left, top - bottom, 1e-9)
    ax.set(xlim=(left - pad, right + pad), ylim=(bottom - pad, top + pad), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
