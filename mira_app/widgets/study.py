"""A study to look at in a notebook, or in any page of Panel, while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import panel as pn
import param

from mira_core.errors import TuningError
from mira_core.plots.trials_info import ImportanceInfo, importance_info
from mira_core.tuning.reading import Reading, StudyReader
from mira_core.tuning.study import trials_of

from ..pages import parts
from ..styles import WIDE_AND_NARROW
from .notebook import Alone
from .trial import head_html, story_html
from .trials import TrialsView, frame_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mira_core.tuning import BayesianTuner

MOST_TOLD = 20  # trials in a table that does not scroll


class StudyView(Alone):
    """Trials of a study: linked figures, a table, and what is known of the one that is selected.

    Parameters
    ----------
    study
        A `mira.topics.BayesianTuner`, fitted here or elsewhere, now or later; or an Optuna study.
    every
        Seconds after which the storage is read again; None: when `refresh` is called.

    Attributes
    ----------
    selected
        Numbers of the selected trials; can be set. Numbers of trials that are not drawn are left out.

    Raises
    ------
    TuningError
        If the storage is away.

    Examples
    --------
    >>> view = StudyView(tuner)
    >>> view  # in a cell of a notebook
    >>> view.selected
    [12]
    """

    selected: list[int] = param.List(default=[], item_type=int, doc="Numbers of the selected trials.")  # type: ignore[assignment]

    def __init__(self, study: BayesianTuner | optuna.Study, every: float | None = 2.0, **params: Any) -> None:
        super().__init__(**params)
        self.study: optuna.Study = study if isinstance(study, optuna.Study) else study.study
        self._reader = StudyReader.of(self.study)
        self.reading: Reading | None = None
        self._line = parts.markup("status", margin=(2, 12))
        self._head = parts.markup("status", margin=(6, 12))
        self._story = parts.markup("trial", margin=(4, 10))
        self._trials = TrialsView(self._chosen, self._weigh)
        self._trials.complete()
        story = parts.card(self._head, self._story, heading="Trial")
        upper = pn.Column(self._trials.upper, story, stylesheets=[WIDE_AND_NARROW], sizing_mode="stretch_width")
        self._view = pn.Column(self._line, upper, self._trials.lower, sizing_mode="stretch_width")
        self.refresh()
        if every:
            pn.state.add_periodic_callback(self.refresh, round(1000 * every))

    def __panel__(self) -> pn.viewable.Viewable:
        """Return what is shown."""
        return self._view

    def refresh(self) -> None:
        """Read the study again and draw what is new; zoom and selection stay."""
        try:
            reading = self._reader.read()
        except TuningError as problem:
            self._line.object = f"<b>{parts.escape(str(problem))}</b>"
            return
        if reading is self.reading:
            return
        self.reading = reading
        counts = ", ".join(f"{n:,} {state.lower()}" for state, n in reading.counts.items())
        best = "" if reading.best is None else f" · best: trial {reading.best}"
        with self.changing():
            self._line.object = (
                f"<b>{parts.escape(reading.name)}: {reading.state}</b> · {counts or 'no trial yet'}{best}"
            )
            self._trials.update(reading)
            self._tell()

    def _weigh(self, _: Reading) -> ImportanceInfo:
        return importance_info(trials_of(self.study))

    def _chosen(self, numbers: list[int]) -> None:
        self.selected = numbers

    @param.depends("selected", watch=True)
    def _select(self) -> None:
        drawn = {t["number"] for t in self._trials.shown}
        if any(n not in drawn for n in self.selected):
            self.selected = [n for n in self.selected if n in drawn]
            return
        with self.changing():
            if self._trials.figures.selected != self.selected:
                self._trials.select(self.selected)
            self._tell()

    def _tell(self) -> None:
        one = self.selected[0] if len(self.selected) == 1 else None
        if one is None or self.reading is None:
            many = len(self.selected)
            self._head.object = f"<b>{many:,} trials are selected</b>" if many else "Select a trial."
            self._story.object = ""
        else:
            self._head.object, self._story.object = head_html(self.reading, one), story_html(self.reading, one)

    def pictures(self) -> list[Figure]:
        """Return the Pareto front and the curves of the trials, drawn with matplotlib."""
        if self.reading is None or not self._trials.shown:
            return []
        from matplotlib.figure import Figure

        from mira_core.plots.trials import plot_intermediate_values, plot_pareto_front

        reading, shown = self.reading, self._trials.shown
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        x = "num_topics" if "num_topics" in shown[0] else "number"
        plot_pareto_front(shown, x=x, y="value", ax=left)
        curves = {n: dict(enumerate(c.get("value", []), 1)) for n, c in reading.curves.items()}
        plot_intermediate_values(shown, curves, ax=right)
        return [figure]

    def words(self) -> str:
        """Return the table of the trials, the best ones first."""
        if self.reading is None or not self._trials.shown:
            return f"<p>{self._line.object}</p>"
        frame = frame_of(self._trials.shown).sort_values("value").head(MOST_TOLD)
        return f"<p>{self._line.object}</p>" + parts.table_html("Trials, the best ones first", frame)
