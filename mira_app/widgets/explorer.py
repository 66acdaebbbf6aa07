"""Topics on cells, to look at: in the page Explore, in a notebook, in any page of Panel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui
import param

from mira_core import analysis
from mira_core.errors import DataError, OptionError

from ..exploring import colouring
from ..exploring.cells import THETA, Cells
from ..exploring.colouring import MAIN, SELECTION
from ..exploring.values import HOW, Values
from ..figures.embedding import MANY, Embedding
from ..figures.raster import Paint
from ..figures.still import draw_cells
from ..pages import parts
from ..styles import WIDE_AND_NARROW
from .explore.batches import BatchCard
from .explore.columns import ByColumn
from .explore.compare import CompareCard
from .explore.enrichment import EnrichmentCard
from .explore.features import FeatureCard
from .explore.legend import Key
from .explore.modalities import ModalitiesCard
from .explore.selection import SelectionCard
from .explore.topics import TopicTable
from .explore.working import Working
from .notebook import Alone

if TYPE_CHECKING:
    from mira_core.estimators.fitted import FittedModel

AT_ONCE = 2_000_000  # cells of which colours are found within this session's turn, a tenth of a second for half of it
MENU = {"& .MuiTab-root": {"textTransform": "none", "minHeight": "40px", "padding": "6px 12px"}}
LEGEND_MOST = 120  # categories in the legend
# What can be compared: label -> key, and what gets the cells of a key, in a thread.
Others = tuple[Callable[[], dict[str, str]], Callable[[str], Cells]]
Parts = dict[str, tuple[str, Callable[[Any], Any]]]


class TopicExplorer(Alone):
    """Topics on cells: a map of the cells, the topics, and what more can be asked of them.

    Parameters
    ----------
    model
        A fitted model; None: without what only a model can tell (imputed values, effects of batches).
    adata
        Its cells. If they have no topics yet they are predicted, and written to it as `TopicModel.predict` does; a
        UMAP is taken from ``obsm['X_umap']``, without which the axes are the topics' principal ones. Counts are taken
        from the model's ``counts_layer``.
    other
        Another model's prediction of the same cells, to compare with.
    modality
        The prediction of the same cells in another modality, such as peaks beside genes; matched by their names.
    many
        Cells above which they are drawn as an image rather than as points.

    Attributes
    ----------
    colour
        What the cells are coloured by: ``"main topic"``, ``"topic_3"``, ``"selection"``, the name of a column, or a
        feature as ``"log:CD3D"``, ``"raw:CD3D"``, ``"imputed:CD3D"``. Can be set.
    selected
        Which cells are selected, N booleans; None: none. Can be set.
    feature, column, part, beside
        What is looked at: a feature, a column of the heatmap, which part is shown, which run is compared. Can be set.

    Raises
    ------
    DataError
        If the cells have no topics and there is no model, or the model does not fit them.

    Notes
    -----
    A selection that is given a name becomes a column of ``adata.obs``.

    Examples
    --------
    >>> explorer = TopicExplorer(model, adata)
    >>> explorer  # in a cell of a notebook
    >>> adata[explorer.selected]
    """

    colour: str = param.String(default=MAIN, doc="What the cells are coloured by.")  # type: ignore[assignment]
    feature: str = param.String(default="", doc="The feature that is looked at.")  # type: ignore[assignment]
    column: str = param.String(default="", doc="The column that topics are averaged by.")  # type: ignore[assignment]
    part: str = param.String(default="", doc="Which part is shown.")  # type: ignore[assignment]
    beside: str = param.String(default="", doc="Key of what is compared.")  # type: ignore[assignment]
    selected: Any = param.Parameter(default=None, doc="Which cells are selected.")

    def __init__(
        self, model: FittedModel | None = None, adata: ad.AnnData | None = None, *, other: ad.AnnData | None = None,
        modality: ad.AnnData | None = None, many: int = MANY, values: Values | None = None,
        others: Others | None = None, files: Callable[[], dict[str, Path]] = dict,
        more: Mapping[str, tuple[str, Callable[[TopicExplorer], Any]]] | None = None, **params: Any,
    ) -> None:  # fmt: skip
        super().__init__(**params)
        self.values = values if values is not None else _values(model, adata)
        self.cells = self.values.cells
        self.saved: dict[str, pd.Series] = {}
        compared = others or (None if other is None else _only(other, "the other model"))
        beside = others or (None if modality is None else _only(modality, "the other modality"))
        self._paint: Paint | None = None
        self._quiet = False
        self._made: dict[str, Any] = {}
        self._makers = {**self._parts(compared, beside, files), **(more or {})}
        self._make_map(many)
        self._make_parts()
        self.topics = TopicTable(self.paint_by)
        upper = pn.Column(
            pn.Column(self.colours, self.working.view, self.map, self.legend, sizing_mode="stretch_width", margin=0),
            pn.Column(self.topics.view, self._describing.view, sizing_mode="stretch_width", margin=0),
            stylesheets=[WIDE_AND_NARROW], sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        notes = [] if self.cells.embedded else [
            parts.note("These cells have no UMAP; the axes are the topics' principal ones.")
        ]  # fmt: skip
        self._view = pn.Column(*notes, upper, self.menu, self.body, sizing_mode="stretch_width", margin=0)
        self._recolour()
        self._show_part()
        self._describing.run("Describing topics", lambda _: analysis.describe_topics(self.cells.topics_only),
                             self.topics.update)  # fmt: skip

    def __panel__(self) -> pn.viewable.Viewable:
        """Return what is shown."""
        return self._view

    def pictures(self) -> list[Any]:
        """Return the cells in their colours, drawn with matplotlib."""
        return [draw_cells(self.cells.xy, self._paint)] if self._paint is not None else []

    def words(self) -> str:
        """Return the table of topics."""
        told = analysis.describe_topics(self.cells.topics_only)
        return parts.table_html("Topics", told[["topic", "mean_share", "largest_in", "top_features"]])

    def close(self) -> None:
        """Take no interest any more in what is being computed."""
        for each in (self, *self._made.values()):
            for working in vars(each).values():
                if isinstance(working, Working):
                    working.stop()

    # --- what there is ------------------------------------------------------------------------------

    @property
    def columns(self) -> list[str]:
        """Names of the columns of cells, those that were made here first."""
        return [*self.saved, *(c for c in self.cells.columns if c not in self.saved)]

    @property
    def categorical(self) -> list[str]:
        """Names of the columns with categories."""
        return [*self.saved, *(c for c in self.cells.categorical if c not in self.saved)]

    def column_of(self, name: str) -> pd.Series:
        """Return a column of cells."""
        return self.saved[name] if name in self.saved else self.cells.column(name)

    # --- the map ------------------------------------------------------------------------------------

    def _make_map(self, many: int) -> None:
        self.embedding = Embedding(self.cells.xy, lambda: self.cells.names, many)
        self.embedding.on_select = self.select
        self.map = pn.pane.Bokeh(self.embedding.root, sizing_mode="stretch_width")
        self.legend = Key()
        self.legend.param.watch(lambda e: self._highlight(e.new), "chosen")
        self.colours = pmui.Select(
            label="Colour by", options=self._colourings(), value=None, searchable=True, sizing_mode="stretch_width",
            max_width=420, size="small", margin=(10, 10, 4, 10),
        )  # fmt: skip
        self.colours.param.watch(self._chosen_colour, "value")
        self.working = Working()
        self._describing = Working()
        # First of all who watches, so that cells have their colours before anything else is computed.
        self.param.watch(self._recolour_for, ["colour", "selected"])

    def _colourings(self) -> dict[str, str]:
        options = {MAIN: MAIN}
        if self.feature in self.cells.features:
            label = self.cells.labels[self.values.position(self.feature)]
            options |= {f"{label}, {HOW[how]}": f"{how}:{self.feature}" for how in self.values.ways()}
        if self.selected is not None:
            options[SELECTION] = SELECTION
        options |= {name: name for name in (*self.cells.topics, *self.columns)}
        if self.colour not in options.values() and colouring.is_known(self.colour, self.cells, self.saved):
            options[self.colour.replace(":", " ")] = self.colour
        return options

    def _offer(self) -> None:
        """Offer what cells can be coloured by now."""
        options = self._colourings()
        self._quiet = True
        if options != self.colours.options or self.colours.value != self.colour:
            self.colours.param.update(options=options, value=self.colour if self.colour in options.values() else None)
        self._quiet = False

    def _chosen_colour(self, event: Any) -> None:
        if event.new and not self._quiet:
            self.colour = event.new

    def paint_by(self, key: str) -> None:
        """Colour the cells; see `colour`."""
        self.colour = key

    def _recolour_for(self, *events: Any) -> None:
        if self.colour == SELECTION or any(e.name == "colour" for e in events):
            self._recolour()

    def _recolour(self) -> None:
        key, cells = self.colour, self.cells
        if not colouring.is_known(key, cells, self.saved):
            self.working.view.objects = [parts.problem(f"cells cannot be coloured by {key!r}: there is no such thing")]
            if self._paint is None:
                self._paint = colouring.paint(MAIN, cells, self.values, {}, None, lambda _: None)
                self._draw()
            return
        shown = colouring.of_feature(key, cells)
        if shown is not None and self.feature != shown[1]:
            self.feature = shown[1]
        self._offer()

        def find(progress: Callable[[float], None]) -> Paint:
            return colouring.paint(key, cells, self.values, self.saved, self.selected, progress)

        def done(paint: Paint) -> None:
            self._paint = paint
            self._draw()

        at_once = cells.n <= AT_ONCE or self._paint is None
        if (shown is None and at_once) or (shown is not None and self.values.known(shown[1], shown[0])):
            self.working.stop()
            self.working.view.objects = []
            done(find(lambda _: None))
        else:
            if self._paint is None:
                self._paint = colouring.paint(MAIN, cells, self.values, {}, None, lambda _: None)
                self._draw()
            what = "Colouring the cells" if shown is None else (
                "Inferring values from the topics" if shown[0] == "imputed" else "Reading counts"
            )  # fmt: skip
            self.working.run(what, find, done)

    def _draw(self) -> None:
        assert self._paint is not None
        self.embedding.show(self._paint)
        entries: list[list[str]] = []
        if self._paint.codes is not None and len(self._paint.levels):
            n = np.bincount(self._paint.codes[self._paint.codes >= 0], minlength=len(self._paint.levels))
            pairs = zip(self._paint.levels, self._paint.colours, n, strict=True)
            entries = [[name, colour, f"{int(many):,}"] for name, colour, many in pairs][:LEGEND_MOST]
        self.legend.param.update(entries=entries, chosen="", visible=bool(entries))

    def _highlight(self, name: str) -> None:
        paint = self._paint
        if paint is None or paint.codes is None:
            return
        meant = paint.codes == paint.levels.index(name) if name in paint.levels else None
        if (meant is None) != (self.embedding.meant is None) or meant is not None:
            self.embedding.show(paint, meant)

    # --- selection ----------------------------------------------------------------------------------

    def select(self, mask: np.ndarray | None) -> None:
        """Select cells, N booleans; None or none of them: no cells."""
        chosen = None if mask is None or not np.any(mask) else np.asarray(mask, bool)
        if chosen is not None and chosen.shape != (self.cells.n,):
            raise OptionError(f"a selection has a truth value for each of {self.cells.n} cells; got {chosen.shape}")
        if chosen is None:
            self.param.update(selected=None, colour=MAIN if self.colour == SELECTION else self.colour)
            self._offer()
            return
        self.param.update(selected=chosen, colour=SELECTION)
        self.part = "selection"

    def keep_selection(self, name: str) -> None:
        """Keep who is selected as a column, ``"selected"`` and ``"others"``.

        Raises
        ------
        OptionError
            If nobody is selected, or the name is empty or taken.
        """
        name = name.strip()
        if self.selected is None:
            raise OptionError("no cells are selected; draw around some first")
        if not name or name in self.cells.columns or name in (MAIN, SELECTION) or name in self.cells.topics:
            raise OptionError(f"the selection needs a name that no column has; got {name!r}")
        values = pd.Series(pd.Categorical.from_codes(np.where(self.selected, 0, 1), ["selected", "others"]))
        self.saved[name] = values
        if self.cells.adata is not None:
            self.cells.adata.obs[name] = values.array
        self._offer()
        for part in self._made.values():
            if hasattr(part, "columns_changed"):
                part.columns_changed()

    # --- parts --------------------------------------------------------------------------------------

    def _parts(self, compared: Others | None, beside: Others | None, files: Callable[[], dict[str, Path]]) -> Parts:
        found: Parts = {
            "columns": ("Topics by column", ByColumn),
            "features": ("Features", FeatureCard),
            "selection": ("Selection", SelectionCard),
        }
        if self.values.corrected:
            found["batches"] = "Batches", BatchCard
        if compared is not None:
            found["compare"] = "Compare", lambda explorer: CompareCard(explorer, *compared)
        found["sets"] = "Enrichment", lambda explorer: EnrichmentCard(explorer, files)
        if beside is not None:
            found["modalities"] = "Two modalities", lambda explorer: ModalitiesCard(explorer, *beside)
        return found

    def _make_parts(self) -> None:
        items = [{"label": label} for label, _ in self._makers.values()]
        self.menu = pmui.TabMenu(items=items, active=0, color="primary", sx=MENU, margin=(8, 10, 0, 10))
        self.body = pn.Column(sizing_mode="stretch_width", margin=0, min_height=240)
        self.menu.param.watch(self._chosen_part, "active")
        self.param.watch(lambda _: self._show_part(), "part")
        self.param.watch(lambda _: self._offer(), "feature")

    def _chosen_part(self, event: Any) -> None:
        if event.new is not None:
            self.part = list(self._makers)[event.new]

    def _show_part(self) -> None:
        name = self.part if self.part in self._makers else next(iter(self._makers))
        if name not in self._made:
            self._made[name] = self._makers[name][1](self)
        view = self._made[name].view
        if view not in self.body.objects:
            self.body.append(view)
        for each in self.body.objects:
            each.visible = each is view
        self.menu.active = list(self._makers).index(name)


def _values(model: FittedModel | None, adata: ad.AnnData | None) -> Values:
    if adata is None:
        raise OptionError("TopicExplorer(model, adata) needs cells; adata is missing")
    if THETA not in adata.obsm:
        if model is None:
            raise DataError(f"obsm[{THETA!r}] is missing; give a fitted model, or call model.predict(adata) first")
        model.predict(adata)
    cells = Cells(adata)
    if model is not None and model._fitted().network.num_topics != cells.K:
        raise DataError(
            f"the model has {model._fitted().network.num_topics} topics and obsm[{THETA!r}] {cells.K}; call "
            "model.predict(adata) with this model"
        )
    layer = None if model is None else model.get_params().get("counts_layer")
    return Values(cells, model, layer)


def _only(adata: ad.AnnData, label: str) -> Others:
    """Offer one thing to compare with."""
    return (lambda: {label: ""}), (lambda _: Cells(adata))
