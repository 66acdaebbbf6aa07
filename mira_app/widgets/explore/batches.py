"""Batches of a CODAL model: what a feature owes to them, how well they mix, and what cannot be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core.analysis import Mixing

from ...exploring import batches
from ...figures.bars import Bars
from ...figures.colours import LINE
from ...pages import parts
from ...styles import HALVES
from .features import FeatureInput, complete, named
from .working import Place, Working, csv

if TYPE_CHECKING:
    from ..explorer import TopicExplorer

SHOWN = 12  # kinds of cells that a warning names


class BatchCard:
    """Effects of batches, and how they mix."""

    def __init__(self, explorer: TopicExplorer) -> None:
        self.explorer = explorer
        self.effect: pd.DataFrame | None = None
        self.mixing: Mixing | None = None
        model = explorer.values.model
        known = list(model.get_params().get("categorical_covariates") or []) if model is not None else []
        categorical = explorer.categorical
        batch = next((c for c in known if c in categorical), categorical[0] if categorical else None)
        label = next((c for c in categorical if c != batch and c not in known), None)
        small: dict[str, Any] = {"size": "small", "searchable": True, "width": 220, "margin": (8, 8)}
        self.batch = pmui.Select(label="Batch", value=batch, **small,
                                 options=[*known, *(c for c in categorical if c not in known)])  # fmt: skip
        self.labels = pmui.Select(
            label="Kinds of cells", options={"none": "", **{c: c for c in categorical}}, value=label or "", **small
        )
        self.warning = pn.Column(sizing_mode="stretch_width", margin=0)
        self.search = FeatureInput(
            label="Feature", names=explorer.cells.labels.astype(str), placeholder="Type a part of its name", width=240
        )
        self.figure = Bars("", "batch-effect", "mean effect, natural log")
        self.place, self.working = Place(self.figure.root), Working()
        self.effect_table = pn.Column(sizing_mode="stretch_width", margin=0)
        self.measure = pmui.Button(label="Measure how well they mix", icon="blender", variant="outlined", size="small",
                                   margin=(12, 8))  # fmt: skip
        self.measuring = Working()
        self.measured = pn.Column(sizing_mode="stretch_width", margin=0)
        effect = pn.Column(
            parts.markup("table", "<h2>Effect on a feature</h2>", margin=(0, 10)), self.search, self.working.view,
            self.place.view, self.effect_table, sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        mixing = pn.Column(
            parts.markup("table", "<h2>Mixing</h2>", margin=(0, 10)), self.measure, self.measuring.view, self.measured,
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.view = pn.Column(
            pn.FlexBox(self.batch, self.labels), self.warning,
            pn.Column(effect, mixing, stylesheets=[HALVES], sizing_mode="stretch_width", margin=0),
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        parts.on_click(self.measure, self._measure)
        self.batch.param.watch(lambda _: self._changed(), "value")
        self.labels.param.watch(lambda _: self._warn(), "value")
        self.search.param.watch(self._typed, "value")
        explorer.param.watch(lambda _: self._tell(), "feature")
        self._changed()

    def _changed(self) -> None:
        self._warn()
        self._tell()

    def _warn(self) -> None:
        batch, label = self.batch.value, self.labels.value
        self.measuring.stop()  # that of other columns, which may be on its way
        self.measured.objects = []
        if not batch or not label or batch == label:
            self.warning.objects = []
            return
        found = batches.alone(self.explorer.column_of(label), self.explorer.column_of(batch))
        if not len(found):
            self.warning.objects = [parts.good(f"Each {label} occurs in more than one {batch}.")]
            return
        told = [f"{row.label} ({row.cells:,} cells) in {row.batch}" for row in found.itertuples(index=False)]
        more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        self.warning.objects = [
            parts.problem(
                f"In one {batch} only: {'; '.join(told[:SHOWN])}{more}. What sets these cells apart may be biology or "
                "technique: no model can tell, and none can be judged by them."
            )
        ]

    def _typed(self, event: Any) -> None:
        feature = named(str(event.new or "").strip(), self.explorer.cells)
        if feature is not None:
            self.explorer.feature = feature
        elif event.new:
            near = ", ".join(complete(str(event.new), self.explorer.cells.labels.astype(str), 5))
            self.effect_table.objects = [
                parts.problem(
                    f"{event.new!r} is not among the modelled features." + (f" Near it: {near}." if near else "")
                )
            ]

    def _tell(self) -> None:
        feature, batch, values = self.explorer.feature, self.batch.value, self.explorer.values
        if feature not in self.explorer.cells.features or not batch:
            return
        cells = self.explorer.cells
        label = str(cells.labels[values.position(feature)])
        if named(str(self.search.value or ""), cells) != feature:
            self.search.value = label if named(label, cells) == feature else feature  # some share a symbol
        column = self.explorer.column_of(batch)

        def done(frame: pd.DataFrame) -> None:
            self.effect = frame
            names = [f"{row.batch} ({row.cells:,})" for row in frame.itertuples(index=False)]
            self.figure.update(f"{label}: technical effect by {batch}", names, [LINE] * len(frame),
                               {"value": frame["effect"]})  # fmt: skip
            self.place.show()
            self.effect_table.objects = [
                csv("batch-effect.csv", lambda: self.effect),
                parts.note(
                    "The mean over the cells of what the model takes for technique: at 0.69 counts are twice what the "
                    "topics imply, at -0.69 half."
                ),
            ]

        self.working.run(
            f"Effects on {label}",
            lambda progress: batches.effect_by_batch(values, feature, column, progress), done,
        )  # fmt: skip

    def _measure(self) -> None:
        batch, label, explorer = self.batch.value, self.labels.value, self.explorer
        column = explorer.column_of(batch)
        labels = explorer.column_of(label) if label and label != batch else None

        def done(found: Mixing) -> None:
            self.mixing = found
            frame = found.to_frame().rename(columns={"auc": "batch told, AUC", "accuracy": "batch told, share"})
            frame.index = [{"topics": "after: topics"}.get(str(i), f"before: {i}") for i in frame.index]
            shown = [parts.table("Before and after", frame.rename_axis("by").reset_index())]
            if labels is not None:
                shown.append(
                    parts.note(f"From {parts.escape(str(label))} alone the batch is told with an AUC of "
                               f"{found.auc_of_labels:.2f}: so much follows from which cells the batches hold.")
                )  # fmt: skip
                shown.append(parts.table(f"Within each {label}", found.by_label.reset_index()))
            shown.append(
                parts.note(
                    "Mixing: entropy of the batches among the neighbours of a cell, over what perfect mixing would "
                    "give; 1 is perfect. Batch told: how well a logistic regression tells a cell's batch; an AUC of "
                    "0.5 is no trace."
                )
            )
            shown += [parts.note(f"To think of: {parts.escape(text)}.") for text in found.warnings]
            self.measured.objects = shown

        self.measuring.run("Measuring", lambda _: batches.mixing(explorer.values, column, labels), done)
