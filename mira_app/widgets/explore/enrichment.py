"""Which known sets of features topics are made of, from a file that somebody brings; nothing is downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core import analysis
from mira_core.errors import DataError

from ...pages import parts
from .working import Working, csv

if TYPE_CHECKING:
    from ..explorer import TopicExplorer

MOST = 15 * 2**20  # bytes of a file that is sent by the browser, whose connection takes no more at once
SHOWN = 500  # rows of a topic
METHODS = {
    "Over-representation of the top features (Fisher)": "overrepresentation",
    "Ranks of all activations (Wilcoxon)": "rank",
}
EFFECTS = {"overrepresentation": "odds ratio", "regions": "odds ratio", "rank": "AUC, 0.5: as any features"}
COLUMNS = {"gene_set": "set", "overlap": "overlap", "size": "size", "effect": "effect", "p_value": "p", "q_value": "q",
           "genes": "features"}  # fmt: skip


class EnrichmentCard:
    """Enrichment of gene sets (.gmt) or, of peaks, of regions (.bed).

    Parameters
    ----------
    explorer
        Whose topics.
    files
        Label -> path of files that lie at hand.
    """

    def __init__(self, explorer: TopicExplorer, files: Callable[[], dict[str, Path]] = dict) -> None:
        self.explorer = explorer
        self.tables: dict[str, pd.DataFrame] = {}
        self.files = files()
        model = explorer.values.model
        self.peaks = model is not None and model.get_params().get("feature_type") == "accessibility"
        kind = ".bed" if self.peaks else ".gmt"
        small: dict[str, Any] = {"size": "small", "margin": (8, 8)}
        self.file = pmui.FileInput(label=f"Choose a {kind} file", accept=f"{kind},.gz", variant="outlined", **small)
        self.path = pmui.Select(
            label=f"A {kind} file of the data folders", value="",
            options={"none": "", **{n: n for n in self.files if kind in n}},
            searchable=True, width=280, visible=any(kind in n for n in self.files), **small,
        )  # fmt: skip
        self.method = pmui.Select(label="Method", options=METHODS, value="overrepresentation", width=340,
                                  visible=not self.peaks, **small)  # fmt: skip
        self.go = pmui.Button(label="Test", icon="science", variant="outlined", disabled=True, **small)
        self.working = Working()
        self.which = pmui.Select(label="Result", options=[], visible=False, width=340, **small)
        self.topic = pmui.Select(label="Topic", options=explorer.cells.topics, value="topic_0", width=140,
                                 visible=False, **small)  # fmt: skip
        self.download = csv("enrichment.csv", lambda: self.tables.get(self.which.value))
        self.download.visible = False
        self.body = pn.Column(sizing_mode="stretch_width", margin=0)
        what = (
            "Regions as .bed, of the same assembly as the peaks." if self.peaks
            else "Gene sets as .gmt, such as those of MSigDB, Reactome or your own: a line for each, name, "
            "description, genes, divided by tabulators."
        )  # fmt: skip
        self.view = pn.Column(
            parts.note(what + " The background is the modelled features."),
            pn.FlexBox(self.file, self.path, self.method, self.go, align_items="center"), self.working.view,
            pn.FlexBox(self.which, self.topic, self.download, align_items="center"), self.body,
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.file.param.watch(lambda _: self._ready(), "filename")
        self.path.param.watch(lambda _: self._ready(), "value")
        parts.on_click(self.go, self._test)
        self.which.param.watch(lambda _: self._show(), "value")
        self.topic.param.watch(lambda _: self._show(), "value")
        explorer.param.watch(lambda _: self._follow(), "colour")
        self.working.run("Reading what was kept", lambda _: explorer.values.kept_enrichments(), self._kept)

    def _ready(self) -> None:
        self.go.disabled = not (self.file.filename or self.path.value)

    def _kept(self, tables: dict[str, pd.DataFrame]) -> None:
        self.tables = {**tables, **self.tables}
        self._offer(next(iter(self.tables), None))

    def _offer(self, name: str | None) -> None:
        self.which.param.update(options=list(self.tables), value=name)
        for widget in (self.which, self.topic, self.download):
            widget.visible = bool(self.tables)
        self._follow()
        self._show()

    def _follow(self) -> None:
        """Show the topic that the cells are coloured by."""
        if self.explorer.colour in self.explorer.cells.topics and self.topic.value != self.explorer.colour:
            self.topic.value = self.explorer.colour

    def _test(self) -> None:
        cells, method, values = self.explorer.cells, self.method.value, self.explorer.values
        chosen = self.path.value
        name, content = (chosen, None) if chosen else (self.file.filename, self.file.value)
        if content is not None and len(content) > MOST:
            self.working.view.objects = [
                parts.problem(
                    f"{name} has {len(content) / 1e6:.0f} MB; put files above {MOST / 1e6:.0f} MB into a data folder"
                )
            ]
            return
        told = f"{Path(str(name)).name} · {'regions' if self.peaks else method}"

        def work(_: Any) -> pd.DataFrame:
            if content is None:
                frame = self._enrich(cells.topics_only, self.files[chosen], method)
            else:
                with tempfile.TemporaryDirectory(prefix="mira-sets-") as folder:
                    path = Path(folder) / (Path(str(name)).name or "sets")
                    path.write_bytes(content)
                    frame = self._enrich(cells.topics_only, path, method)
            values.keep_enrichment(told, frame)
            return frame

        def done(frame: pd.DataFrame) -> None:
            self.tables[told] = frame
            self._offer(told)

        self.working.run("Testing", work, done)

    def _enrich(self, adata: Any, path: Path, method: str) -> pd.DataFrame:
        if not path.is_file():
            raise DataError(f"{path.name} is no longer there")
        if self.peaks:
            return analysis.enrich_peaks(adata, {path.name: path})
        return analysis.enrich(adata, path, method)

    def _show(self) -> None:
        frame = self.tables.get(self.which.value) if self.which.value else None
        if frame is None:
            self.body.objects = []
            return
        ours = frame[frame["topic"] == self.topic.value]
        n = int((ours["q_value"] < 0.05).sum())
        shown = shown_sets(ours.iloc[:SHOWN])
        table = parts.sheet(
            shown, header_filters=True, max_height=420, margin=(0, 10), selectable=False,
            formatters={"features": {"type": "textarea"}, "set": {"type": "textarea"}},
            widths={"set": "30%", "features": "34%"},
        )  # fmt: skip
        effect = EFFECTS.get(str(self.which.value).rpartition(" · ")[2], "as its test gives it")
        more = f" The first {SHOWN:,} are shown; the CSV has all." if len(ours) > SHOWN else ""
        self.body.objects = [
            parts.note(f"<b>{n:,}</b> of {len(ours):,} sets have q below 0.05 in {parts.escape(str(self.topic.value))}."
                       f" Effect: {effect}. q: Benjamini-Hochberg over the sets.{more}"),
            table,
        ]  # fmt: skip


def shown_sets(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it."""
    out = frame[list(COLUMNS)].rename(columns=COLUMNS)
    for name, form in (("effect", "{:.2f}"), ("p", "{:.1e}"), ("q", "{:.1e}")):
        out[name] = [form.format(v) if v == v else "–" for v in out[name].astype(float)]
    return out
