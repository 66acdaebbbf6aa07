"""Model: every option, what it would be, and why; learning rates; then start."""

from __future__ import annotations

import asyncio
import html
import time
from typing import Any

import panel as pn
import panel_material_ui as pmui

from mira_core import notation
from mira_core.data.describe import Description
from mira_core.errors import MiraError

from ..forms import ModelForm
from ..hub import Hub
from ..session import Session
from ..styles import WIDE_AND_NARROW
from ..workspace import Workspace
from . import parts
from .learning_rates import LearningRates

ONCE = 2.0  # seconds within which a second click is taken for the same
HELD_OUT = 0.1  # share of the cells that the loss is watched on, unless somebody wants another


class ModelPage:
    """The form for the chosen data set, and the button that starts training.

    Attributes
    ----------
    form
        The form, once a data set is chosen.
    rates
        The learning-rate test.
    """

    def __init__(self, workspace: Workspace, session: Session, hub: Hub) -> None:
        self.workspace, self.session = workspace, session
        self.form: ModelForm | None = None
        self._made_for = ""
        self._started = -ONCE
        self.below = pn.Column(sizing_mode="stretch_width", margin=0)
        self.view = pn.Column(
            parts.title("Model", "What you leave empty is recommended for the size of your data."),
            self.below,
            sizing_mode="stretch_width",
        )
        self.start = pmui.Button(label="Train", icon="play_arrow", sizing_mode="stretch_width", size="large")
        parts.on_click(self.start, self._start)
        self.job_name = pmui.TextInput(label="Name of the run", size="small", sizing_mode="stretch_width")
        self.held_out = pmui.FloatInput(
            label="Share of held-out cells", value=HELD_OUT, start=0.0, end=0.9, step=0.05, size="small",
            sizing_mode="stretch_width",
            description="These cells are not trained on; their loss is watched, and shows overfitting. 0: none.",
        )  # fmt: skip
        self.estimate = pmui.Button(label="Estimate time and memory", icon="timer", variant="text", size="small")
        self.estimated = parts.markup("note", margin=(0, 12, 4, 12))
        parts.on_click(self.estimate, self._estimate)
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        self.rates = LearningRates(workspace, session, hub, self._use_rates)
        self.text = pmui.TextAreaInput(
            label="Python, a mira fit command, or JSON", rows=5, auto_grow=True, max_rows=14, size="small",
            sizing_mode="stretch_width",
        )  # fmt: skip
        self.read = pmui.Button(label="Fill the form from it", icon="input", variant="text", size="small")
        self.said = pn.Column(sizing_mode="stretch_width", margin=0)
        parts.on_click(self.read, self._read)
        session.param.watch(lambda e: self._load(e.new), "data")
        self._load(session.data)

    def close(self) -> None:
        """Follow nothing any more."""
        self.rates.close()

    def _load(self, key: str) -> None:
        if key == self._made_for and key:
            return
        self.form, self._made_for = None, ""
        if not key:
            go = pmui.Button(label="Choose data", margin=10)
            parts.on_click(go, lambda: setattr(self.session, "page", "data"))
            self.below.objects = [
                parts.empty("No data set is chosen", "The form depends on its layers and columns."),
                go,
            ]
            return
        parts.load(self.below, lambda: self.workspace.describe(key), lambda described: self._make(key, described))

    def _make(self, key: str, described: Description) -> None:
        if key != self.session.data:
            return
        self._made_for = key
        self.form = form = ModelForm(described)
        self.job_name.value = name_of(key)
        self.message.objects = self.said.objects = []
        self.estimated.object = ""
        form.param.watch(self._changed, ["given", "problem"])
        self.rates.made_for(key)
        search = pmui.TextInput.from_param(
            form.param.search, label="Find an option", placeholder="dropout", size="small",
            sizing_mode="stretch_width", margin=(6, 10),
        )  # fmt: skip
        every = pmui.Switch.from_param(form.param.advanced, label="All options", margin=(12, 10))
        size = f"{key.removeprefix('demo:')}: {described.n_cells:,} cells × {described.n_features:,} features"
        head = parts.markup("note", html.escape(size), margin=(10, 12, 0, 12))
        self.views = {
            "Python": parts.markup("code", margin=(4, 10)),
            "Command": parts.markup("code", margin=(4, 10)),
            "JSON": parts.markup("code", margin=(4, 10)),
        }
        tabs = pmui.Tabs(*self.views.items(), sizing_mode="stretch_width", margin=(0, 4))
        run = parts.card(
            self.job_name, self.held_out, self.start, self.message, self.estimate, self.estimated, heading="Run"
        )
        code = parts.card(tabs, self.text, self.read, self.said, heading="The same in Python, as a command, as JSON")
        self.below.objects = [
            head,
            pn.Column(
                pn.Column(
                    pn.Row(search, every, sizing_mode="stretch_width", margin=0),
                    form,
                    sizing_mode="stretch_width",
                    margin=0,
                ),
                pn.Column(run, self.rates.view, code, sizing_mode="stretch_width", margin=0),
                stylesheets=[WIDE_AND_NARROW],
                sizing_mode="stretch_width",
            ),
        ]
        self._changed()

    def _changed(self, *_: Any) -> None:
        if self.form is None:
            return
        wrong = self.form.problem
        self.start.disabled = self.estimate.disabled = bool(wrong)
        self.rates.given, self.rates.button.disabled = self.form.given, bool(wrong)
        self.message.objects = [parts.problem(wrong)] if wrong else []
        if self.estimated.object:
            self.estimated.object = ""  # it was for other options
        try:
            data = self.workspace.data_of(self._made_for)
        except MiraError as problem:
            self.message.objects = [parts.problem(str(problem))]
            return
        for name, write in (
            ("Python", notation.to_python), ("Command", notation.to_command), ("JSON", notation.to_json),
        ):  # fmt: skip
            code = "# Correct the marked option first." if wrong else write(data, self.form.given)
            self.views[name].object = f"<pre>{html.escape(code)}</pre>"

    def _read(self) -> None:
        """Fill the form from what was pasted; the data set stays the chosen one."""
        if self.form is None:
            return
        try:
            written = notation.read(self.text.value or "")
        except MiraError as problem:
            self.said.objects = [parts.problem(str(problem))]
            return
        self.form.load(written.given)
        other = written.data is not None and written.data != self.workspace.data_of(self._made_for)
        told = f"{len(written.given)} options were read."
        self.said.objects = [
            parts.good(told + (f" The text names other data, {written.data}; the chosen ones stay." if other else ""))
        ]

    def _use_rates(self, low: float, high: float) -> None:
        if self.form is not None:
            self.form.load({**self.form.given, "min_learning_rate": low, "max_learning_rate": high})

    def _estimate(self) -> None:
        if self.form is None or self.form.problem:
            return
        given, key = dict(self.form.given), self._made_for
        share = self.held_out.value or None
        self.estimated.object = "Taking a few steps to see how long they take …"
        self.estimate.loading = True

        async def go() -> None:
            try:
                told = await asyncio.to_thread(self.workspace.estimate, key, given, share)
            except (MiraError, OSError) as problem:
                told = html.escape(f"It cannot be estimated: {problem}")

            def show() -> None:
                self.estimate.loading = False
                if self.form is not None and self.form.given == given:
                    self.estimated.object = told

            parts.in_turn(show)

        pn.state.execute(go)

    def _start(self) -> None:
        if self.form is None:
            return
        # A click can be on its way while the field before it is found wrong, or come twice.
        self.form.read()
        if self.form.problem or time.monotonic() - self._started < ONCE:
            return
        try:
            key = self.workspace.submit(
                self._made_for, self.form.given, self.job_name.value.strip() or None,
                test_size=self.held_out.value or None, learning_rate_curve=self.rates.curve_for(self.form.given),
            )  # fmt: skip
        except (MiraError, OSError) as problem:
            self.message.objects = [parts.problem(str(problem))]
            return
        self._started = time.monotonic()
        self.session.param.update(job=key, page="train")


def name_of(key: str) -> str:
    """Return what a run on a data set is called at first."""
    last = key.removeprefix("demo:").rsplit("/", 1)[-1]
    stem, _, part = last.partition("#")
    return stem.split(".")[0] + (f" {part}" if part else "")
