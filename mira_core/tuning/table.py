"""How a study goes, shown while it does: a live table in a terminal or a notebook, a line a trial in a log."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from .study import Plan, best_of

if TYPE_CHECKING:
    import rich.table

logger = logging.getLogger(__name__)

EVERY = 1.0  # seconds
BEST = 5  # completed trials that are shown


class Table:
    """Shows how a study goes, from a thread of its own."""

    def __init__(self, study: optuna.Study, plan: Plan, num_epochs: int) -> None:
        from rich.console import Console

        self.study, self.plan, self.num_epochs = study, plan, num_epochs
        self.console = Console(stderr=not _in_notebook(), highlight=False, force_jupyter=False)
        self._began = time.monotonic()
        self._told = {t.number for t in self._trials() if t.state.is_finished()}
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="table")
        self._live: Any = None

    def __enter__(self) -> Table:
        if _in_notebook():
            self._live = _Cell()
        elif self.console.is_terminal and self.console.file.isatty():  # a log is none, whatever FORCE_COLOR says
            from rich.live import Live

            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self._thread.join()
        self._draw()
        if self._live is not None:
            self._live.stop()

    def say(self, why: str) -> None:
        """Say why the tuning ended."""
        self.console.print(f"{self.study.study_name}: ended, as {why}", markup=False, soft_wrap=True)

    def _run(self) -> None:
        while not self._quit.wait(EVERY):
            self._draw()

    def _trials(self) -> list[FrozenTrial]:
        return [t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]

    def _draw(self) -> None:
        try:
            trials = self._trials()
        except Exception as problem:  # workers wait for a storage that is away; so does its picture
            logger.debug("the table is not drawn: %s", problem)
            return
        if self._live is not None:
            self._live.update(self.render(trials), refresh=True)
            return
        for t in trials:
            if t.state.is_finished() and t.number not in self._told:
                self._told.add(t.number)
                self.console.print(self.line(t, trials), markup=False, soft_wrap=True)

    def line(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> str:
        """Tell one trial that has ended."""
        best = best_of(trials)
        said = f"trial {trial.number} {_state(trial)}, {_parameters(trial)}"
        if trial.value is not None:
            said += f", {_loss(trial)} nats/cell"
        if best is not None and best.number != trial.number:
            said += f" (best {_loss(best)} with {best.params['num_topics']} topics)"
        return said + (f": {trial.user_attrs['failure']['message']}" if "failure" in trial.user_attrs else "")

    def render(self, trials: list[FrozenTrial]) -> rich.table.Table:
        """Draw counts, the best trials, and those that run."""
        from rich import box
        from rich.table import Table as Grid
        from rich.text import Text

        count = {s: sum(t.state == s for t in trials) for s in TrialState}
        ended = len(trials) - count[TrialState.RUNNING]
        title = f"{self.study.study_name}  {ended} of {self.plan.max_trials} trials"
        title += f": {count[TrialState.COMPLETE]} completed, {count[TrialState.PRUNED]} pruned"
        if count[TrialState.FAIL]:
            title += f", {count[TrialState.FAIL]} failed"
        seconds = int(time.monotonic() - self._began)
        title += f"; {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        grid = Grid(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("trial", "topics", "epoch", "nats/cell", "s/epoch"):
            grid.add_column(name, justify="right")
        grid.add_column("")
        completed = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: (t.value, t.number))
        for i, t in enumerate(completed[:BEST]):
            grid.add_row(*self._row(t), "best" if i == 0 else "", style="bold" if i == 0 else "")
        if count[TrialState.RUNNING] and completed:
            grid.add_section()
        for t in (t for t in trials if t.state == TrialState.RUNNING):
            grid.add_row(*self._row(t), f"runs on {t.user_attrs.get('device', '...')}", style="dim")
        failed = [t for t in trials if t.state == TrialState.FAIL and "failure" in t.user_attrs]
        if failed:
            why = failed[-1].user_attrs["failure"]
            grid.caption = Text(f"trial {failed[-1].number} failed: {why['type']}: {why['message']}"[:200], style="red")
            grid.caption_justify = "left"
        return grid

    def _row(self, trial: FrozenTrial) -> list[str]:
        epoch = max(trial.intermediate_values, default=0)
        seconds = (trial.user_attrs.get("progress") or {}).get("seconds_per_epoch")
        return [str(trial.number), str(trial.params.get("num_topics", "")), f"{epoch}/{self.num_epochs}", _loss(trial),
                f"{seconds:.2f}" if seconds else ""]  # fmt: skip


def _loss(trial: FrozenTrial) -> str:
    value = trial.value
    if value is None and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    return "" if value is None else f"{value:.2f}"


def _state(trial: FrozenTrial) -> str:
    at = max(trial.intermediate_values, default=0)
    return {TrialState.COMPLETE: "completed", TrialState.PRUNED: f"pruned after epoch {at}"}.get(trial.state, "failed")


def _parameters(trial: FrozenTrial) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in trial.params.items())


def _in_notebook() -> bool:
    """Tell whether this is a Jupyter kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


class _Cell:
    """The output of a notebook's cell, drawn anew in place."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._handle = display(HTML(""), display_id=True)

    def update(self, table: rich.table.Table, refresh: bool = True) -> None:
        from rich.console import Console

        # the notebook's own colours, light or dark
        with open(os.devnull, "w") as nowhere:
            console = Console(record=True, file=nowhere, width=100, force_jupyter=False)
            console.print(table)
        text = console.export_html(inline_styles=True, code_format="<pre style='line-height:1.2'>{code}</pre>")
        self._handle.update(self._html(text))

    def stop(self) -> None:
        """Leave the last picture."""
