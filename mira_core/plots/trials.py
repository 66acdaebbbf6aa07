"""The trials of a tuning, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .trials_info import (
    HueInfo,
    ImportanceInfo,
    Trials,
    column,
    completed,
    curves_info,
    extent,
    extent_of_curves,
    history_info,
    hue_info,
    importance_info,
    on_front,
    parallel_info,
    pareto_info,
    topics_info,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna.trial import FrozenTrial

__all__ = [
    "column", "curves_info", "history_info", "hue_info", "importance_info", "on_front", "parallel_info", "pareto_info",
    "plot_history", "plot_importance", "plot_intermediate_values", "plot_parallel_coordinates", "plot_pareto_front",
    "plot_topic_counts", "topics_info",
]  # fmt: skip

LOSS = "held-out loss (nats per cell)"
BEST = "tab:orange"
LOOKS: dict[str, dict[str, Any]] = {  # of states; told apart by their shapes, too
    "COMPLETE": {"marker": "o", "color": "tab:blue"},
    "PRUNED": {"marker": "^", "color": "0.6"},
    "RUNNING": {"marker": "o", "facecolors": "none", "edgecolors": "tab:blue"},
    "FAIL": {"marker": "x", "color": "tab:red"},
}


def plot_intermediate_values(
    trials: Trials,
    intermediate: Mapping[int, Mapping[int, float]],
    *,
    palette: str = "Spectral_r",
    hue: str = "value",
    ax: Axes | None = None,
    figsize: tuple[float, float] = (10, 7),
    log_hue: bool = False,
    na_color: str = "lightgrey",
    add_legend: bool = True,
    vmax: float | None = None,
    vmin: float | None = None,
    **plot_kwargs: Any,
) -> Axes:
    """Draw the score of every trial at each epoch."""
    info = curves_info(trials, intermediate, hue, log_hue)
    ax = _axes(ax, figsize)
    colours = _Colours(info.hue, palette, na_color, vmin, vmax)
    for (epochs, scores), colour in zip(info.curves, colours.of_each(), strict=True):
        ax.plot(epochs, scores, **{"color": colour, "lw": 1.2, **plot_kwargs})
    ax.set(xlabel="epoch", ylabel=LOSS)
    if info.curves:
        _set_ylim(ax, *extent_of_curves([s for _, s in info.curves]))
    if add_legend:
        colours.legend(ax, f"log {hue}" if log_hue else hue)
    return ax


def plot_pareto_front(
    trials: Trials,
    *,
    x: str = "num_topics",
    y: str = "elbo",
    hue: str = "number",
    ax: Axes | None = None,
    figsize: tuple[float, float] = (7, 7),
    palette: str = "Blues",
    na_color: str = "lightgrey",
    size: float = 100,
    alpha: float = 0.8,
    add_legend: bool = True,
    label_pareto_front: bool = False,
    include_pruned_trials: bool = True,
) -> Axes:
    """Draw one attribute of the trials against another, numbered."""
    info = pareto_info(trials, x, y, hue, include_pruned_trials)
    ax = _axes(ax, figsize)
    colours = _Colours(info.hue, palette, na_color)
    ax.scatter(info.x, info.y, c=colours.of_each(), s=size, alpha=alpha, edgecolors="0.2", linewidths=0.5)
    for number, at_x, at_y, front in zip(info.numbers, info.x, info.y, info.on_front, strict=True):
        if (front or not label_pareto_front) and np.isfinite(at_x + at_y):
            ax.annotate(str(number), (at_x, at_y), ha="center", va="center", fontsize=7)
    ax.set(xlabel=x, ylabel=y)
    if add_legend:
        colours.legend(ax, hue)
    return ax


def plot_history(
    trials: Trials,
    intermediate: Mapping[int, Mapping[int, float]] | None = None,
    *,
    ax: Axes | None = None,
    figsize: tuple[float, float] = (10, 4),
    add_legend: bool = True,
) -> Axes:
    """Draw the loss of each trial in the order in which they began, and the best so far."""
    info = history_info(trials, intermediate)
    ax = _axes(ax, figsize)
    _states(ax, info.numbers, info.values, info.states)
    if len(info.best_values):
        ax.step(info.best_numbers, info.best_values, where="post", color=BEST, lw=2, label="best so far")
    ax.set(xlabel="trial", ylabel=LOSS)
    _set_ylim(ax, *extent(info.values, completed(trials)))
    if add_legend and len(trials):
        ax.legend(frameon=False)
    return ax


def plot_topic_counts(
    trials: Trials,
    intermediate: Mapping[int, Mapping[int, float]] | None = None,
    *,
    ax: Axes | None = None,
    figsize: tuple[float, float] = (10, 4),
    add_legend: bool = True,
) -> Axes:
    """Draw the loss of each trial by its number of topics, and the medians of the completed ones."""
    info = topics_info(trials, intermediate)
    ax = _axes(ax, figsize)
    _states(ax, info.topics, info.values, info.states)
    if len(info.by_topics):
        ax.plot(info.by_topics, info.medians, color=BEST, lw=2, label="median of the completed")
    ax.set(xlabel="topics", ylabel=LOSS)
    _set_ylim(ax, *extent(info.values, completed(trials)))
    if add_legend and len(trials):
        ax.legend(frameon=False)
    return ax


def plot_parallel_coordinates(
    trials: Trials,
    *,
    names: Sequence[str] | None = None,
    hue: str = "value",
    ax: Axes | None = None,
    figsize: tuple[float, float] = (10, 5),
    palette: str = "Spectral_r",
    na_color: str = "lightgrey",
    add_legend: bool = True,
    vmax: float | None = None,
    vmin: float | None = None,
    **plot_kwargs: Any,
) -> Axes:
    """Draw each trial as a line through one axis for each parameter and outcome."""
    info = parallel_info(trials, names, hue)
    ax = _axes(ax, figsize)
    colours = _Colours(info.hue, palette, na_color, vmin, vmax)
    places = range(len(info.axes))
    for line, colour in zip(info.positions, colours.of_each(), strict=True):
        ax.plot(places, line, **{"color": colour, "lw": 1.0, "alpha": 0.7, **plot_kwargs})
    for at, axis in zip(places, info.axes, strict=True):
        ax.axvline(at, color="0.3", lw=0.8)
        for value, y, above in ((axis.low, -0.02, "top"), (axis.high, 1.02, "bottom")):
            more = "≥ " if axis.beyond and y > 0 else ""
            ax.text(at, y, f"{more}{value:.4g}", ha="center", va=above, fontsize=8, color="0.3")
    labels = [a.name.replace("_", "_\n") + (" (log)" if a.log else "") for a in info.axes]  # narrow
    ax.set(ylim=(-0.08, 1.08), yticks=[], xticks=places, xticklabels=labels)
    ax.spines[["left", "bottom"]].set_visible(False)
    if add_legend:
        colours.legend(ax, hue)
    return ax


def plot_importance(
    trials: Sequence[FrozenTrial] | ImportanceInfo,
    *,
    ax: Axes | None = None,
    figsize: tuple[float, float] = (7, 3),
) -> Axes:
    """Draw the share of each parameter in the variance of the loss; or say why that is not known."""
    info = trials if isinstance(trials, ImportanceInfo) else importance_info(trials)
    ax = _axes(ax, figsize)
    names = list(info.shares)[::-1]
    bars = ax.barh(names, [info.shares[n] for n in names], color="tab:blue", height=0.6)
    ax.bar_label(bars, fmt="{:.0%}", padding=3, fontsize=8)
    ax.set(xlim=(0, 1.08), xlabel=f"share of the loss's variance, {info.trials} completed trials")
    if info.why:
        ax.set(yticks=[], xticks=[])
        ax.text(0.5, 0.5, info.why, ha="center", va="center", transform=ax.transAxes, wrap=True)
    return ax


def _states(ax: Axes, x: np.ndarray, y: np.ndarray, states: list[str]) -> None:
    for state, looks in LOOKS.items():
        if (at := np.array([s == state for s in states], dtype=bool)).any():
            ax.scatter(x[at], y[at], s=24, linewidths=1, label=state, **looks)


def _set_ylim(ax: Axes, low: float, high: float) -> None:
    ax.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low) + 1e-9)


def _axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.figure(figsize=figsize, layout="constrained").add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


class _Colours:
    """From hues to colours, and their legend."""

    def __init__(
        self, hue: HueInfo, palette: str, na_color: str, vmin: float | None = None, vmax: float | None = None
    ) -> None:
        import matplotlib as mpl

        self.hue, self.na_color = hue, na_color
        known = hue.values[np.isfinite(hue.values)]
        low = vmin if vmin is not None else (known.min() if known.size else 0.0)
        high = vmax if vmax is not None else (known.max() if known.size else 1.0)
        self.scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(low, max(high, low + 1e-12)), palette)

    def of_each(self) -> list[Any]:
        return [self.scale.to_rgba(v) if np.isfinite(v) else self.na_color for v in self.hue.values]

    def legend(self, ax: Axes, title: str) -> None:
        if self.hue.categories is None:
            if np.isfinite(self.hue.values).any():
                assert ax.figure is not None
                ax.figure.colorbar(self.scale, ax=ax, label=title, shrink=0.6)
            return
        for i, name in enumerate(self.hue.categories):
            ax.scatter([], [], color=self.scale.to_rgba(np.array(i)), label=name)
        ax.legend(title=title, frameon=False)
