"""How much the topics of a Dirichlet-process model contribute, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_topic_contributions(
    contributions: np.ndarray, num_topics: int | None = None, *, ax: Axes | None = None,
    figsize: tuple[float, float] = (7, 4),
) -> Axes:  # fmt: skip
    """Draw what `gradient_tune` found: the greatest contribution of each topic to any cell, in falling order.

    Parameters
    ----------
    contributions, num_topics
        As `gradient_tune` returns them, in the other order.
    ax, figsize
        Axes to draw on, or the size of new ones.

    Returns
    -------
    matplotlib.axes.Axes
    """
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.figure(figsize=figsize, layout="constrained").add_subplot()
    ranks = np.arange(1, len(contributions) + 1)
    used = ranks <= (len(ranks) if num_topics is None else num_topics)
    ax.bar(ranks[used], contributions[used], color="tab:blue", width=0.8)
    ax.bar(ranks[~used], contributions[~used], color="lightgrey", width=0.8)
    if num_topics is not None:
        ax.axvline(num_topics + 0.5, color="0.3", ls="--", lw=1)
        ax.annotate(f"{num_topics} topics", (num_topics + 0.8, 0.95), xycoords=("data", "axes fraction"), va="top")
    ax.set(xlabel="topics, by contribution", ylabel="greatest share of any cell", ylim=(0, 1.02))
    ax.spines[["top", "right"]].set_visible(False)
    return ax
