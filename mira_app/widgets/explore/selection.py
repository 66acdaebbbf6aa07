"""The selected cells: what they are made of beside the others, a name for them, and their names as a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core import analysis
from mira_core.errors import OptionError

from ...figures.bars import Bars
from ...figures.colours import categories
from ...pages import parts
from ...styles import HALVES
from .working import Place, Working, csv

if TYPE_CHECKING:
    from ..explorer import TopicExplorer

MOST = 30  # categories in the table of composition
NAMES = {
    "topic": "topic", "mean_selected": "mean, selected", "mean_others": "mean, others", "log_ratio": "log ratio",
    "statistic": "z", "p_value": "p", "q_value": "q", "auc": "AUC",
}  # fmt: skip


class SelectionCard:
    """Selected cells against the others."""

    def __init__(self, explorer: TopicExplorer) -> None:
        self.explorer = explorer
        self.tested: pd.DataFrame | None = None
        self.composed: pd.DataFrame | None = None
        small: dict[str, Any] = {"size": "small", "margin": (8, 8)}
        self.how = parts.markup("note", margin=(2, 12, 0, 12))
        self.by = pmui.Select(label="Select by", options={"nothing": ""}, value="", searchable=True, width=210, **small)
        self.category = pmui.Select(label="Category", options={"none": ""}, value="", searchable=True, visible=False,
                                    width=210, **small)  # fmt: skip
        self.name = pmui.TextInput(label="Name of the selection", width=210, **small)
        self.keep = pmui.Button(
            label="Keep as a column", icon="bookmark_add", variant="outlined", disabled=True, **small
        )
        self.clear = pmui.Button(label="Select none", icon="close", variant="text", disabled=True, **small)
        self.cells = csv("selected-cells.csv", self._cells, "Names of the cells")
        self.compare = pmui.Select(label="Composition by", options=[], searchable=True, width=210, **small)
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        self.working = Working()
        self.figure = Bars(
            "Mean share of topics", "selection", "mean share", ("selected", "others"),
            lambda at: explorer.paint_by(f"topic_{at}"),
        )  # fmt: skip
        self.tables = [pn.Column(sizing_mode="stretch_width", margin=0) for _ in range(2)]
        self.place = Place(self.figure.root)
        self.results = pn.Column(
            pn.Column(self.place.view, self.tables[0],
                      sizing_mode="stretch_width", margin=0),
            pn.Column(self.compare, self.tables[1], sizing_mode="stretch_width", margin=0),
            stylesheets=[HALVES], sizing_mode="stretch_width", margin=0, visible=False,
        )  # fmt: skip
        self.view = pn.Column(
            self.how,
            pn.FlexBox(self.by, self.category, self.name, self.keep, self.cells, self.clear, align_items="center"),
            self.message, self.working.view, self.results, sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        parts.on_click(self.keep, self._keep)
        parts.on_click(self.clear, lambda: explorer.select(None))
        self.by.param.watch(self._offer_categories, "value")
        self.category.param.watch(self._select_category, "value")
        self.compare.param.watch(lambda _: self._compose(), "value")
        explorer.param.watch(lambda _: self.update(), "selected")
        self.columns_changed()
        self.update()

    def columns_changed(self) -> None:
        """Offer the columns that there are now."""
        options = self.explorer.categorical
        self.by.options = {"nothing": "", **{name: name for name in options}}
        value = self.compare.value if self.compare.value in options else None
        self.compare.param.update(options=options, value=value or (options[0] if options else None))
        self.compare.visible = bool(options)

    # --- who is selected --------------------------------------------------------------------------

    def _offer_categories(self, event: Any) -> None:
        if not event.new:
            self.category.visible = False
            return
        levels = [str(c) for c in self.explorer.column_of(event.new).astype("category").cat.categories]
        self.category.param.update(options={"none": "", **{c: c for c in levels}}, value="", visible=True)

    def _select_category(self, event: Any) -> None:
        if event.new and self.by.value:
            values = self.explorer.column_of(self.by.value).astype("category")
            self.explorer.select((values.astype(str) == event.new).to_numpy())

    def _keep(self) -> None:
        if not self.name.value and self.message.objects:
            return  # it has been kept, and was clicked twice
        try:
            self.explorer.keep_selection(str(self.name.value or ""))
        except OptionError as wrong:
            self.message.objects = [parts.problem(str(wrong))]
            return
        self.message.objects = [parts.good(f"The column {self.name.value!r} tells who was selected.")]
        self.name.value = ""

    def _cells(self) -> pd.DataFrame:
        mask = self.explorer.selected
        return pd.DataFrame({"cell": self.explorer.cells.names[mask if mask is not None else slice(0)]})

    # --- what they are ------------------------------------------------------------------------------

    def update(self) -> None:
        """Compare the selected cells with the others."""
        mask = self.explorer.selected
        n = 0 if mask is None else int(mask.sum())
        self.clear.disabled = self.keep.disabled = self.cells.disabled = n == 0
        self.message.objects = []
        if mask is None or not 0 < n < len(mask):
            self.working.stop()
            self.results.visible = False
            self.tested = self.composed = None
            self.how.object = (
                "Draw around cells with the lasso or the box beside the figure, or select a category."
                if not n else "All cells are selected; there are no others to compare them with."
            )  # fmt: skip
            return
        self.how.object = f"<b>{n:,} cells</b> of {len(mask):,} are selected ({n / len(mask):.1%})."
        cells = self.explorer.cells

        def done(frame: pd.DataFrame) -> None:
            self.tested = frame
            by_topic = frame.set_index("topic").loc[cells.topics]
            self.figure.update(
                f"Mean share of topics: {n:,} selected cells and {len(mask) - n:,} others", cells.topics,
                categories(cells.K), {"selected": by_topic["mean_selected"], "others": by_topic["mean_others"]},
            )  # fmt: skip
            self.place.show()
            self.tables[0].objects = [
                parts.table("Differential topics", shown_test(frame)),
                parts.note(
                    f"{parts.escape(frame.attrs.get('test', ''))} of centred log-ratios; q: Benjamini-Hochberg. Cells "
                    "of one sample are no independent replicates: the p-values describe these cells, no population."
                ),
            ]
            self.results.visible = True
            self._compose()

        self.working.run("Comparing topics", lambda _: analysis.differential_topics(cells.topics_only, mask), done)

    def _compose(self) -> None:
        mask, name = self.explorer.selected, self.compare.value
        if mask is None or not mask.any() or name not in self.explorer.categorical:
            self.tables[1].objects = []
            return
        self.composed = composition(self.explorer.column_of(name), mask, str(name))
        more = len(self.composed) - MOST
        self.tables[1].objects = [
            parts.table(f"Cells by {name}", self.composed if more <= 0 else self.composed.iloc[:MOST]),
            *([parts.note(f"and {more:,} more categories")] if more > 0 else []),
        ]


def shown_test(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the test's numbers as people read them."""
    out = frame[list(NAMES)].rename(columns=NAMES)
    for name in ("mean, selected", "mean, others"):
        out[name] = [f"{v:.1%}" for v in out[name]]
    for name, form in (("log ratio", "{:+.2f}"), ("z", "{:+.1f}"), ("p", "{:.1e}"), ("q", "{:.1e}"), ("AUC", "{:.2f}")):
        out[name] = [form.format(v) for v in out[name]]
    return out


def composition(values: pd.Series, mask: np.ndarray, name: str) -> pd.DataFrame:
    """Count categories among the selected cells and among the others, the most over-represented first."""
    c = values.astype("category").cat
    codes, levels = c.codes.to_numpy(), [str(x) for x in c.categories]
    if (codes < 0).any():
        codes, levels = np.where(codes < 0, len(levels), codes), [*levels, "no value"]
    ours, all_ = (np.bincount(x, minlength=len(levels)) for x in (codes[mask], codes))
    others = all_ - ours
    share, rest = ours / max(ours.sum(), 1), others / max(others.sum(), 1)
    order = np.argsort(-(share - rest), kind="stable")
    frame = pd.DataFrame(
        {name: levels, "selected": ours, "of selected": [f"{v:.1%}" for v in share], "others": others,
         "of others": [f"{v:.1%}" for v in rest]}
    ).iloc[order]  # fmt: skip
    return frame.reset_index(drop=True)
