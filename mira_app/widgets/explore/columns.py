"""Topics by a column of the cells: mean shares as a heatmap and as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core import analysis

from ...figures.heatmap import Heatmap
from ...pages import parts
from .working import Place, Working, csv

if TYPE_CHECKING:
    from ..explorer import TopicExplorer

MOST = 200  # categories that are drawn


class ByColumn:
    """Mean topics of each category of a column."""

    def __init__(self, explorer: TopicExplorer) -> None:
        self.explorer = explorer
        self.frame: pd.DataFrame | None = None
        self.choice = pmui.Select(
            label="Column", options=[], searchable=True, size="small", width=280, margin=(14, 8, 6, 8)
        )
        self.figure = Heatmap(
            "Mean share of topics", "topics-by-column", "mean share", on_click=lambda _, topic: explorer.paint_by(topic)
        )
        self.working = Working()
        self.note = parts.markup("note", margin=(0, 12, 4, 12))
        self.place = Place(self.figure.root)
        self.view = pn.Column(
            pn.FlexBox(self.choice, csv("topics-by-column.csv", self._table), align_items="center"),
            self.working.view, self.note, self.place.view, sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.choice.param.watch(lambda e: self.explorer.param.update(column=e.new or ""), "value")
        explorer.param.watch(lambda _: self._update(), "column")
        self.columns_changed()

    def columns_changed(self) -> None:
        """Offer the columns that there are now."""
        options = self.explorer.columns
        if not options:
            self.note.object = "The cells have no columns; a selection that you name becomes one."
            return
        value = self.explorer.column if self.explorer.column in options else _first(self.explorer)
        self.choice.param.update(options=options, value=value)
        self._update()

    def _update(self) -> None:
        name = self.explorer.column
        if name not in self.explorer.columns:
            return
        if self.choice.value != name:
            self.choice.value = name
        cells, values = self.explorer.cells, self.explorer.column_of(name)

        def done(frame: pd.DataFrame) -> None:
            self.frame = frame
            shown = frame.drop(columns="cells")
            self.note.object = "Click a field to colour the cells by its topic." + (
                f" The first {MOST} of {len(frame):,} categories are drawn; the table has all."
                if len(frame) > MOST
                else ""
            )
            self.figure.root.title.text = f"Mean share by {name}"
            labels = [f"{i} ({n:,})" for i, n in zip(frame.index, frame["cells"], strict=True)]
            self.figure.update(shown.set_axis(labels).iloc[:MOST])
            self.place.show()

        self.working.run(
            f"Averaging topics by {name}",
            lambda _: analysis.topics_by(cells.with_columns({name: values}), name), done,
        )  # fmt: skip

    def _table(self) -> pd.DataFrame | None:
        return None if self.frame is None else self.frame.reset_index()


def _first(explorer: TopicExplorer) -> str:
    """Return the column that says most: what names types, else the first with categories."""
    columns = explorer.columns
    named = [c for c in columns if any(word in c.lower() for word in ("type", "label", "annot", "cluster"))]
    few = [c for c in explorer.cells.categorical if explorer.cells.column(c).nunique() <= MOST]
    return next(iter([*(c for c in named if c in few), *few, *columns]))
