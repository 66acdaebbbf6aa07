"""Model: every option, what it would be, and why; learning rates; then start."""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui

from mira_core import notation, options
from mira_core.data import Finding, Recipe
from mira_core.data.demo import DEMO
from mira_core.data.describe import Description
from mira_core.data.steps import HighlyVariable
from mira_core.errors import MiraError

from ..datasets import label_of
from ..forms import NOTATIONS, ModelForm, prepared
from ..hub import Hub
from ..session import Session
from ..styles import WIDE_AND_NARROW
from ..workspace import Workspace
from . import parts
from .learning_rates import LearningRates

ONCE = 2.0  # seconds within which a second click is taken for the same
SETTINGS = {n for n in options.names() if options.parameter(n).metadata["group"] != "data"} | {"feature_type"}
KINDS = ("categorical", "continuous")  # of covariates
HELD_OUT = 0.1  # share of the cells that the loss is watched on, unless somebody wants another
LOOKS_ONLY = "Your role is viewer: you can look, and run nothing. Who keeps this server can change that."


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
        self._made_for = ("", "")  # data and recipe
        self._given: tuple[str, Mapping[str, Any]] = ("", {})  # data, and what the last form for them said
        self.recipe = Recipe()
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
        self.held_out.param.watch(self._changed, "value")
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        self.findings = pn.Column(sizing_mode="stretch_width", margin=0)
        self._checked: tuple[Any, ...] = ()
        self._refused = False  # by training, as it would find the covariates
        self.mend = pmui.Button(label="Mend it on the Data page", icon="healing", variant="outlined", visible=False)
        parts.on_click(self.mend, lambda: setattr(self.session, "page", "data"))
        self.unfit = pn.Column(sizing_mode="stretch_width", margin=0)
        self._unfit = False  # the data
        self.rates = LearningRates(workspace, session, hub, self._use_rates)
        self.text = pmui.TextAreaInput(
            label="Python, a mira fit command, or JSON", rows=5, auto_grow=True, max_rows=14, size="small",
            sizing_mode="stretch_width",
        )  # fmt: skip
        self.read = pmui.Button(label="Fill the form from it", icon="input", variant="text", size="small")
        self.said = pn.Column(sizing_mode="stretch_width", margin=0)
        parts.on_click(self.read, self._read)
        session.param.watch(self._load, ["data", "recipe"])
        self._load()

    def close(self) -> None:
        """Follow nothing any more."""
        self.rates.close()

    def _load(self, *_: Any) -> None:
        key, recipe_key = self.session.data, self.session.recipe
        if (key, recipe_key) == self._made_for and key:
            return
        if self.form is not None:
            self._given = (self._made_for[0], self.form.given)
        given = self._given[1] if key == self._given[0] else {}
        self.form, self._made_for = None, ("", "")
        if not key:
            go = pmui.Button(label="Choose data", margin=10)
            parts.on_click(go, lambda: setattr(self.session, "page", "data"))
            self.below.objects = [
                parts.empty("No data set is chosen", "The form depends on its layers and columns."),
                go,
            ]
            return

        def show(got: tuple[Recipe, Description]) -> None:
            if (key, recipe_key) == (self.session.data, self.session.recipe):
                self._made_for = (key, recipe_key)
                self._make(key, *got, given)

        parts.load(self.below, lambda: prepared(self.workspace, key, recipe_key), show)

    def _make(self, key: str, recipe: Recipe, described: Description, given: Mapping[str, Any]) -> None:
        """Make the form; what was given for the same data and another recipe stays, as far as it still can."""
        self.recipe = recipe
        self.form = form = ModelForm(described, notations=NOTATIONS)
        self._keep(form, given)
        self.job_name.value = name_of(key)
        self.message.objects = self.said.objects = []
        self.estimated.object = ""
        form.param.watch(self._changed, ["given", "problem"])
        self.rates.made_for(key, recipe)
        size = f"{label_of(key)}: {described.n_cells:,} cells × {described.n_features:,} features"
        if recipe.steps:
            size += f", after {len(recipe)} step{'s' if len(recipe) > 1 else ''} of a recipe"
        head = parts.markup("note", html.escape(size), margin=(10, 12, 0, 12))
        run = parts.card(
            self.job_name,
            self.held_out,
            self.start,
            self.message,
            self.unfit,
            self.findings,
            self.mend,
            self.estimate,
            self.estimated,
            heading="Run",
        )
        code = parts.card(
            form.code.view, self.text, self.read, self.said, heading="The same in Python, as a command, as JSON"
        )
        self.below.objects = [
            head,
            pn.Column(
                form.options,
                pn.Column(run, self.rates.view, code, sizing_mode="stretch_width", margin=0),
                stylesheets=[WIDE_AND_NARROW],
                sizing_mode="stretch_width",
            ),
        ]
        self._unfit = self.mend.visible = False
        self.unfit.objects = []
        self._changed()
        self._check_data(key, recipe)

    def _check_data(self, key: str, recipe: Recipe) -> None:
        """Say what is wrong with the cells that training would refuse after a minute."""

        def told(found: list[Finding]) -> None:
            if (key, recipe) == (self._made_for[0], self.recipe) and found:
                self._unfit = self.mend.visible = True
                self.unfit.objects = [parts.finding(f) for f in found]
                self._changed()

        parts.in_thread(lambda: self.workspace.data.refused(key, recipe), told, lambda _: None)  # told elsewhere

    def _changed(self, *_: Any) -> None:
        if self.form is None:
            return
        wrong = self.form.problem
        self._check_covariates()
        looks_only = not self.workspace.person.may("user")
        self.start.disabled = self.estimate.disabled = bool(wrong) or self._refused or self._unfit or looks_only
        self.mend.visible = self._unfit or "counts_layer" in wrong or "no counts" in wrong or "raw counts" in wrong
        self.session.given = {} if wrong else dict(self.form.given)
        self.rates.given, self.rates.button.disabled = self.form.given, bool(wrong) or looks_only
        self.message.objects = [parts.problem(wrong)] if wrong else [parts.note(LOOKS_ONLY)] if looks_only else []
        if self.estimated.object:
            self.estimated.object = ""  # it was for other options
        try:
            data = self.workspace.data.data_of(self._made_for[0])
        except MiraError as problem:
            self.message.objects = [parts.problem(str(problem))]
            return
        recipe = self.recipe if self.recipe.steps else None
        self.form.write(data=data, test_size=self.held_out.value or None, recipe=recipe)

    def _check_covariates(self) -> None:
        """Say what is wrong with the chosen covariates; their file may be slow."""
        given = self.form.given if self.form is not None else {}
        asked = (self._made_for[0], self.recipe, *(tuple(given.get(f"{kind}_covariates") or ()) for kind in KINDS))
        if asked == self._checked:
            return
        self._checked = asked
        self.findings.objects = []
        self._refused = False
        if not any(asked[2:]):
            return

        async def go() -> None:
            try:
                found = await asyncio.to_thread(self.workspace.data.check_covariates, *asked)
            except MiraError:
                return  # of the data, which is told elsewhere

            def show() -> None:
                if asked == self._checked:
                    self.findings.objects = [parts.finding(f) for f in found]
                    self._refused = any(f.severity == "error" for f in found)
                    self.start.disabled = self.start.disabled or self._refused

            parts.in_turn(show)

        pn.state.execute(go)

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
        self.held_out.value = written.test_size or 0.0
        other = written.data is not None and written.data != self.workspace.data.data_of(self._made_for[0])
        told = f"{len(written.given)} options were read."
        self.said.objects = [
            parts.good(told + (f" The text names other data, {written.data}; the chosen ones stay." if other else ""))
        ]
        if written.recipe is not None and written.recipe != self.recipe:
            self.session.recipe = self.workspace.keep_recipe(written.recipe, name_of(self.session.data))

    def _keep(self, form: ModelForm, given: Mapping[str, Any]) -> None:
        """Fill a new form with what was given, and with the columns that the recipe makes."""
        known = {c.name for c in (*form.described.obs, *form.described.var)}
        kept = {
            name: value
            for name, value in given.items()
            if name in SETTINGS or known.issuperset([value] if isinstance(value, str) else value)
        }
        step = next((s for s in self.recipe if isinstance(s, HighlyVariable)), None)
        if step is not None:
            kept.setdefault("highly_variable_key", step.column)
            if step.n_endogenous is not None:
                kept.setdefault("endogenous_key", "endogenous")
        form.load({**form.given, **kept})

    def _use_rates(self, low: float, high: float) -> None:
        if self.form is not None:
            self.form.load({**self.form.given, "min_learning_rate": low, "max_learning_rate": high})

    def _estimate(self) -> None:
        if self.form is None or self.form.problem or parts.is_busy(self.estimate):
            return
        given, key, recipe = dict(self.form.given), self._made_for[0], self.recipe
        share = self.held_out.value or None
        asked = (given, self._made_for, self.held_out.value)
        self.estimated.object = "Taking a few steps to see how long they take …"

        def show(told: str) -> None:
            if self.form is not None and (self.form.given, self._made_for, self.held_out.value) == asked:
                self.estimated.object = told

        parts.in_thread(
            lambda: self.workspace.estimate(key, given, share, recipe),
            show,
            lambda problem: show(html.escape(f"It cannot be estimated: {problem}")),
            self.estimate,
        )

    def _start(self) -> None:
        if self.form is None:
            return
        # A click can be on its way while the field before it is found wrong, or come twice.
        self.form.read()
        if self.form.problem or self._refused or self._unfit or time.monotonic() - self._started < ONCE:
            return
        key, given, name = self._made_for[0], dict(self.form.given), self.job_name.value.strip() or None
        more = {
            "recipe": self.recipe if self.recipe.steps else None, "test_size": self.held_out.value or None,
            "learning_rate_curve": self.rates.curve_for(given),
        }  # fmt: skip

        def begun(job: str) -> None:
            self._started = time.monotonic()
            self.message.objects = []
            self.session.param.update(job=job, page="train")

        def failed(text: str) -> None:
            self.message.objects = [parts.problem(text)]

        parts.in_thread(lambda: self.workspace.submit(key, given, name, **more), begun, failed, self.start)


def name_of(key: str) -> str:
    """Return what a run on a data set is called at first."""
    last = key.removeprefix(DEMO).rsplit("/", 1)[-1]
    stem, _, part = last.partition("#")
    for suffix in (".zip", ".zarr", ".h5ad", ".h5mu", ".h5", ".loom"):
        stem = stem.removesuffix(suffix)
    return stem + (f" {part}" if part else "")
