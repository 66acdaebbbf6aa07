"""From options to a form: one field for each option, its message beside it.

A field left empty is not given to the model, which then recommends a value; the hint says which, and why.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui
import param

from mira_core import environment, notation, options
from mira_core.data import Recipe, open_data
from mira_core.data.describe import Description, Layer, describe
from mira_core.data.inspection.covariates import TECHNICAL
from mira_core.data.inspection.features import MANY_GENES
from mira_core.errors import MiraError, OptionError
from mira_core.recommend import ResolvedOption, resolve

from .fields import EMPTY, NOT_GIVEN, Field
from .pages import parts
from .styles import GRID, WIDE_AND_NARROW
from .widgets.notebook import Alone

if TYPE_CHECKING:
    import anndata as ad

    from mira_core.topics import TopicModel

    from .workspace import Workspace

NOTATIONS = ("Python", "Command", "JSON")
WRONG = "# Correct the marked option first."
MARKED = "highly_variable"  # column in which scanpy, and recipes, mark features
LEAST_MARKED = 50  # features, from which a model can be made


class Notations:
    """The same model as Python, as a command, as JSON.

    Attributes
    ----------
    view
        Tabs.
    """

    def __init__(self, *names: str) -> None:
        self._boxes = {name: parts.markup("code", margin=(4, 10)) for name in names}
        self.view = pmui.Tabs(*self._boxes.items(), sizing_mode="stretch_width", margin=(0, 4))

    def show(self, texts: Mapping[str, str], wrong: bool) -> None:
        """Show them, or that something has to be corrected first."""
        for name, box in self._boxes.items():
            box.object = f"<pre>{parts.escape(WRONG if wrong else texts.get(name, ''))}</pre>"


class Group:
    """The fields of a group, side by side. Those that were never shown are not in it: browsers build fields slowly.

    Attributes
    ----------
    view
        The group under its name; not visible while none of its fields is.
    """

    def __init__(self, name: str, fields: Sequence[Field]) -> None:
        self._fields = fields
        self._built: list[Field] = []
        self._grid = pn.Column(stylesheets=[GRID], sizing_mode="stretch_width")
        title = pmui.Typography(
            name if name.isupper() else name.capitalize(), variant="subtitle2", margin=(12, 10, 0, 10)
        )
        self.view = pn.Column(title, self._grid, sizing_mode="stretch_width", margin=0)

    def lay_out(self) -> None:
        """Take in the fields that are shown for the first time."""
        built = [f for f in self._fields if f.visible or f in self._built]
        if built != self._built:
            self._built, self._grid.objects = built, [f.view for f in built]
        self.view.visible = any(f.visible for f in self._fields)


class ModelForm(Alone):
    """The form for a model of one data set: every option that applies, what it would be, and why.

    Parameters
    ----------
    data
        AnnData, the path of a file, or what `mira_core.data.describe` says of one.
    **given
        Options to begin with, as `mira.topics.make_model` takes them.
    notations
        In which ways the model is written down, of `NOTATIONS`; by default those that make sense for the data.

    Attributes
    ----------
    given
        Options that the user chose, as `make_model` takes them. Can be set; what is wrong is then told beside the
        fields, and is not in it.
    problem
        What is wrong with them as a whole; empty if they make a model.
    advanced
        Whether all options are shown, or the basic ones and those that were given.
    search
        Words; if there are any, the options are shown whose name, help or group has them all.

    Raises
    ------
    DataError
        If the data cannot be opened.
    OptionError
        If something is given that is no option.

    Examples
    --------
    >>> form = ModelForm(adata, num_topics=12)
    >>> form  # in a cell of a notebook
    >>> form.given
    {'num_topics': 12, 'feature_type': 'expression'}
    >>> model = form.model()
    """

    given = param.Dict(default={})
    problem = param.String(default="")
    advanced = param.Boolean(default=False)
    search = param.String(default="")

    def __init__(
        self, data: Description | ad.AnnData | str | Path, *, notations: Sequence[str] = (), **given: Any
    ) -> None:
        super().__init__()
        self.described = data if isinstance(data, Description) else describe(open_data(data, backed=True))
        self._told: dict[str, Any] = {"data": str(data) if isinstance(data, str | Path) else None}
        self._quiet = False
        _asking()  # the answer is there by the time somebody chooses an encoder of peaks
        choices = _choices(self.described)
        self.fields = {n: Field(n, self.read, choices.get(n)) for n in options.names()}
        for name, value in {**wanted(self.described), **_known(given)}.items():
            self.fields[name].set(value)
        self._lay_out(notations or (NOTATIONS if self._told["data"] else NOTATIONS[:1]))
        self.read()

    def _lay_out(self, notations: Sequence[str]) -> None:
        self._found = parts.empty("No option has these words", "Options that do not apply to this model are not shown.")
        self._groups = [
            Group(g, [f for f in self.fields.values() if f.declared.metadata["group"] == g]) for g in options.GROUPS
        ]
        search = pmui.TextInput.from_param(
            self.param.search, label="Find an option", placeholder="dropout", size="small",
            sizing_mode="stretch_width", margin=(6, 10),
        )  # fmt: skip
        every = pmui.Switch.from_param(self.param.advanced, label="All options", margin=(12, 10))
        self.options = pn.Column(
            pn.Row(search, every, sizing_mode="stretch_width", margin=0),
            pn.Column(self._found, *(g.view for g in self._groups), sizing_mode="stretch_width", margin=0),
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.code = Notations(*notations)
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)

    def __panel__(self) -> pn.viewable.Viewable:
        """Return what is shown."""
        return self._view

    @functools.cached_property
    def _view(self) -> pn.viewable.Viewable:
        size = f"{self.described.n_cells:,} cells × {self.described.n_features:,} features"
        heading = "The same in Python" + (", as a command, as JSON" if self._told["data"] else "")
        return pn.Column(
            parts.markup("note", size, margin=(6, 12, 0, 12)),
            pn.Column(
                self.options,
                pn.Column(self.message, parts.card(self.code.view, heading=heading), sizing_mode="stretch_width"),
                stylesheets=[WIDE_AND_NARROW], sizing_mode="stretch_width",
            ),
            sizing_mode="stretch_width",
        )  # fmt: skip

    def model(self) -> TopicModel:
        """Make the model, not fitted.

        Raises
        ------
        OptionError
            If something is wrong; `problem` says what.
        """
        from mira_core.topics import make_model

        if self.problem:
            raise OptionError(self.problem)
        return make_model(self.described.n_cells, self.described.n_features, **self.given)

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
            field.visible = applies and (field.matches(self.search) if self.search.strip() else shown)
            field.explain(resolved.get(name), problems.get(name, ""))
        self._found.visible = not any(f.visible for f in self.fields.values())
        for group in self._groups:
            group.lay_out()
        self._quiet = True
        with param.parameterized.batch_call_watchers(self):
            self.given, self.problem = given, whole
        self._quiet = False
        self.message.objects = [parts.problem(whole)] if whole else []
        self.write(**self._told)

    @param.depends("given", watch=True)
    def _given(self) -> None:
        if not self._quiet:
            try:
                self.load(_known(self.given))
            except OptionError:
                self.read()  # it stays as it was
                raise

    def write(self, **told: Any) -> None:
        """Write the model down in all ways; `told` is what `mira_core.notation` wants to know besides."""
        self._told = told
        recipe, given = told.get("recipe"), self.given
        texts = {"Python": notation.to_python(**told, given=given)}
        if told["data"] is not None:
            command = {**told, "recipe": "recipe.json" if recipe else None}
            texts |= {"Command": notation.to_command(**command, given=given)}
            texts |= {"JSON": notation.to_json(**told, given=given)}
        self.code.show(texts, bool(self.problem))

    def load(self, given: Mapping[str, Any]) -> None:
        """Show these options and no others."""
        with self.changing():
            for name, field in self.fields.items():
                field.set(given.get(name, NOT_GIVEN))
            self.read()

    def words(self) -> str:
        """Return the options, where each comes from, and what is wrong."""
        resolved = resolve(self.described.n_cells, self.described.n_features, self.given)
        rows = [
            (n, repr(o.value), o.source, "" if o.source == "yours" else o.reason)
            for n, o in resolved.items()
            if o.source == "yours" or options.parameter(n).metadata["level"] == "basic"
        ]
        table = parts.table_html("Options", pd.DataFrame(rows, columns=["option", "value", "source", "why"]))
        return (parts.problem_html(self.problem) if self.problem else "") + table


def _known(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is given, if all of it are options."""
    for name in given:
        options.parameter(name)
    return given


def prepared(workspace: Workspace, key: str, recipe_key: str) -> tuple[Recipe, Description]:
    """Return a recipe, and the data set as it leaves it, once all is known that a form asks; may take long."""
    recipe = workspace.looks.recipe(recipe_key)
    described = workspace.data.prepared(key, recipe)
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
def _asking() -> Future[subprocess.CompletedProcess[str]] | None:
    """Ask torch for a GPU, in a process of its own: loading torch here would hold everybody up for seconds.

    Nobody is asked where Linux has the device of none.
    """
    if not environment.may_have_gpu():
        return None
    command = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
    return ThreadPoolExecutor(1).submit(subprocess.run, command, capture_output=True, text=True, check=False)


@functools.cache
def _gpu() -> bool:
    """Whether there is a GPU."""
    asking = _asking()
    return asking is not None and asking.result().stdout.strip() == "True"


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
