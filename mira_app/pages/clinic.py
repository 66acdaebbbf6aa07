"""What is wrong with the chosen data, how good their cells are, and what is done about it: a recipe."""

from __future__ import annotations

import functools
import html
import io
from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui

from mira_core.data import Finding, Recipe
from mira_core.data.inspection.features import N_TOP
from mira_core.data.look import Look
from mira_core.data.steps import FilterCells, FilterFeatures, HighlyVariable, Step
from mira_core.errors import MiraError

from ..datasets import label_of
from ..figures.quality import METRICS, Limits, Metric, QualityPlots
from ..session import Session
from ..styles import GRID, THIRDS
from ..workspace import Workspace
from . import parts

ALL = ""  # of a choice of columns: none
NOTHING_TO_DO = "Nothing has to be done"  # as findings say that only tell
WORDS = {
    "counts_from_layer": "Take the counts of a layer",
    "counts_from_raw": "Take the counts of raw",
    "recover_counts": "Recover counts",
    "reads_to_fragments": "Turn reads into fragments",
    "binarise": "Make counts binary",
    "store_by_row": "Store by cell",
    "make_names_unique": "Make names unique",
    "keep_features": "Keep features",
    "drop_missing": "Drop cells without a value",
    "filter_cells": "Filter cells",
    "filter_features": "Filter features",
    "drop_empty_features": "Drop empty features",
    "drop_rare_categories": "Drop cells of rare categories",
    "highly_variable": "Choose highly variable features",
    "drop_empty_cells": "Drop empty cells",
}


class Clinic:
    """Looks at the chosen data, and lets people put a recipe together.

    Attributes
    ----------
    recipe
        What is done to the cells; the file is never changed.
    looked
        Called with each look that has been taken.
    """

    def __init__(self, workspace: Workspace, session: Session, looked: Callable[[Look], None]) -> None:
        self.workspace, self.session, self.looked = workspace, session, looked
        self.recipe = Recipe()
        self.seen: Look | None = None
        self._key = ""
        self.progress = pn.Column(sizing_mode="stretch_width", margin=0)
        self.findings = pn.Column(sizing_mode="stretch_width", margin=0)
        self.steps = RecipeCard(self._set, workspace)
        self.cells = CellsCard(self._filter_cells)
        self.features = FeaturesCard(self._step)
        self.rest = pn.Column(
            self.findings, self.steps.view, self.cells.view, self.features.view,
            sizing_mode="stretch_width", margin=0, visible=False,
        )  # fmt: skip
        self.view = pn.Column(self.progress, self.rest, sizing_mode="stretch_width", margin=0)
        session.param.watch(lambda *_: self._changed(), "recipe")

    def load(self, key: str) -> None:
        """Look at a data set."""
        self._key, self.seen = key, None
        self.rest.visible = False
        self._look()

    def clear(self) -> None:
        """Show nothing."""
        self._key, self.seen = "", None
        self.rest.visible, self.progress.objects = False, []

    def _changed(self) -> None:
        if self._key and self._key == self.session.data:
            self._look()

    def _look(self) -> None:
        key, recipe_key = self._key, self.session.recipe

        def fetch() -> tuple[Recipe, Look]:
            recipe = self.workspace.looks.recipe(recipe_key)
            return recipe, self.workspace.data.look(key, recipe)

        def show(got: tuple[Recipe, Look]) -> None:
            if (key, recipe_key) == (self._key, self.session.recipe):
                self.progress.objects = []
                self._show(*got)

        parts.load(self.progress, fetch, show)
        self.progress.append(parts.note("Looking at the cells …" if self.seen is None else "Doing the recipe …"))

    def _show(self, recipe: Recipe, seen: Look) -> None:
        new = self.seen is None
        self.recipe, self.seen = recipe, seen
        if seen.problem:
            self.progress.objects = [parts.problem(seen.problem)]
        self._show_findings(seen.findings)
        self.steps.show(recipe, self._key)
        self.cells.show(recipe, seen, new)
        self.features.show(recipe, seen, new)
        self.rest.visible = True
        self.looked(seen)

    # --- findings -------------------------------------------------------------------------------

    def _show_findings(self, findings: list[Finding]) -> None:
        if not findings:
            self.findings.objects = [parts.good("Nothing was found that would harm a model.")]
            return
        shown = [self._finding(f) for f in findings]
        remedies = {f.remedy for f in findings if f.remedy is not None and f.severity != "info"}
        if len(remedies) > 1:
            mend = pmui.Button(label="Do all that is suggested", icon="auto_fix_high", variant="outlined", size="small",
                               margin=(4, 10, 10, 10))  # fmt: skip
            parts.on_click(mend, self._mend)
            shown.append(mend)
        self.findings.objects = [parts.card(*shown, heading="What to know before a model is made")]

    def _finding(self, f: Finding) -> Any:
        shown = pn.Column(parts.finding(f), sizing_mode="stretch_width", margin=0)
        if f.remedy is not None and NOTHING_TO_DO not in f.fix:
            do = pmui.Button(label=_words(f.remedy), icon="healing", variant="text", size="small",
                             margin=(0, 10, 6, 14))  # fmt: skip
            parts.on_click(do, functools.partial(self._step, f.remedy))
            shown.append(do)
        return shown

    def _mend(self) -> None:
        if self.seen is None:
            return
        recipe = self.recipe
        for f in self.seen.findings:
            if f.remedy is not None and f.severity != "info":
                recipe = recipe.plus(f.remedy)
        self._set(recipe)

    # --- the recipe -----------------------------------------------------------------------------

    def _step(self, step: Step) -> None:
        try:
            self._set(self.recipe.plus(step))
        except MiraError as problem:
            self.progress.objects = [parts.problem(str(problem))]

    def _filter_cells(self, options: dict[str, Any]) -> None:
        """Put these limits in place of others."""
        recipe = Recipe(s for s in self.recipe if not isinstance(s, FilterCells))
        if self.seen is not None and self.seen.symbols and "max_pct_mt" in options:
            options = {**options, "symbols": self.seen.symbols}
        self._set(recipe.plus("filter_cells", **options) if options else recipe)

    def _set(self, recipe: Recipe) -> None:
        try:
            key = self.workspace.keep_recipe(recipe, label_of(self._key))
        except (MiraError, OSError) as problem:
            self.progress.objects = [parts.problem(str(problem))]
            return
        self.recipe = recipe  # at once, as the next step may be chosen before this one was looked at
        self.session.recipe = key


class RecipeCard:
    """The steps, each of which can be taken out; as JSON and Python; recipes of before.

    Parameters
    ----------
    changed
        Called with the recipe that somebody wants.
    """

    def __init__(self, changed: Callable[[Recipe], None], workspace: Workspace) -> None:
        self.changed, self.workspace = changed, workspace
        self.recipe = Recipe()
        self.steps = pn.Column(sizing_mode="stretch_width", margin=0)
        self.code = parts.markup("code", margin=(4, 10))
        self.download = pmui.FileDownload(
            callback=lambda: io.StringIO(self.recipe.to_json()), filename="recipe.json", label="Recipe as JSON",
            icon="download", variant="text", size="small",
        )  # fmt: skip
        self.before = pmui.Select(
            label="A recipe of before", options={"": ""}, size="small", sizing_mode="stretch_width"
        )
        self.text = pmui.TextAreaInput(
            label="Or a recipe as JSON", rows=3, auto_grow=True, max_rows=12, size="small", sizing_mode="stretch_width"
        )
        self.use = pmui.Button(label="Use it", icon="input", variant="text", size="small")
        self.said = pn.Column(sizing_mode="stretch_width", margin=0)
        others = pn.Column(self.before, self.text, self.use, self.said, sizing_mode="stretch_width", margin=0)
        self.more = pmui.Accordion(
            ("Use another recipe", others), active=[], title_variant="body2", elevation=0, disable_gutters=True,
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.view = parts.card(self.steps, self.more, heading="Recipe")
        self.before.param.watch(lambda e: parts.in_turn(functools.partial(self._again, e.new)), "value")
        parts.on_click(self.use, self._read)

    def show(self, recipe: Recipe, data: str) -> None:
        """Show a recipe."""
        self.recipe = recipe
        self.said.objects = []
        self.before.param.update(options={"Choose …": "", **self.workspace.recipes()}, value="")
        if not recipe.steps:
            self.steps.objects = [
                parts.note(
                    "Nothing is done to the cells. Steps that you choose are listed here; the file never changes."
                )
            ]
            return
        rows = []
        for i, step in enumerate(recipe, 1):
            out = pmui.Button(label="Remove", icon="close", variant="text", size="small", margin=(0, 6))
            parts.on_click(out, functools.partial(self._without, step))
            told = parts.markup("status", f"{i}. <b>{html.escape(_words(step))}</b>", margin=(6, 12))
            rows.append(pn.Row(told, out, sizing_mode="stretch_width", margin=0))
        python = html.escape(recipe.to_python(self.workspace.data.data_of(data)))
        self.code.object = f"<details><summary>As Python</summary><pre>{python}</pre></details>"
        self.steps.objects = [*rows, self.code, self.download]

    def _without(self, step: Step) -> None:
        self.changed(self.recipe.without(step))

    def _again(self, key: str) -> None:
        if key:
            self.changed(self.workspace.looks.recipe(key))

    def _read(self) -> None:
        try:
            self.changed(Recipe.from_json(self.text.value or ""))
        except MiraError as problem:
            self.said.objects = [parts.problem(str(problem))]


class CellsCard:
    """Quality of cells, and the limits beyond which they are left out.

    Parameters
    ----------
    apply
        Called with options of the step filter_cells.
    """

    def __init__(self, apply: Callable[[dict[str, Any]], None]) -> None:
        self.apply = apply
        self.plots = QualityPlots()
        self.plots.moved, self.plots.counted = self._write, self._say
        self._applied: dict[str, Any] = {}
        self._suggested: dict[str, Limits] = {}
        self._fields: dict[tuple[str, int], Any] = {}
        self._quiet = False
        self.grid = pn.Column(stylesheets=[THIRDS], sizing_mode="stretch_width", margin=0)
        self.line = parts.markup("status", margin=(2, 12))
        self.keep = pmui.Button(label="Keep only these cells", icon="filter_alt", size="small")
        self.suggest = pmui.Button(label="Suggested limits", icon="auto_fix_high", variant="text", size="small")
        self.none = pmui.Button(label="No limits", icon="clear", variant="text", size="small")
        self.view = parts.card(
            parts.note("Drag the edges, or write limits. Suggested ones lie 5 median absolute deviations from the "
                       "median (3 for the mitochondrial share)."),
            self.grid, self.line, pn.FlexBox(self.keep, self.suggest, self.none, sizing_mode="stretch_width"),
            heading="Quality of cells",
        )  # fmt: skip
        parts.on_click(self.keep, lambda: self.apply(self.plots.options()))
        parts.on_click(self.suggest, lambda: self._place(self._suggested))
        parts.on_click(self.none, lambda: self._place({}))

    def show(self, recipe: Recipe, seen: Look, new: bool) -> None:
        """Show the cells that would be filtered, with the recipe's limits, or suggested ones."""
        self.view.visible = not seen.cells.empty
        if seen.cells.empty:
            return
        step = next((s for s in recipe if isinstance(s, FilterCells)), None)
        self._applied = {k: v for k, v in step.given().items() if k != "symbols"} if step is not None else {}
        self._suggested = self.plots.suggested(seen.thresholds)
        limits = self._suggested if new else dict(self.plots.limits)  # which somebody may be about to choose
        if step is not None:
            limits = self.plots.of_options(self._applied)
        self._fields = {}
        self.plots.show(seen.cells, limits)
        self.grid.objects = [
            pn.Column(self.plots.panes[m.name], self._inputs(m), sizing_mode="stretch_width", margin=0)
            for m in METRICS
            if m.name in self.plots.panes
        ]
        self._say()

    def _inputs(self, m: Metric) -> Any:
        shown = []
        for side, label in ((0, m.low), (1, m.high)):
            if label is not None:
                field = pmui.TextInput(
                    label=label, value=_number(self.plots.limits[m.name][side]), placeholder="no limit", size="small",
                    sizing_mode="stretch_width",
                )  # fmt: skip
                field.param.watch(lambda e: parts.in_turn(self._typed), "value")
                self._fields[m.name, side] = field
                shown.append(field)
        return pn.Row(*shown, sizing_mode="stretch_width", margin=(6, 0))

    def _write(self) -> None:
        """Write the limits into the fields."""
        self._quiet = True
        for (name, side), field in self._fields.items():
            field.param.update(value=_number(self.plots.limits[name][side]), error_state=False)
        self._quiet = False

    def _typed(self) -> None:
        if self._quiet:
            return
        limits: dict[str, list[float | None]] = {name: [None, None] for name in self.plots.limits}
        wrong = False
        for (name, side), field in self._fields.items():
            text = (field.value or "").strip().replace(",", "")
            try:
                value = float(text) if text else None
                bad = value is not None and not 0 <= value < float("inf")
            except ValueError:
                bad, value = True, None
            digits = next(m.digits for m in METRICS if m.name == name)
            limits[name][side] = value if value is None or bad else int(value) if digits == 0 else value
            field.error_state = bad
            wrong |= bad
        if not wrong:
            self.plots.place({name: (low, high) for name, (low, high) in limits.items()})

    def _place(self, limits: dict[str, Limits]) -> None:
        self.plots.place(limits)
        self._write()

    def _say(self) -> None:
        options = self.plots.options()
        done = options == self._applied
        kept, of = self.plots.kept, self.plots.of
        if not options:
            words = f"No limits: all <b>{of:,}</b> cells are kept."
        else:
            words = f"{'Keeps' if done else 'Would keep'} <b>{kept:,}</b> of {of:,} cells ({_share(kept, of)})."
        crossed = any(low is not None and high is not None and low > high for low, high in self.plots.limits.values())
        if crossed:
            words = "A lower limit is above the upper one."
        self.line.object = words
        self.keep.disabled = done or kept == 0 or crossed
        self.keep.label = "Keep all cells" if not options else "Keep only these cells"


class FeaturesCard:
    """Features in hardly a cell, and highly variable ones.

    Parameters
    ----------
    add
        Called with a step to take up.
    """

    def __init__(self, add: Callable[[Step], None]) -> None:
        self.add = add
        few = {"size": "small", "sizing_mode": "stretch_width"}
        self.min_cells = pmui.TextInput(label="In at least so many cells", value="3", **few)
        self.drop = pmui.Button(label="Drop rarer features", icon="filter_alt", variant="outlined", size="small")
        self.n_top = pmui.TextInput(
            label="Variable features to model", value="4000", **few,
            description="Columns: highly_variable, for highly_variable_key (exogenous: what the topics explain).",
        )  # fmt: skip
        self.n_endogenous = pmui.TextInput(
            label="Of these, seen by the encoder", placeholder="all", **few,
            description="Column: endogenous, for endogenous_key. Empty: the encoder sees all that are modelled.",
        )  # fmt: skip
        self.batch = pmui.Select(label="Chosen within each", options={"all cells": ALL}, value=ALL, **few)
        self.flavor = pmui.Select(label="Way (scanpy)", options=["seurat_v3", "pearson_residuals"], **few)
        self.choose = pmui.Button(label="Choose variable features", icon="sort", variant="outlined", size="small")
        self.line = parts.markup("status", margin=(2, 12))
        self.said = pn.Column(sizing_mode="stretch_width", margin=0)
        self.view = parts.card(
            self.line,
            pn.Column(
                self.n_top, self.n_endogenous, self.batch, self.flavor, stylesheets=[GRID],
                sizing_mode="stretch_width", margin=0,
            ),
            self.choose,
            pn.Column(self.min_cells, stylesheets=[GRID], sizing_mode="stretch_width", margin=0),
            self.drop, self.said, heading="Features",
        )  # fmt: skip
        parts.on_click(self.drop, lambda: self._try(FilterFeatures, min_cells=_whole(self.min_cells.value)))
        parts.on_click(
            self.choose,
            lambda: self._try(
                HighlyVariable, n_top=_whole(self.n_top.value), n_endogenous=_whole(self.n_endogenous.value),
                batch_key=self.batch.value or None, flavor=self.flavor.value,
            ),
        )  # fmt: skip

    def show(self, recipe: Recipe, seen: Look, new: bool) -> None:
        """Show what the recipe does to features."""
        self.view.visible = not seen.cells.empty
        self.said.objects = []
        d = seen.description
        step = next((s for s in recipe if isinstance(s, HighlyVariable)), None)
        columns = {
            c.name: c.name for c in d.obs if c.kind in ("categorical", "text", "boolean") and 1 < c.n_unique < 200
        }
        batch = self.batch.value if self.batch.value in columns else ALL
        self.batch.param.update(options={"all cells": ALL, **columns}, value=batch)
        if step is not None:
            self.n_top.value, self.n_endogenous.value = str(step.n_top), str(step.n_endogenous or "")
            self.flavor.value = step.flavor
        elif new:
            self.n_top.value = str(N_TOP if d.n_features > 2 * N_TOP else max(2, d.n_features // 2))
            self.n_endogenous.value = ""
        flags = d.flags()
        marks = f" Columns that mark some: <b>{html.escape(', '.join(flags))}</b>." if flags else ""
        self.line.object = f"<b>{d.n_features:,}</b> of {seen.opened[1]:,} features.{marks}"

    def _try(self, step: type[Step], **options: Any) -> None:
        try:
            made = step(**options)
        except MiraError as problem:
            self.said.objects = [parts.problem(str(problem))]
            return
        self.said.objects = []
        self.add(made)


def _whole(text: str) -> int | str | None:
    """Return a number, the text if it is none, or None if there is none."""
    text = (text or "").strip().replace(",", "")
    return int(text) if text.isdigit() else text or None


def _share(kept: int, of: int) -> str:
    """Return a share that says 100 % of all only."""
    return "100 %" if kept == of else f"{min(kept / max(1, of), 0.999):.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def _words(step: Step) -> str:
    """Say a step in words."""
    told = ", ".join(
        f"{k.replace('_', ' ')} {', '.join(v) if isinstance(v, tuple) else f'{v:g}' if isinstance(v, float) else v}"
        for k, v in step.given().items()
        if k != "symbols"
    )
    return WORDS[step.name] + (f": {told}" if told else "")
