"""From options to a form: one field for each option, its message beside it.

A field left empty is not given to the model, which then recommends a value; the hint says which, and why.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param

from mira_core import options
from mira_core.data import Recipe
from mira_core.data.describe import Description, Layer
from mira_core.data.inspection.covariates import TECHNICAL
from mira_core.data.inspection.features import MANY_GENES
from mira_core.errors import MiraError, OptionError
from mira_core.recommend import ResolvedOption, resolve

from .pages import parts
from .styles import GRID
from .workspace import Workspace

EMPTY = ""
NOT_GIVEN: Any = object()  # None is a value of some options: no prior
NONE = "none"
MARKED = "highly_variable"  # column in which scanpy, and recipes, mark features
LEAST_MARKED = 50  # features, from which a model can be made


class Field:
    """One option: a widget, a hint, a message.

    Parameters
    ----------
    name
        The option.
    changed
        Called when the user changes it.
    choices
        For options that name something of the data: label -> value.
    """

    def __init__(self, name: str, changed: Callable[[], None], choices: dict[str, Any] | None = None) -> None:
        self.name = name
        self.declared = options.parameter(name)
        self.choices = choices
        self._quiet = False
        self._changed = changed
        self.widget = self._widget()
        self.widget.param.watch(self._on_change, "value")
        self.hint = parts.markup("hint", margin=(0, 10, 4, 12))
        self.view = pn.Column(
            self.widget,
            self.hint,
            sizing_mode="stretch_width",
            css_classes=["mira-field", f"option-{name}"],
            margin=0,
        )

    def _widget(self) -> Any:
        label = self.name
        shared = {"label": label, "sizing_mode": "stretch_width", "size": "small", "margin": (8, 10, 0, 10)}
        help_text = self.declared.doc or ""
        if isinstance(self.declared, options.ColumnNames):
            shared.pop("size")
            return pmui.MultiChoice(
                options=list(self.choices or {}),
                value=[],
                description=help_text,
                visual_size="small",
                **shared,
            )
        if self.choices is not None:
            return pmui.Select(
                options=self.choices, value=next(iter(self.choices.values())), description=help_text, **shared
            )
        if isinstance(self.declared, param.Selector):
            return pmui.Select(
                options=list(self.declared.objects),
                value=self.declared.default,
                description=help_text,
                **shared,
            )
        if isinstance(self.declared, param.Boolean):
            return pmui.Select(
                options={"yes": True, "no": False},
                value=self.declared.default,
                description=help_text,
                **shared,
            )
        return pmui.TextInput(value=EMPTY, description=help_text, **shared)

    def _on_change(self, _: Any) -> None:
        if not self._quiet:
            self._changed()

    def value(self) -> Any:
        """Return what the user wants, or `NOT_GIVEN` for nothing of their own.

        Raises
        ------
        OptionError
            If the text is no value of this option, or names what the data do not have.
        """
        raw = self.widget.value
        if isinstance(self.widget, pmui.TextInput):
            text = (raw or "").strip()
            if text == EMPTY:
                return NOT_GIVEN
            value = options.validate(self.name, _number(text, self.declared))
            return NOT_GIVEN if value is None and self.declared.default is None else value
        if self.choices is not None and (raw not in (EMPTY, None)):
            known = self.choices.values()
            if unknown := [x for x in ([raw] if isinstance(raw, str) else raw) if x not in known]:
                able = [str(x) for x in known if x != EMPTY]
                raise OptionError(
                    f"{self.name} names {unknown[0]!r}, which these data cannot give it; "
                    + (f"choose of {', '.join(able[:10])}" if able else "they have nothing to choose")
                )
        if isinstance(self.declared, options.ColumnNames):
            return list(raw) or NOT_GIVEN
        return NOT_GIVEN if raw in (EMPTY, self.declared.default) else raw

    def set(self, value: Any) -> None:
        """Show a value, or `NOT_GIVEN`, without telling anybody."""
        if value is None and self.declared.default is None:
            value = NOT_GIVEN
        self._quiet = True
        try:
            if isinstance(self.widget, pmui.TextInput):
                self.widget.value = EMPTY if value is NOT_GIVEN else NONE if value is None else str(value)
            elif isinstance(self.declared, options.ColumnNames):
                self.widget.value = [] if value is NOT_GIVEN else [value] if isinstance(value, str) else list(value)
            else:
                unset = EMPTY if self.choices is not None else self.declared.default
                self.widget.value = unset if value is NOT_GIVEN else value
        finally:
            self._quiet = False

    def matches(self, words: str) -> bool:
        """Tell whether the option's name, help or group has all of some words."""
        name, group = self.name, self.declared.metadata["group"]
        text = f"{name} {name.replace('_', ' ')} {group} {self.declared.doc}".lower()
        return all(word in text for word in words.lower().split())

    def explain(self, option: ResolvedOption | None, problem: str) -> None:
        """Show where the value comes from, or what is wrong with it."""
        self.widget.error_state = bool(problem)
        if problem:
            self.hint.object = f'<span class="problem">{_escape(problem)}</span>'
            return
        if option is None:
            self.hint.object = ""
            return
        if isinstance(self.widget, pmui.TextInput):
            unset = option.recommended if option.recommended is not None else option.documented
            self.widget.placeholder = f"{_show(unset)}"
        documented = _show(option.documented)
        if self.choices is not None and not isinstance(self.declared, options.ColumnNames):
            documented = next((label for label, value in self.choices.items() if value == EMPTY), documented)
        elif isinstance(option.documented, bool):
            documented = "yes" if option.documented else "no"
        said = [f"default {_escape(documented)}"]
        if option.recommended not in (None, option.documented):
            said.insert(0, f"recommended {_show(option.recommended)}")
        if option.source == "yours":
            said.insert(0, "<b>yours</b>")
        reason = f' title="{_escape(option.reason)}"' if option.reason else ""
        self.hint.object = f"<span{reason}>{' · '.join(said)}</span>"


class ModelForm(param.Parameterized):
    """The form for a model of one data set.

    Attributes
    ----------
    given
        Options that the user chose, as `make_model` takes them.
    problem
        What is wrong with them as a whole; empty if they make a model.
    advanced
        Whether all options are shown, or the basic ones and those that were given.
    search
        Words; if there are any, the options are shown whose name, help or group has them all.
    """

    given = param.Dict(default={})
    problem = param.String(default="")
    advanced = param.Boolean(default=False)
    search = param.String(default="")

    def __init__(self, described: Description, **params: Any) -> None:
        super().__init__(**params)
        self.described = described
        _asking()  # the answer is there by the time somebody chooses an encoder of peaks
        data = _choices(described)
        self.fields = {n: Field(n, self.read, data.get(n)) for n in options.names()}
        for name, value in wanted(described).items():
            self.fields[name].set(value)
        self.found = parts.empty("No option has these words", "Options that do not apply to this model are not shown.")
        self.groups = {g: pn.Column(sizing_mode="stretch_width", margin=0) for g in options.GROUPS}
        for group, box in self.groups.items():
            members = [f for f in self.fields.values() if f.declared.metadata["group"] == group]
            grid = pn.Column(*(f.view for f in members), stylesheets=[GRID], sizing_mode="stretch_width")
            title = group if group.isupper() else group.capitalize()
            box.objects = [pmui.Typography(title, variant="subtitle2", margin=(12, 10, 0, 10)), grid]
        self.read()

    @param.depends("advanced", "search", watch=True)
    def read(self) -> None:
        """Take what the fields say; tell beside each what is wrong."""
        given: dict[str, Any] = {}
        problems: dict[str, str] = {}
        for name, field in self.fields.items():
            try:
                if (value := field.value()) is not NOT_GIVEN:
                    given[name] = value
            except MiraError as problem:
                problems[name] = str(problem)
        layer = next((x for x in self.described.layers if x.name == given.get("counts_layer")), None)
        if "counts_layer" not in problems and (layer is None or layer.problem):
            told = "the data has no X; choose a layer" if self.described.layers else "this file holds no counts"
            problems["counts_layer"] = layer.problem if layer else told
        given = {n: v for n, v in given.items() if options.applies(n, given)}
        own = dict(given)
        given["feature_type"] = given.get("feature_type", options.default("feature_type"))
        whole = next(iter(problems.values()), "")
        if not problems:
            try:
                options.validate_all(given)
                whole = (
                    options.device_problem(given, given.get("use_cuda", True) and _gpu())
                    if options.applies("dan_on_cpu", given)
                    else ""
                )
                if whole:
                    problems["atac_encoder"] = whole
            except MiraError as problem:
                whole = str(problem)
                named = next((n for n in sorted(self.fields, key=len, reverse=True) if n in whole), None)
                if named:
                    problems[named] = whole
        resolved: Mapping[str, ResolvedOption] = resolve(self.described.n_cells, self.described.n_features, own)
        for name, field in self.fields.items():
            applies = name in resolved
            shown = self.advanced or field.declared.metadata["level"] == "basic" or name in given or name in problems
            field.view.visible = applies and (field.matches(self.search) if self.search.strip() else shown)
            field.explain(resolved.get(name), problems.get(name, ""))
        self.found.visible = not any(f.view.visible for f in self.fields.values())
        for group, box in self.groups.items():
            box.visible = any(f.view.visible for f in self.fields.values() if f.declared.metadata["group"] == group)
        with param.parameterized.batch_call_watchers(self):
            self.given, self.problem = given, whole

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(self.found, *self.groups.values(), sizing_mode="stretch_width", margin=0)

    def load(self, given: Mapping[str, Any]) -> None:
        """Show these options and no others."""
        for name, field in self.fields.items():
            field.set(given.get(name, NOT_GIVEN))
        self.read()


def prepared(workspace: Workspace, key: str, recipe_key: str) -> tuple[Recipe, Description]:
    """Return a recipe, and the data set as it leaves it, once all is known that a form asks; may take long."""
    recipe = workspace.looks.recipe(recipe_key)
    described = workspace.prepared(key, recipe)
    wanted(described)  # which may have to wait for what GPUs there are
    return recipe, described


def wanted(described: Description) -> dict[str, Any]:
    """Return the options that the data call for: they are given, and can be seen and changed.

    May take seconds where the data are peaks, until it is known whether there is a GPU.
    """
    out: dict[str, Any] = {}
    layer = described.counts_layer()
    if layer is not None and layer.name is not None:
        out["counts_layer"] = layer.name
    if described.feature_type == "accessibility":
        out["feature_type"] = "accessibility"
        if not _gpu():
            out["atac_encoder"] = "fast"
    marked = next((c.n_marked for c in described.var if c.name == MARKED and c.marks), 0)
    if described.n_features > MANY_GENES and LEAST_MARKED <= marked < described.n_features:
        out["highly_variable_key"] = MARKED
    return out


@functools.cache
def _asking() -> Future[subprocess.CompletedProcess[str]]:
    """Ask torch for a GPU, in a process of its own: loading torch here would hold everybody up for seconds."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
    return ThreadPoolExecutor(1).submit(subprocess.run, command, capture_output=True, text=True, check=False)


@functools.cache
def _gpu() -> bool:
    """Whether there is a GPU."""
    return _asking().result().stdout.strip() == "True"


def _choices(described: Description) -> dict[str, dict[str, Any]]:
    flags = {n: n for n in described.flags()}
    layers = {_label(x): x.name or EMPTY for x in described.layers}
    # What tells batches is mostly named so, and has few values: it comes first.
    plain = ("categorical", "text", "boolean")
    ordered = sorted(described.obs, key=lambda c: (not TECHNICAL.search(c.name), c.kind not in plain, c.n_unique))
    columns = {c.name: c.name for c in ordered}
    numeric = {c.name: c.name for c in described.obs if c.numbers}
    return {
        "highly_variable_key": {"all features": EMPTY, **flags},
        "exogenous_key": {"all features": EMPTY, **flags},
        "endogenous_key": {"all modeled features": EMPTY, **flags},
        "counts_layer": layers if EMPTY in layers.values() else {"X (there is none)": EMPTY, **layers},
        "categorical_covariates": columns,
        "continuous_covariates": numeric,
        "covariates_keys": numeric,
        "extra_features_keys": numeric,
    }


def _label(layer: Layer) -> str:
    name = "X" if layer.name is None else "layers['X']" if layer.name == "X" else layer.name
    return name + (" (no raw counts)" if layer.problem else "")


def _number(text: str, declared: param.Parameter) -> Any:
    if declared.allow_None and text.lower() == NONE:
        return None
    try:
        value = float(text)
        whole = isinstance(declared, param.Integer) and value.is_integer()
        return int(text) if text.lstrip("+-").isdigit() else int(value) if whole else value
    except ValueError:  # no number, or one of thousands of digits
        return text


def _show(value: Any) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
