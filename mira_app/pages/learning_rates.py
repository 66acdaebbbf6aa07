"""The learning-rate test beside the form: run, seen live, bounds dragged, taken over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui

from mira_core import jobs
from mira_core.data import Recipe
from mira_core.errors import MiraError

from ..figures.rates import RangeCurve, moved_to
from ..hub import Hub
from ..series import Series
from ..session import Session
from ..workspace import Workspace
from . import parts


class LearningRates:
    """A range test of the model in the form.

    Attributes
    ----------
    given
        Options of the model, as the form has them.
    curve
        What the last test told, with the bounds as they were dragged; None before.
    """

    def __init__(self, workspace: Workspace, session: Session, hub: Hub, use: Callable[[float, float], None]) -> None:
        self.workspace, self.session, self.hub, self.use = workspace, session, hub, use
        self.given: Mapping[str, Any] = {}
        self.curve: dict[str, Any] | None = None
        self._job, self._data, self._recipe = "", "", Recipe()
        self._leave: Callable[[], None] | None = None
        self.figure = RangeCurve()
        self.figure.moved = self._moved
        self.button = pmui.Button(label="Test learning rates", icon="speed", variant="outlined", size="small")
        self.stop = pmui.Button(label="Stop", icon="stop", variant="text", color="error", size="small", visible=False)
        self.take = pmui.Button(label="Use these", icon="check", size="small", visible=False)
        self.line = parts.markup("status", margin=(2, 12))
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        self.box = pn.Column(self.figure.root, sizing_mode="stretch_width", margin=0, visible=False)
        self.view = parts.card(
            parts.note("Trains for seconds at rising learning rates. Good ones lie where the loss falls."),
            pn.FlexBox(self.button, self.stop, self.take, sizing_mode="stretch_width"),
            self.line, self.box, self.message, heading="Learning rates",
        )  # fmt: skip
        parts.on_click(self.button, self._start)
        parts.on_click(self.stop, self._stop)
        parts.on_click(self.take, self._take)

    def made_for(self, data: str, recipe: Recipe) -> None:
        """Forget a test of other data; a test that the URL names is shown again."""
        self.close()
        self._data, self._recipe, self.curve = data, recipe, None
        self.figure.clear()
        self.box.visible = self.take.visible = self.stop.visible = False
        self.message.objects, self.line.object = [], ""
        if self.session.test:
            self._follow(self.session.test)

    def close(self) -> None:
        """Follow nothing any more."""
        if self._leave is not None:
            self._leave()
            self._leave = None

    def curve_for(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the curve, to be kept with the model, if its bounds are what the model is given."""
        if self.curve is None or not self.curve.get("bounds"):
            return None
        low, high = self.curve["bounds"]
        same = (given.get("min_learning_rate"), given.get("max_learning_rate")) == (_round(low), _round(high))
        return self.curve if same else None

    def _start(self) -> None:
        try:
            key = self.workspace.test_learning_rates(self._data, self.given, self._recipe)
        except (MiraError, OSError) as problem:
            self.message.objects = [parts.problem(str(problem))]
            return
        self.session.test = key
        self._follow(key)

    def _follow(self, key: str) -> None:
        self.close()
        self.curve, self._job = None, key
        self.figure.clear()
        self.message.objects = []
        self.take.visible = False
        try:
            folder = self.workspace.folder_of(key)
            if not self.workspace.is_of(key, self._data, self._recipe):
                return
        except MiraError:
            return  # an old link
        self.box.visible = True
        self._leave = self.hub.follow(folder, pn.state.curdoc, self._told)

    def _told(self, series: Series, status: jobs.Status) -> None:
        running = status.state in ("waiting", "running")
        self.stop.visible, self.button.loading = running, running
        if self.curve is None:
            self.figure.update(series)
        if running:
            n = f", {status.step} of {status.num_steps}" if status.num_steps else ""
            self.line.object = f"<b>{'Testing' if status.num_steps else 'Starting'}</b>{n}"
        elif status.state in ("finished", "stopped"):
            self._ended()
        else:
            self.line.object = ""
            words = status.error.get("message") or "the test ended without a word"
            self.message.objects = [parts.problem(words, status.error.get("traceback", ""))]

    def _ended(self) -> None:
        if self.curve is not None:
            return
        curve = self.workspace.curve(self._job)
        self.message.objects = [parts.problem(w) for w in (curve or {}).get("warnings", [])]
        if curve is None or not curve["rates"]:
            self.line.object = "<b>The test was stopped before it told anything.</b>"
            return
        self.curve = curve
        self.figure.show(curve)
        self._say()

    def _say(self) -> None:
        bounds = self.curve and self.curve.get("bounds")
        self.take.visible = bool(bounds)
        if bounds:
            low, high = bounds
            self.line.object = f"<b>{low:.2g}</b> to <b>{high:.2g}</b> · drag the ends to move them"
        else:
            self.line.object = "<b>No bounds were found.</b>"

    def _moved(self) -> None:
        if self.curve is not None and self.curve.get("falling") and self.figure.bounds:
            self.curve = moved_to(self.curve, *self.figure.bounds)
            self._say()

    def _stop(self) -> None:
        try:
            self.workspace.stop(self._job)
        except (MiraError, OSError) as problem:
            self.message.objects = [parts.problem(str(problem))]

    def _take(self) -> None:
        if self.curve is not None and self.curve.get("bounds"):
            low, high = self.curve["bounds"]
            self.use(_round(low), _round(high))


def _round(rate: float) -> float:
    return float(f"{rate:.3g}")
