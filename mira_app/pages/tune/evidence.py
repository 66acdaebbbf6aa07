"""How many topics? Losses by number, whether topics come again, and the elbow of `gradient_tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui

from mira_core.errors import TuningError
from mira_core.tuning import control
from mira_core.tuning.reading import Reading
from mira_core.tuning.summary import Summary

from ...figures.evidence import loss_by_topics
from ...styles import HALVES
from .. import parts
from .estimate import QuickEstimate

if TYPE_CHECKING:
    from .page import TunePage


class Evidence:
    """What the completed trials say, and a quick estimate beside it."""

    def __init__(self, page: TunePage) -> None:
        self.page = page
        self._for: tuple[Any, ...] = ()
        self.below = pn.Column(sizing_mode="stretch_width", margin=0)
        self.quick = QuickEstimate(page.workspace, page.hub, self._what, "Narrow this study", self._narrow)
        self.again = pmui.Button(label="Sum up again", icon="refresh", variant="outlined", size="small", visible=False)
        parts.on_click(self.again, lambda: self._sum_up(page.reading))
        self.view = pn.Column(self.again, self.below, self.quick.view, sizing_mode="stretch_width", margin=0)

    def _what(self) -> tuple[str, Any, Any]:
        """Say what the study is of; of one begun with cells in memory elsewhere, the chosen data are taken."""
        reading = self.page.reading
        plan = reading.plan if reading is not None else None
        if plan is None:
            raise TuningError("the study is not known yet")
        if plan.data is not None:
            return plan.data, plan.given, plan.recipe
        if not self.page.session.data:
            raise TuningError("this study was begun with cells in memory; choose their file on the Data page first")
        return self.page.workspace.data.data_of(self.page.session.data), plan.given, None

    def _narrow(self, low: int, high: int) -> None:
        reading = self.page.reading
        if reading is None or reading.plan is None:
            return
        r = reading.plan.space["num_topics"]
        ends = max(low, int(r.low)), min(high, int(r.high))
        if ends[0] > ends[1]:
            self.page.say_problem(
                f"this study searches {r.low:g} to {r.high:g} topics, and the estimate lies outside: begin a new one"
            )
            return
        self.page.act(control.narrow, {"num_topics": ends})

    def close(self) -> None:
        """Follow nothing any more."""
        self.quick.close()

    def update(self, reading: Reading) -> None:
        """Sum up, once; later when somebody asks, as models have to be read for it."""
        now = reading.name, reading.counts.get("COMPLETE", 0), len(reading.hidden)
        if not self._for:
            self._sum_up(reading)
            self.quick.look()
        self.again.visible = now != self._for

    def _sum_up(self, reading: Reading | None) -> None:
        if reading is None:
            return
        self._for = reading.name, reading.counts.get("COMPLETE", 0), len(reading.hidden)
        self.again.visible = False
        parts.load(self.below, lambda: self.page.studies.summary(reading), self._show)

    def _show(self, summary: Summary | None) -> None:
        if summary is None:
            self.below.objects = [
                parts.empty("No trial is completed yet", "What they say of the number of topics appears here.")
            ]
            return
        losses = summary.losses.round(3).reset_index().rename(columns={"num_topics": "topics"})
        shown = [
            parts.markup("status", f"<b>{parts.escape(summary.sentence)}</b>", margin=(8, 12)),
            *(parts.problem(w[0].upper() + w[1:] + ".") for w in summary.warnings),
            pn.pane.Bokeh(loss_by_topics(summary), sizing_mode="stretch_width"),
        ]
        tables = [parts.table("Losses by number of topics", losses)]
        if len(summary.topics):
            topics = summary.topics.round(3).reset_index(names="topic")
            compared = ", ".join(map(str, summary.compared)) or "none"
            tables.append(
                pn.Column(
                    parts.table("Topics of the best model", topics),
                    parts.note("Stability: how alike each is to its match in the next best models (trials "
                               f"{compared}). Redundancy: how alike to its nearest in the same model."),
                    sizing_mode="stretch_width", margin=0,
                )
            )  # fmt: skip
        self.below.objects = [*shown, pn.Column(*tables, stylesheets=[HALVES], sizing_mode="stretch_width", margin=0)]
