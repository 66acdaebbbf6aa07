"""A feature: which topics it belongs to, and where it is in the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui
import param

from mira_core import analysis

from ...exploring.cells import Cells
from ...exploring.values import HOW
from ...figures.bars import Bars
from ...figures.colours import categories
from ...pages import parts
from .working import Place, csv

if TYPE_CHECKING:
    from ..explorer import TopicExplorer

MOST = 30  # completions that are offered


class FeatureInput(pmui.AutocompleteInput):
    """A field that completes names of features, which stay on the server: there may be hundreds of thousands."""

    _rename = {"names": None}  # noqa: RUF012
    _restrict = False  # or what is chosen would be taken back, as it is not among the options
    names = param.Parameter(default=None, doc="All names, an array of texts.")

    def __init__(self, **params: Any) -> None:
        super().__init__(
            **{
                "options": [], "restrict": False, "lazy_search": True, "min_characters": 1, "case_sensitive": False,
                "search_strategy": "includes", "size": "small", **params,
            }
        )  # fmt: skip

    def _filter_options(
        self, query: str, case_sensitive: bool | None = None, search_strategy: str | None = None
    ) -> list[str]:
        return [] if self.names is None else complete(query, self.names)


def complete(query: str, names: np.ndarray, most: int = MOST) -> list[str]:
    """Return names for what somebody has typed: the same, then those that begin so, then those that hold it.

    Letters' case does not matter; shorter names come first.
    """
    wanted = query.strip().lower()
    if not wanted:
        return []
    lower = np.char.lower(names)
    at = np.char.find(lower, wanted)
    found = np.flatnonzero(at >= 0)
    order = np.lexsort((lower[found], np.char.str_len(lower[found]), at[found] != 0))
    return list(dict.fromkeys(names[found[order]].tolist()))[:most]


def named(text: str, cells: Cells) -> str | None:
    """Return the feature that a text names: as the data or as people call it, whatever the case; None if none."""
    for names in (cells.features.to_numpy(str), cells.labels):
        for mine, theirs in ((names, text), (np.char.lower(names), text.lower())):
            at = np.flatnonzero(mine == theirs)
            if len(at):
                return str(cells.features[at[0]])
    return None


class FeatureCard:
    """Topics of a feature."""

    def __init__(self, explorer: TopicExplorer) -> None:
        self.explorer = explorer
        self.frame: pd.DataFrame | None = None
        cells = explorer.cells
        self.search = FeatureInput(
            label="Feature", names=cells.labels.astype(str), placeholder="Type a part of its name",
            margin=(14, 8, 6, 8),
            helper_text=f"{len(cells.features):,} modelled features", width=280,
        )  # fmt: skip
        ways = explorer.values.ways()
        self.buttons = [
            pmui.Button(label=f"Colour by {HOW[how]}", variant="outlined", size="small", disabled=True, margin=(12, 4))
            for how in ways
        ]
        for how, button in zip(ways, self.buttons, strict=True):
            parts.on_click(button, lambda how=how: explorer.paint_by(f"{how}:{explorer.feature}"))
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        self.figure = Bars("", "topics-of-feature", "activation, standard deviations", on_click=self._clicked)
        self.place = Place(self.figure.root)
        self._topics: list[str] = []
        self.view = pn.Column(
            pn.FlexBox(
                self.search, *self.buttons, csv("topics-of-feature.csv", lambda: self.frame), align_items="start"
            ),
            self.message, self.place.view, sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.search.param.watch(self._typed, "value")
        explorer.param.watch(lambda _: self._update(), "feature")
        self._update()

    def _typed(self, event: Any) -> None:
        text = str(event.new or "").strip()
        if not text:
            return
        feature = named(text, self.explorer.cells)
        if feature is None:
            near = complete(text, self.explorer.cells.labels.astype(str), 5)
            hint = f" Near it: {', '.join(near)}." if near else " No modelled feature has these letters."
            self.message.objects = [parts.problem(f"{text!r} is not among the modelled features.{hint}")]
            return
        self.explorer.feature = feature

    def _update(self) -> None:
        feature, cells = self.explorer.feature, self.explorer.cells
        if feature not in cells.features:
            return
        label = str(cells.labels[self.explorer.values.position(feature)])
        if named(str(self.search.value or ""), cells) != feature:
            self.search.value = label if named(label, cells) == feature else feature  # some share a symbol
        ranked = analysis.rank_topics(cells.topics_only, feature)
        colours = categories(cells.K)
        self._topics = [str(t) for t in ranked.index]
        self.frame = ranked.rename("activation").reset_index().assign(feature=feature)
        order = [colours[int(t.removeprefix("topic_"))] for t in self._topics]
        name = label if label == feature else f"{label} ({feature})"
        self.figure.update(f"{name}: how far each topic moves it", self._topics, order, {"value": ranked.to_numpy()})
        self.message.objects = [] if self.buttons else [parts.note("Neither counts nor a model are at hand here.")]
        self.place.show()
        for button in self.buttons:
            button.disabled = False

    def _clicked(self, at: int) -> None:
        self.explorer.paint_by(self._topics[at])
