"""The evidence for a number of topics: losses by number with what is expected, and the elbow of `gradient_tune`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bokeh.models import Band, BoxAnnotation, ColumnDataSource, HoverTool, Range1d, Span
from bokeh.plotting import figure

from mira_core.tuning.summary import SURE, Summary

from .colours import LINE, SECOND
from .saving import can_be_saved


def loss_by_topics(summary: Summary) -> figure:
    """Draw the best and the median loss of each number of topics, and the expected one with its 90 % band.

    Numbers whose expected loss cannot be told from the least one lie on a tinted ground.
    """
    losses = summary.losses
    p = figure(
        height=320, sizing_mode="stretch_width", title="Held-out loss by number of topics",
        tools="xpan,xbox_zoom,reset", x_axis_label="topics", y_axis_label="nats per cell",
        toolbar_location="right",
    )  # fmt: skip
    if summary.alike:
        p.add_layout(BoxAnnotation(left=summary.alike[0] - 0.5, right=summary.alike[-1] + 0.5, fill_color=LINE,
                                   fill_alpha=0.12, line_alpha=0))  # fmt: skip
    points = ColumnDataSource({"k": losses.index, "best": losses["best"], "median": losses["median"],
                               "trials": losses["trials"]})  # fmt: skip
    if "expected" in losses:
        error = SURE * losses["error"]
        curve = ColumnDataSource({"k": losses.index, "expected": losses["expected"],
                                  "low": losses["expected"] - error, "high": losses["expected"] + error})  # fmt: skip
        p.add_layout(
            Band(base="k", lower="low", upper="high", source=curve, fill_color=LINE, fill_alpha=0.2, line_alpha=0)
        )
        p.line("k", "expected", source=curve, color=LINE, line_width=2, legend_label="expected, with 90 % band")
    median = p.scatter("k", "median", source=points, size=7, color="gray", fill_alpha=0, legend_label="median")
    best = p.scatter("k", "best", source=points, size=7, color=SECOND, legend_label="best")
    p.add_tools(HoverTool(renderers=[median, best], tooltips=[
        ("topics", "@k"), ("trials", "@trials"), ("best", "@best{0.00}"), ("median", "@median{0.00}")]))  # fmt: skip
    low, high = losses["best"].min(), np.quantile(losses["median"], 0.9)
    p.y_range = Range1d(
        low - 0.1 * (high - low) - 1e-6, high + 0.15 * (high - low) + 1e-6
    )  # the worst flatten the rest
    _quiet(p)
    can_be_saved(p, "loss-by-topics")
    return p


def contributions(values: Sequence[float], num_topics: int, threshold: float) -> figure:
    """Draw the greatest contribution of each topic to any cell, in falling order, and where the counted ones end."""
    p = figure(
        height=280, sizing_mode="stretch_width", title="Greatest contribution of each topic to any cell",
        tools="xpan,xbox_zoom,reset", x_axis_label="topics, in falling order", y_axis_label="share of a cell",
        toolbar_location="right", y_range=(0, 1.02),
    )  # fmt: skip
    rank = np.arange(1, len(values) + 1)
    source = ColumnDataSource({"rank": rank, "share": np.asarray(values, float),
                               "colour": [LINE if r <= num_topics else "gray" for r in rank]})  # fmt: skip
    p.line("rank", "share", source=source, color="gray", line_alpha=0.5)
    dots = p.scatter("rank", "share", source=source, size=6, color="colour")
    p.add_tools(HoverTool(renderers=[dots], tooltips=[("topic", "@rank"), ("share", "@share{0.000}")]))
    for location, dimension in ((num_topics + 0.5, "height"), (threshold, "width")):
        p.add_layout(Span(location=location, dimension=dimension, line_color=SECOND, line_dash="dashed"))
    _quiet(p)
    can_be_saved(p, "contributions")
    return p


def _quiet(p: figure) -> None:
    p.grid.grid_line_alpha = 0.4
    p.outline_line_color = None
    if p.legend:
        p.legend.background_fill_alpha = p.legend.border_line_alpha = 0
        p.legend.label_text_font_size = "11px"
        p.legend.location = "top_right"
