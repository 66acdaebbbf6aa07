"""The table of topics: how much each is used, what it is made of, and whether it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import panel as pn

from ...figures.colours import categories
from ...pages import parts
from .working import csv

LEAST = 480  # pixels; a narrower screen scrolls
HELP = {
    "mean share": "Mean share of a cell that the topic makes up",
    "largest in": "Share of the cells in which no topic is larger",
    "top features": "Features that say most about the topic",
    "to note": "Topics that resemble another one, or that hardly any cell has",
}


class TopicTable:
    """Topics, a row each.

    Parameters
    ----------
    on_topic
        Called with the name of a topic that somebody has clicked.

    Attributes
    ----------
    view
        To show.
    frame
        As `mira.analysis.describe_topics` gives it, once it was computed.
    """

    def __init__(self, on_topic: Callable[[str], None]) -> None:
        self.on_topic = on_topic
        self.frame: pd.DataFrame | None = None
        heading = parts.markup("table", "<h2>Topics</h2>", sizing_mode=None, margin=(0, 10))
        self.said = parts.markup("note", margin=(0, 12, 4, 12), visible=False)
        self.body = pn.Column(sizing_mode="stretch_width", margin=0, styles={"overflow-x": "auto"})
        self.view = pn.Column(
            pn.FlexBox(heading, csv("topics.csv", lambda: self.frame), align_items="center", margin=0),
            self.said, self.body, sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.table: Any = None

    def update(self, frame: pd.DataFrame) -> None:
        """Show topics."""
        self.frame = frame
        shown = shown_topics(frame)
        noted = int((shown["to note"] != "").sum())
        self.said.object = (
            f"{noted} of {len(frame)} topics are alike another one, or in hardly any cell: fewer topics may do."
        )
        self.said.visible = noted > 0
        titles = {name: name for name in shown}
        widths = {"": 12, "topic": 84, "mean share": 108, "largest in": 100}
        if not noted:
            shown = shown.drop(columns="to note")
        self.table = parts.sheet(
            shown, min_width=LEAST, margin=(2, 10), max_height=620, titles=titles,
            formatters={"": {"type": "color"}, "top features": {"type": "textarea"}, "to note": {"type": "textarea"}},
            widths={k: v for k, v in widths.items() if k in shown}, selectable=False,
            text_align={"mean share": "right", "largest in": "right"},
            sortable={name: bool(name) for name in shown},
            header_tooltips={k: v for k, v in HELP.items() if k in shown},
            header_filters={"top features": {"type": "input", "func": "like", "placeholder": "has"}},
        )  # fmt: skip
        self.table.on_click(self._clicked)
        self.body.objects = [self.table]

    def _clicked(self, event: Any) -> None:
        if self.frame is not None and event.row is not None:
            topic = str(self.frame["topic"].iloc[event.row])
            parts.in_turn(lambda: self.on_topic(topic))


def shown_topics(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it: with colours, and with what is to be noted in words."""
    notes = []
    for row in frame.itertuples(index=False):
        said = [f"much like {row.redundant_with} ({row.redundancy:.2f})"] if isinstance(row.redundant_with, str) else []
        notes.append("; ".join([*said, *(["in hardly any cell"] if row.dead else [])]))
    return pd.DataFrame(
        {
            "": categories(len(frame)),
            "topic": frame["topic"],
            "mean share": [f"{v:.1%}" for v in frame["mean_share"]],
            "largest in": [f"{v:.1%}" for v in frame["largest_in"]],
            "top features": frame["top_features"],
            "to note": notes,
        }
    )
