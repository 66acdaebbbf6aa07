"""Model: every option, what it would be, and why; then start."""

from __future__ import annotations

import html
import time
from typing import Any

import panel as pn
import panel_material_ui as pmui

from mira_core.data.describe import Description
from mira_core.errors import MiraError

from ..forms import ModelForm
from ..session import Session
from ..styles import WIDE_AND_NARROW
from ..workspace import Workspace
from . import parts

ONCE = 2.0  # seconds within which a second click is taken for the same


class ModelPage:
    """The form for the chosen data set, and the button that starts training.

    Attributes
    ----------
    form
        The form, once a data set is chosen.
    """

    def __init__(self, workspace: Workspace, session: Session) -> None:
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
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        session.param.watch(lambda e: self._load(e.new), "data")
        self._load(session.data)

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
        self.job_name.value = key.removeprefix("demo:").rsplit("/", 1)[-1].removesuffix(".h5ad")
        self.message.objects = []
        form.param.watch(self._changed, ["given", "problem"])
        self.code = parts.markup("code", margin=(4, 10, 10, 10))
        every = pmui.Switch.from_param(form.param.advanced, label="All options", margin=(0, 10))
        size = f"{key.removeprefix('demo:')}: {described.n_cells:,} cells × {described.n_features:,} features"
        head = parts.markup("note", html.escape(size), margin=(10, 12, 0, 12))
        run = parts.card(self.job_name, self.start, self.message, heading="Run")
        code = parts.card(self.code, heading="The same in Python")
        self.below.objects = [
            pn.Column(
                pn.Column(
                    pn.Row(head, every, sizing_mode="stretch_width", height=40, margin=0),
                    form,
                    sizing_mode="stretch_width",
                    margin=0,
                ),
                pn.Column(run, code, sizing_mode="stretch_width", margin=0),
                stylesheets=[WIDE_AND_NARROW],
                sizing_mode="stretch_width",
            )
        ]
        self._changed()

    def _changed(self, *_: Any) -> None:
        if self.form is None:
            return
        self.start.disabled = bool(self.form.problem)
        self.message.objects = [parts.problem(self.form.problem)] if self.form.problem else []
        try:
            data = self.workspace.data_of(self._made_for)
        except MiraError as problem:
            self.message.objects = [parts.problem(str(problem))]
            return
        code = "# Correct the marked option first." if self.form.problem else self.form.python(data)
        self.code.object = f"<pre>{html.escape(code)}</pre>"

    def _start(self) -> None:
        if self.form is None:
            return
        # A click can be on its way while the field before it is found wrong, or come twice.
        self.form.read()
        if self.form.problem or time.monotonic() - self._started < ONCE:
            return
        try:
            key = self.workspace.submit(self._made_for, self.form.given, self.job_name.value.strip() or None)
        except (MiraError, OSError) as problem:
            self.message.objects = [parts.problem(str(problem))]
            return
        self._started = time.monotonic()
        self.session.param.update(job=key, page="train")
