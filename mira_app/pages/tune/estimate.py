"""`gradient_tune`: the number of topics from one training, with its elbow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui

from mira_core import jobs
from mira_core.errors import MiraError

from ...figures.evidence import contributions
from ...hub import Hub
from ...series import Series
from ...workspace import Workspace
from .. import parts

What = Callable[[], tuple[str, Mapping[str, Any], Any]]  # data, options, recipe


class QuickEstimate:
    """Runs the estimate as a job, and shows what it told.

    Parameters
    ----------
    what
        Returns the data, options and recipe that it is to be of.
    label, use
        What can be done with the range that it suggests.
    """

    def __init__(self, workspace: Workspace, hub: Hub, what: What, label: str, use: Callable[[int, int], None]) -> None:
        self.workspace, self.hub, self.what, self.use = workspace, hub, what, use
        self.key = ""
        self._leave: Callable[[], None] | None = None
        self.range = (0, 0)
        self.button = pmui.Button(label="Estimate the number of topics", icon="speed", variant="outlined", size="small")
        self.stop = pmui.Button(label="Stop", icon="stop", variant="text", color="error", size="small", visible=False)
        self.take = pmui.Button(label=label, icon="check", variant="outlined", size="small", visible=False)
        self.bar = pmui.LinearProgress(value=0, sizing_mode="stretch_width", visible=False, margin=(4, 10))
        self.line = parts.markup("status", margin=(2, 12))
        self.below = pn.Column(sizing_mode="stretch_width", margin=0)
        parts.on_click(self.button, self._begin)
        parts.on_click(self.stop, lambda: self.workspace.stop(self.key))
        parts.on_click(self.take, lambda: self.use(*self.range))
        self.view = parts.card(
            parts.note("gradient_tune: one training of a Dirichlet-process model tells it in seconds to minutes. A "
                       "tuning is more thorough."),
            pn.FlexBox(self.button, self.stop, self.take, sizing_mode="stretch_width"),
            self.bar, self.line, self.below, heading="A quick estimate",
        )  # fmt: skip

    def close(self) -> None:
        """Follow nothing any more."""
        if self._leave is not None:
            self._leave()
            self._leave = None

    def look(self) -> None:
        """Show the newest estimate of the same data, if there is one, and none of others."""
        self._clear()
        asked = self._asked()
        if asked is None:
            return

        def found(key: str) -> None:
            if key and not self.key and self._asked() == asked:
                self._follow(key)

        parts.in_thread(lambda: self._newest(asked), found, lambda _: None)

    def _asked(self) -> tuple[str, Any, Any] | None:
        """Return what it would be of now; None if that can't be told."""
        with contextlib.suppress(MiraError):
            return self.what()
        return None

    def _clear(self) -> None:
        self.close()
        self.key, self.line.object, self.below.objects = "", "", []
        self.take.visible = self.bar.visible = self.stop.visible = self.button.disabled = False

    def _newest(self, asked: tuple[str, Any, Any]) -> str:
        data, _, recipe = asked
        of = self.workspace.specs("gradient_tune")
        same = (key for key, spec in of if spec["data"] == data and (spec.get("recipe") or None) == (recipe or None))
        return next(same, "")

    def _begin(self) -> None:
        self._clear()
        try:
            data, given, recipe = asked = self.what()
        except MiraError as problem:
            self._failed(str(problem))
            return
        parts.in_thread(
            lambda: self.workspace.estimate_topics(data, given, recipe),
            lambda key: self._follow(key) if self._asked() == asked else None,
            self._failed,
        )

    def _failed(self, text: str) -> None:
        self.below.objects = [parts.problem(text)]

    def _follow(self, key: str) -> None:
        self.close()
        self.key = key
        self._leave = self.hub.follow(self.workspace.folder_of(key), pn.state.curdoc, self._told)

    def _told(self, series: Series, s: jobs.Status) -> None:
        running = s.state in ("waiting", "running")
        self.bar.visible = self.stop.visible = running
        self.button.disabled = running
        share = round(100 * s.step / s.num_steps) if s.num_steps else 0
        self.bar.param.update(value=share, variant="determinate" if s.num_steps else "indeterminate")
        if running:
            left = s.seconds_left()
            self.line.object = "Reading the data …" if not s.num_steps else (
                f"step {s.step:,} of {s.num_steps:,}" + (f", {left:.0f} s left" if left is not None else "")
            )  # fmt: skip
            return
        self.close()
        self.line.object = ""
        if s.state != "finished":
            self.below.objects = [
                parts.problem(s.error.get("message", f"It was {s.state}."), s.error.get("traceback", ""))
            ]
            return
        told = self.workspace.result(self.key, "contributions.json")
        if told:
            self._show(told["num_topics"], told["contributions"], told["threshold"])

    def _show(self, n: int, values: list[float], threshold: float) -> None:
        low = max(2, n // 2)
        self.range = low, max(2 * n, low + 4)
        self.take.visible = True
        self.take.label = self.take.label.split(":")[0] + f": {self.range[0]} to {self.range[1]}"
        self.line.object = (
            f"<b>About {n} topics</b>: so many make up more than {threshold:.0%} of some cell. A tuning from "
            f"{self.range[0]} to {self.range[1]} would tell more."
        )
        self.below.objects = [pn.pane.Bokeh(contributions(values, n, threshold), sizing_mode="stretch_width")]
