"""Another model of the same cells beside this one, its topics matched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core import analysis
from mira_core.errors import DataError

from ...exploring.cells import Cells
from ...figures.colours import categories
from ...figures.embedding import Embedding
from ...figures.raster import Paint
from ...pages import parts
from ...styles import HALVES
from ..trial import matched_html
from .legend import Key
from .working import Working, csv

if TYPE_CHECKING:
    from ..explorer import TopicExplorer


class CompareCard:
    """Two models of the same cells.

    Parameters
    ----------
    explorer
        Whose model is the first.
    choices
        Label -> key of what can be the second; empty: the one that `fetch` gives of any key.
    fetch
        Gets the cells of the second, in a thread.
    """

    def __init__(
        self, explorer: TopicExplorer, choices: Callable[[], dict[str, str]], fetch: Callable[[str], Cells]
    ) -> None:
        self.explorer, self.choices, self.fetch = explorer, choices, fetch
        self.frame: pd.DataFrame | None = None
        self.figures: list[Embedding] = []
        self.other: Cells | None = None
        offered = choices()
        self.choice = pmui.Select(
            label="Compare with", options={"none": "", **offered}, value="", searchable=True, size="small", width=340,
            margin=(14, 8, 6, 8),
            visible=len(offered) > 1 or "" not in offered.values(),
        )  # fmt: skip
        self.working = Working()
        self.body = pn.Column(sizing_mode="stretch_width", margin=0)
        self.view = pn.Column(
            pn.FlexBox(self.choice, csv("matched-topics.csv", lambda: self.frame), align_items="center"),
            self.working.view, self.body, sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.choice.param.watch(self._chosen, "value")
        explorer.param.watch(lambda _: self._asked(), "beside")
        if not offered:
            self.body.objects = [
                parts.empty("There is no other run with topics", "Train another model of these cells.")
            ]
        elif not self.choice.visible:
            self._compare(next(iter(offered.values())))
        else:
            self._asked()

    def _asked(self) -> None:
        if self.explorer.beside and self.explorer.beside in self.choice.options.values():
            self.choice.value = self.explorer.beside

    def _chosen(self, event: Any) -> None:
        self.explorer.beside = event.new or ""
        if event.new:
            self._compare(event.new)
        else:
            self.working.stop()
            self._clear()

    def _clear(self) -> None:
        self.other = self.frame = None
        self.figures, self.body.objects = [], []

    def _compare(self, key: str) -> None:
        self._clear()  # that of another run, also where this one can't be shown
        first = self.explorer.cells

        def work(_: Any) -> tuple[Cells, pd.DataFrame]:
            second = self.fetch(key)
            if second.n != first.n or not np.array_equal(second.names, first.names):
                raise DataError(
                    f"these are other cells: {first.n:,} here, {second.n:,} there, or other names. Compare models of "
                    "the same cells, in the same order"
                )
            return second, analysis.match_topics(first.topics_only, second.topics_only)

        self.working.run("Matching topics", work, self._show)

    def _show(self, got: tuple[Cells, pd.DataFrame]) -> None:
        first = self.explorer.cells
        self.other, self.frame = got
        paints = matched_paints(first, self.other, self.frame)
        self.figures = [Embedding(cells.xy, lambda c=cells: c.names, height=420) for cells in (first, self.other)]
        boxes = []
        for figure, paint, name in zip(self.figures, paints, ("this model", "the other model"), strict=True):
            figure.show(replace(paint, title=f"Topic with the largest share, {name}"))
            legend = Key(entries=[[a, b, ""] for a, b in zip(paint.levels, paint.colours, strict=True)])
            legend.param.watch(lambda e, f=figure: f.show(f.paint, _meant(f.paint, e.new)), "chosen")
            pane = pn.pane.Bokeh(figure.root, sizing_mode="stretch_width")
            boxes.append(pn.Column(pane, legend, sizing_mode="stretch_width", margin=0))
        html = matched_html(self.frame, 0, 1, ("this model", "the other model"))
        self.body.objects = [
            parts.note("Topics that match have the same colour in both; those without are gray in the other."),
            pn.Column(*boxes, stylesheets=[HALVES], sizing_mode="stretch_width", margin=0),
            parts.markup("table", html, margin=(4, 10)),
        ]


def matched_paints(first: Cells, second: Cells, frame: pd.DataFrame) -> tuple[Paint, Paint]:
    """Return the main topics of both, those of the second in the colours of what they match."""
    colours = categories(first.K)
    partner = {row.other: row.topic for row in frame.itertuples(index=False) if row.topic and row.other}
    theirs = [colours[int(partner[t].removeprefix("topic_"))] if t in partner else "#9a9a9a" for t in second.topics]
    names = [f"{t} ~ {partner[t]}" if t in partner else f"{t}, no match" for t in second.topics]
    return (
        Paint("", codes=first.main, levels=tuple(first.topics), colours=tuple(colours)),
        Paint("", codes=second.main, levels=tuple(names), colours=tuple(theirs)),
    )


def _meant(paint: Paint, name: str) -> np.ndarray | None:
    return paint.codes == paint.levels.index(name) if name in paint.levels and paint.codes is not None else None
