"""The trials of a tuning, drawn."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Trials = Sequence[Mapping[str, Any]]  # each trial's attributes


class HueInfo(NamedTuple):
    """What trials are coloured by: numbers (NaN for none), and what they stand for if they are categories."""

    values: np.ndarray
    categories: list[str] | None


class CurvesInfo(NamedTuple):
    """Epochs and scores of each trial with any, and what it is coloured by."""

    numbers: list[int]
    curves: list[tuple[np.ndarray, np.ndarray]]
    hue: HueInfo


class ParetoInfo(NamedTuple):
    """Points, what they are coloured by, and which are on the front of distortion and rate."""

    numbers: np.ndarray
    x: np.ndarray
    y: np.ndarray
    hue: HueInfo
    on_front: np.ndarray


def column(trials: Trials, name: str) -> list[Any]:
    """Return one attribute of each trial, None where it has none.

    Raises
    ------
    OptionError
        If no trial has it.
    """
    known = {k for t in trials for k in t}
    if trials and name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
        raise OptionError(f"trials have no attribute {name!r}; {hint}")
    return [t.get(name) for t in trials]


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if v is None else float(v) for v in values], dtype=float)


def hue_info(trials: Trials, name: str, log: bool = False) -> HueInfo:
    """Return what trials are coloured by."""
    values = column(trials, name)
    if any(isinstance(v, str) for v in values):
        categories = sorted({str(v) for v in values if v is not None})
        return HueInfo(_numbers([None if v is None else categories.index(str(v)) for v in values]), categories)
    numbers = _numbers(values)
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            numbers = np.where(numbers > 0, np.log(numbers), np.nan)
    return HueInfo(numbers, None)


def curves_info(
    trials: Trials, intermediate: Mapping[int, Mapping[int, float]], hue: str = "value", log_hue: bool = False
) -> CurvesInfo:
    """Compute what `plot_intermediate_values` draws."""
    begun = [t for t in trials if intermediate.get(t["number"])]
    curves = []
    for t in begun:
        epochs = sorted(intermediate[t["number"]])
        curves.append((np.array(epochs), np.array([intermediate[t["number"]][e] for e in epochs], dtype=float)))
    return CurvesInfo([t["number"] for t in begun], curves, hue_info(begun, hue, log_hue))


def pareto_info(
    trials: Trials, x: str = "num_topics", y: str = "elbo", hue: str = "number", include_pruned_trials: bool = True
) -> ParetoInfo:
    """Compute what `plot_pareto_front` draws."""
    states = {"COMPLETE", "PRUNED"} if include_pruned_trials else {"COMPLETE"}
    shown = [t for t in trials if t["state"] in states]
    return ParetoInfo(
        np.array([t["number"] for t in shown], dtype=int),
        _numbers(column(shown, x)), _numbers(column(shown, y)), hue_info(shown, hue), on_front(shown),
    )  # fmt: skip


def on_front(trials: Trials) -> np.ndarray:
    """Return which completed trials no other completed trial beats in both distortion and rate."""
    points = np.array([[t.get("distortion"), t.get("rate")] for t in trials], dtype=float).reshape(-1, 2)
    able = np.array([t["state"] == "COMPLETE" for t in trials], dtype=bool) & np.isfinite(points).all(1)
    out = able.copy()
    for i in np.flatnonzero(able):
        no_worse = (points[able] <= points[i]).all(1)
        better = (points[able] < points[i]).any(1)
        out[i] = not (no_worse & better).any()
    return out


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
    ax.set(xlabel="epoch", ylabel="held-out loss (nats per cell)")
    ends = [s[-1] for _, s in info.curves if np.isfinite(s[-1])]
    if ends:  # how a training begins would flatten the rest
        low = min(np.nanmin(s) for _, s in info.curves)
        high = max(np.percentile(ends, 90), np.nanmedian([s[len(s) // 3] for _, s in info.curves]))
        ax.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low) + 1e-9)
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
