"""The learning-rate range test, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..training.range_test import LearningRateCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CurveInfo(NamedTuple):
    """What the figure shows: measured losses, the spline through them, and the bounds."""

    rates: np.ndarray
    losses: np.ndarray
    spline_rates: np.ndarray
    spline: np.ndarray
    bounds: tuple[float, float]


def curve_info(curve: LearningRateCurve) -> CurveInfo:
    """Compute what the figure shows."""
    rates = np.array(curve.rates)
    fine = np.geomspace(rates[0], rates[-1], 400)
    return CurveInfo(rates, np.array(curve.losses), fine, curve.smoothed(fine), curve.bounds)


def plot_learning_rates(
    curve: LearningRateCurve,
    *,
    figsize: tuple[float, float] = (10, 7),
    ax: Axes | None = None,
    show_spline: bool = True,
) -> Axes:
    """Draw loss against learning rate with the bounds."""
    import matplotlib.pyplot as plt

    info = curve_info(curve)
    if ax is None:
        ax = plt.figure(figsize=figsize, layout="constrained").add_subplot()
    ax.axvspan(*info.bounds, color="tab:blue", alpha=0.12, lw=0, label="bounds")
    ax.scatter(info.rates, info.losses, s=14, color="0.45", label="mean of minibatches")
    if show_spline:
        ax.plot(info.spline_rates, info.spline, color="tab:blue", label="smoothed")
    for bound in info.bounds:
        ax.axvline(bound, color="tab:blue", lw=1)
        ax.annotate(f"{bound:.2g}", (bound, 1.01), xycoords=("data", "axes fraction"), ha="center", color="tab:blue")
    ax.set(xscale="log", xlabel="learning rate", ylabel="loss (nats per cell and feature)")
    low, high = np.min(info.losses), np.max(info.losses[: max(2, len(info.losses) // 3)])
    ax.set_ylim(low - 0.05 * (high - low), high + 0.25 * (high - low))  # a divergence would flatten the rest
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax
