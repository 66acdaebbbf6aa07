"""The learning-rate test beside the form, as a job: its link shows it again, and it outlives the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import panel as pn

from mira_core import jobs
from mira_core.data import Recipe
from mira_core.errors import MiraError

from ..hub import Hub
from ..series import Series
from ..session import Session
from ..widgets.rates import RatesView
from ..workspace import Workspace
from . import parts


class LearningRates:
    """A range test of the model in the form.

    Attributes
    ----------
    given
        Options of the model, as the form has them.
    rates
        The curve, its bounds, and its buttons.
    """

    def __init__(self, workspace: Workspace, session: Session, hub: Hub, use: Callable[[float, float], None]) -> None:
        self.workspace, self.session, self.hub = workspace, session, hub
        self.given: Mapping[str, Any] = {}
        self._job, self._data, self._recipe = "", "", Recipe()
        self._leave: Callable[[], None] | None = None
        self.rates = RatesView(self._start, self._stop, use)
        self.button, self.view, self.curve_for = self.rates.button, self.rates.view, self.rates.curve_for

    def made_for(self, data: str, recipe: Recipe) -> None:
        """Forget a test of other data; a test that the URL names is shown again."""
        self.close()
        self._data, self._recipe = data, recipe
        self.rates.clear()
        if self.session.test:
            self._follow(self.session.test)

    def close(self) -> None:
        """Follow nothing any more."""
        if self._leave is not None:
            self._leave()
            self._leave = None

    def _start(self) -> None:
        data, given, recipe = self._data, dict(self.given), self._recipe

        def begun(key: str) -> None:
            if (self._data, self._recipe) == (data, recipe):
                self.session.test = key
                self._follow(key)

        parts.in_thread(
            lambda: self.workspace.test_learning_rates(data, given, recipe), begun, self.rates.failed, self.button
        )

    def _follow(self, key: str) -> None:
        self.close()
        self._job = key
        try:
            folder = self.workspace.folder_of(key)
            if not self.workspace.is_of(key, self._data, self._recipe):
                return
        except MiraError:
            return  # an old link
        self.rates.clear(begun=True)
        self._leave = self.hub.follow(folder, pn.state.curdoc, self._told)

    def _told(self, series: Series, status: jobs.Status) -> None:
        if status.state in ("waiting", "running"):
            self.rates.runs(series, status.step, status.num_steps)
        elif status.state in ("finished", "stopped"):
            if self.rates.curve is None:
                self.rates.figure.update(series)
                self.rates.ended(self.workspace.curve(self._job))
        else:
            words = status.error.get("message") or "the test ended without a word"
            self.rates.failed(words, status.error.get("traceback", ""))

    def _stop(self) -> None:
        key = self._job

        def failed(text: str) -> None:
            self.rates.message.objects = [parts.problem(text)]

        parts.in_thread(lambda: self.workspace.stop(key), lambda _: None, failed)
