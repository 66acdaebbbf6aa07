"""Another modality of the same cells: which topics go together, and a map made of both."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core import analysis
from mira_core.analysis.embedding import embed

from ...exploring.cells import Cells
from ...exploring.colouring import topic_colours
from ...figures.embedding import Embedding
from ...figures.heatmap import Heatmap
from ...figures.raster import Paint
from ...pages import parts
from ...styles import HALVES
from .legend import Key
from .working import Place, Working, csv

if TYPE_CHECKING:
    from ..explorer import TopicExplorer

JOINT = "X_joint_umap_features"
Progress = Callable[[float], None]
ONE_AT_A_TIME = threading.Lock()  # UMAPs take all of a core, and numba's threads are not safe beside each other


class ModalitiesCard:
    """Two modalities of the same cells.

    Parameters
    ----------
    explorer
        Whose cells are of the first.
    choices, fetch
        Label -> key of what can be the second, and what gets its cells, in a thread.
    """

    def __init__(
        self, explorer: TopicExplorer, choices: Callable[[], dict[str, str]], fetch: Callable[[str], Cells]
    ) -> None:
        self.explorer, self.fetch = explorer, fetch
        self.frame: pd.DataFrame | None = None
        self.other: Cells | None = None
        self.maps: list[Embedding] = []
        offered = choices()
        single = len(offered) == 1 and "" in offered.values()
        self.choice = pmui.Select(
            label="Run of the other modality", options={"none": "", **offered}, value="", searchable=True,
            size="small", width=340,
            visible=not single, margin=(8, 8),
        )  # fmt: skip
        self.figure = Heatmap(
            "", "topics-of-two-modalities", "correlation", diverging=True,
            on_click=lambda row, _: explorer.paint_by(row),
        )  # fmt: skip
        self.place, self.working, self.mapping = Place(self.figure.root), Working(), Working()
        self.embed = pmui.Button(label="Make a map of both", icon="map", variant="outlined", size="small",
                                 visible=False, margin=(8, 8))  # fmt: skip
        self.note = parts.markup("note", margin=(0, 12, 4, 12))
        self.maps_at = pn.Column(stylesheets=[HALVES], sizing_mode="stretch_width", margin=0)
        self.view = pn.Column(
            pn.FlexBox(self.choice, csv("topics-of-two-modalities.csv", self._table), align_items="center"),
            self.working.view, self.note, self.place.view, self.embed, self.mapping.view, self.maps_at,
            sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.choice.param.watch(lambda e: self._correlate(e.new) if e.new else self._clear(), "value")
        parts.on_click(self.embed, self._embed)
        if single:
            self._correlate("")
        else:
            self._clear()

    def _clear(self) -> None:
        self.working.stop()
        self.mapping.stop()
        self.other = self.frame = None
        self.place.clear()
        self.note.object = "Choose the run of the same cells in another modality, such as peaks beside genes."
        self.embed.visible = False
        self.maps_at.objects = []

    def _correlate(self, key: str) -> None:
        self._clear()  # that of another run, also where this one can't be shown
        self.note.object = ""
        first = self.explorer.cells

        def work(_: Progress) -> tuple[Cells, pd.DataFrame]:
            second = self.fetch(key)
            return second, analysis.correlate_topics(first.named, second.named)

        def done(got: tuple[Cells, pd.DataFrame]) -> None:
            self.other, self.frame = got
            self.figure.root.title.text = "Correlation of topics: here by row, of the other modality by column"
            self.figure.update(self.frame)
            self.place.show()
            self.note.object = (
                "Pearson correlation of centred log-ratios over the cells that both have, by name. Where there are "
                "kinds of cells nearly all topics correlate a little: read the greatest of a row and a column."
            )
            self.embed.visible = True

        self.working.run("Correlating topics", work, done)

    def _embed(self) -> None:
        first, second = self.explorer.cells, self.other
        if second is None:
            return

        def work(progress: Progress) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            one, two = analysis.make_joint_representation(first.named, second.named)
            progress(0.02)
            with ONE_AT_A_TIME:
                xy = embed(one.obsm[JOINT], progress)
            return (
                xy,
                *(np.asarray(a.obsm["X_topic_compositions"]).argmax(1).astype(np.int16) for a in (one, two)),
                (one.obs_names.to_numpy(str)),
            )

        self.mapping.run(
            "Making a map of both modalities; of many cells this takes minutes:",
            work,
            lambda got: self._show(*got, second.K),
        )

    def _show(self, xy: np.ndarray, one: np.ndarray, two: np.ndarray, names: np.ndarray, others: int) -> None:
        self.maps, boxes = [], []
        for main, K, title in (
            (one, self.explorer.cells.K, "this modality"),
            (two, others, "the other modality"),
        ):
            figure = Embedding(xy, names, height=420)
            levels, colours = tuple(f"topic {k}" for k in range(K)), topic_colours(K)
            figure.show(Paint(f"Topic with the largest share, {title}", codes=main, levels=levels, colours=colours))
            legend = Key(entries=[[a, b, ""] for a, b in zip(levels, colours, strict=True)])
            legend.param.watch(
                lambda e, f=figure, c=main, n=levels: f.show(f.paint, c == n.index(e.new) if e.new in n else None),
                "chosen",
            )
            self.maps.append(figure)
            boxes.append(
                pn.Column(pn.pane.Bokeh(figure.root, sizing_mode="stretch_width"), legend,
                          sizing_mode="stretch_width", margin=0)
            )  # fmt: skip
        self.maps_at.objects = boxes

    def _table(self) -> Any:
        return None if self.frame is None else self.frame.rename_axis("topic").reset_index()
