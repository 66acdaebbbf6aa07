"""A training, drawn: its loss and the parts of it, by step and by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {"loss": "loss", "distortion": "distortion", "rate": "rate (KL of the topics)", "dependence": "dependence"}
BEGINNING = 0.05  # share of the steps, which would flatten the rest


def plot_training(
    steps: Mapping[str, np.ndarray], epochs: Mapping[str, np.ndarray], figsize: tuple[float, float] = (10, 3)
) -> Figure:
    """Draw the loss, distortion and rate of a training, and the dependence of a CODAL model.

    Parameters
    ----------
    steps, epochs
        Columns of `mira_core.records.StepRecord` and `EpochRecord`, by name; of either there may be none.
    figsize
        Inches.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.figure import Figure

    codal = bool(np.any(steps["dependence_weight"] > 0)) if len(steps["step"]) else bool(np.any(epochs["dependence"]))
    names = [n for n in PANELS if n != "dependence" or codal]
    figure = Figure(figsize=figsize, layout="constrained")
    for name, ax in zip(names, np.ravel(figure.subplots(1, len(names))), strict=True):
        ax.plot(steps["step"], steps[name], color="0.75", lw=0.8, label="each step")
        ax.plot(epochs["step"], epochs[name], color="tab:blue", marker=".", label="mean of each epoch")
        if name != "dependence" and np.isfinite(held_out := epochs[f"held_out_{name}"]).any():
            ax.plot(epochs["step"], held_out, color="tab:purple", marker=".", label="held-out cells")
        late = steps[name][int(BEGINNING * len(steps[name])) :]
        if np.isfinite(late).any():
            low, high = np.nanmin(late), np.nanmax(late)
            ax.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9)
        ax.set(title=PANELS[name], xlabel="step", ylabel="nats per cell" if name == "loss" else "")
        ax.spines[["top", "right"]].set_visible(False)
        if name == "loss":
            ax.legend(frameon=False, fontsize=8)
    return figure
