"""The list of studies, or one of them: its state, what it can be asked, and its parts."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core import jobs
from mira_core.errors import MiraError
from mira_core.tuning import control
from mira_core.tuning.reading import Reading

from ... import optuna_board
from ...hub import Hub
from ...session import Session
from ...studies import Row, Studies
from ...widgets.arrived import Arrived
from ...widgets.live_table import LiveTable
from ...workspace import Workspace
from .. import parts
from .begin import Begin
from .evidence import Evidence
from .running import RunningTrials
from .steering import Steering
from .trials import Trials

IN_WORDS = {
    "new": "New: no trial has begun",
    "running": "Running",
    "pausing": "Pausing: trials that run go on to their end",
    "paused": "Paused",
    "stopping": "Stopping",
    "stopped": "Stopped",
    "interrupted": "Interrupted: the processes of its running trials are dead",
    "silent": "Silent: its running trials have not been heard of for a minute",
    "finished": "Finished",
    "idle": "Nobody runs it",
}
LIVE = ("running", "pausing", "stopping")
PARTS = {
    "trials": "Trials",
    "running": "Running",
    "topics": "How many topics?",
    "steer": "Steer",
    "optuna": "optuna-dashboard",
}


class TunePage:
    """Studies.

    Attributes
    ----------
    reading
        What is known of the chosen study.
    """

    def __init__(self, workspace: Workspace, studies: Studies, session: Session, hub: Hub, arrived: Arrived) -> None:
        self.workspace, self.studies, self.session, self.hub, self.arrived = workspace, studies, session, hub, arrived
        self.reading: Reading | None = None
        self._leave: Callable[[], None] | None = None
        self._leave_list: Callable[[], None] | None = None
        self._arrived = self.starting = False
        self._name = ""  # of the study that is shown
        self._said: tuple[Any, ...] = ()
        self._rows: list[Row] = []
        self._make_list()
        self._make_head()
        self._parts: dict[str, Any] = {}
        self._ready: set[str] = set()  # parts that the browser has, so that they can change
        self._makers: dict[str, Callable[[], Any]] = {
            "trials": lambda: Trials(self),
            "running": lambda: RunningTrials(self),
            "topics": lambda: Evidence(self),
            "steer": lambda: Steering(self),
            "optuna": lambda: Board(self),
        }
        items = [{"label": label} for label in PARTS.values()]
        self.menu = pmui.TabMenu(items=items, active=0, color="primary", sx=MENU)
        self.menu.param.watch(self._chose_part, "active")
        self.body = pn.Column(sizing_mode="stretch_width", margin=0)
        self.one = pn.Column(self.head, self.message, self.menu, self.body, sizing_mode="stretch_width", margin=0)
        self.title = parts.title(
            "Tune", "How many topics, and how strongly regularised: models are tried, and scored by cells that they "
            "were not trained on.",
        )  # fmt: skip
        self.view = pn.Column(self.title, self.all, self.one, sizing_mode="stretch_width")
        session.param.watch(lambda *_: self._shown(), ["page", "study"])
        session.param.watch(lambda *_: self._show_part(), "part")
        self._shown()
        pn.state.onload(self._arrive)

    def close(self) -> None:
        """Follow nothing any more."""
        for leave in (self._leave, self._leave_list):
            if leave is not None:
                leave()
        self._leave = self._leave_list = None
        for part in (*self._parts.values(), *([self._begin] if self._begin is not None else [])):
            part.close()

    # --- the list ---------------------------------------------------------------------------------

    def _make_list(self) -> None:
        self.new = pmui.Button(label="New study", icon="add", margin=(5, 10))
        parts.on_click(self.new, self._toggle_begin)
        self.begin = pn.Column(sizing_mode="stretch_width", margin=0, visible=False)
        self._begin: Begin | None = None
        self.table = LiveTable(
            on_click=self._open, header_filters=True, pagination="local", page_size=15,
            selectable=False, widths={"study": "26%", "data": "14%"},
        )  # fmt: skip
        self.told = pn.Column(sizing_mode="stretch_width", margin=0)
        self.all = pn.Column(self.new, self.begin, self.told, self.table.view, sizing_mode="stretch_width", margin=0)

    def _list_told(self, rows: list[Row] | None, problem: str) -> None:
        if rows is None:
            self.told.objects = [parts.problem(problem)]
            return
        self._rows = rows
        nothing = parts.empty(
            "No study yet", "Begin one here, or give this storage to a BayesianTuner in Python: "
            f"storage={self.studies.url!r}"
        )  # fmt: skip
        self.told.objects = [parts.problem(problem)] if problem else [] if rows else [nothing]
        self.table.view.visible = bool(rows)
        if rows:
            self.table.show(lambda: _frame(self._rows))

    def _open(self, name: str) -> None:
        self.session.param.update(study=name, trials="", pin="", part="")

    def _toggle_begin(self) -> None:
        if self._begin is None:
            self._begin = Begin(self.workspace, self.studies, self.session, self.hub, self._began)
            self.begin.objects = [self._begin.view]
        self.begin.visible = not self.begin.visible

    def _began(self, name: str) -> None:
        self.begin.visible = False
        self._open(name)

    # --- one study ----------------------------------------------------------------------------------

    def _make_head(self) -> None:
        self.back = pmui.Button(label="All studies", icon="arrow_back", variant="text", size="small", margin=(4, 10))
        parts.on_click(self.back, lambda: self.session.param.update(study="", trials="", pin=""))
        self.name = parts.markup("title", margin=(0, 10), sizing_mode=None)
        self.line = parts.markup("status", margin=(2, 12))
        self.numbers = parts.markup("numbers", margin=(2, 12))
        self.bar = pmui.LinearProgress(value=0, sizing_mode="stretch_width", margin=(4, 10))
        small: dict[str, Any] = {"variant": "outlined", "size": "small", "visible": False}
        self.stop = pmui.Button(label="Stop", icon="stop", color="error", **small)
        self.pause = pmui.Button(label="Pause", icon="pause", **small)
        self.unpause = pmui.Button(label="End the pause", icon="play_arrow", **small)
        self.resume = pmui.Button(label="Go on", icon="play_arrow", **small)
        self.best = pmui.Button(label="Best trial", icon="emoji_events", **small)
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        parts.on_click(self.stop, lambda: self.act(control.stop))
        parts.on_click(self.pause, lambda: self.act(control.pause))
        parts.on_click(self.unpause, lambda: self.act(control.pause, False))
        parts.on_click(self.resume, self.go_on)
        parts.on_click(self.best, self._select_best)
        buttons = (self.stop, self.pause, self.unpause, self.resume, self.best)
        self.head = pn.Column(
            pn.FlexBox(self.back, self.name, *buttons, sizing_mode="stretch_width", align_items="center"),
            self.bar, self.line, self.numbers, sizing_mode="stretch_width", margin=0,
        )  # fmt: skip

    def _shown(self) -> None:
        if self.session.page != "tune":
            return
        name = self.session.study
        self.title.visible = self.all.visible = not name
        self.one.visible = bool(name)
        if name:
            if name != self._name:
                self._show_study(name)
            if self._arrived and self._leave is None:
                try:
                    self._leave = self.studies.follow(name, pn.state.curdoc, self._told)
                except MiraError as problem:  # it is somebody else's
                    self._told(None, str(problem), None)
                    return
            self._show_part()
        else:
            if self._leave is not None:
                self._leave()
            self._leave, self.reading, self._name = None, None, ""
            if self._arrived and self._leave_list is None:
                self._leave_list = self.studies.follow_list(pn.state.curdoc, self._list_told)

    def _arrive(self) -> None:
        """Go on once the browser has the page; what changes while it is being sent can be lost."""
        self._arrived = True
        self._shown()

    def _show_study(self, name: str) -> None:
        """Make room for a study; what is known of it is sent with the page."""
        self._name = name
        for leave in (self._leave, self._leave_list):
            if leave is not None:
                leave()
        self._leave = self._leave_list = None
        self.reading = None
        self.message.objects = []
        self._said, self.starting = (), False
        self.numbers.object = ""
        self.name.object = f"<h1>{parts.escape(name)}</h1>"
        self.line.object = "<b>Reading the study …</b>"
        self.bar.variant = "indeterminate"
        for part in self._parts.values():
            part.close()
        self._parts, self.body.objects = {}, []
        self._ready = set()
        if (known := self.studies.known(name)) is not None:
            self._told(known, "", None)
        else:
            self.studies.read_ahead(name)  # while the page is on its way

    def _told(self, reading: Reading | None, problem: str, job: jobs.Status | None) -> None:
        """Take what the hub has read; runs in this session's turn."""
        starting = job is not None and job.state in ("waiting", "running")
        said = (problem, job and job.state)
        if said != self._said:
            self._said = said
            self._explain("" if reading is None and starting else problem, job)
        if reading is None:
            self.line.object = "<b>Starting: the data are read</b>" if starting else "<b>It cannot be read</b>"
            self.stop.visible = False
            return
        self.starting = starting
        if reading is not self.reading:
            self.reading = reading
            if self._part() in self._ready:
                self._parts[self._part()].update(reading)
        self._write_head(reading)

    def _explain(self, problem: str, job: jobs.Status | None) -> None:
        told = [parts.problem(problem)] if problem else []
        if job is not None and job.state == "failed":
            told = [parts.problem(job.error.get("message", ""), job.error.get("traceback", ""))]
        elif job is not None and job.state == "died":
            told.append(parts.problem("The process that ran it here has ended without a word. Go on with it below."))
        self.message.objects = told

    def _write_head(self, r: Reading) -> None:
        state = IN_WORDS[r.state] + (f": {r.why}" if r.why else "")
        if self.starting and r.state not in LIVE:
            state = "Starting: the data are read" if r.state != "paused" else state
        line = [f"<b>{parts.escape(state)}</b>"]
        plan, n_ended = r.plan, sum(n for s, n in r.counts.items() if s != "RUNNING")
        if plan is not None:
            if r.state != "finished":
                line.append(f"{len(r.trials)} of at most {plan.max_trials} trials have begun")
            if plan.data:
                line.append(parts.escape(plan.data.rsplit("/", 1)[-1]))
            if plan.owner:
                line.append(f"begun by {parts.escape(plan.owner)}")
            if r.state == "running" and (left := seconds_left(r)) is not None:
                line.append(f"at most {_duration(left)} left")
        if r.waiting:
            line.append(f"{len(r.waiting)} queued")
        if r.hidden:
            line.append(f"{len(r.hidden)} hidden")
        if r.narrowed:
            now = ", ".join(f"{n} {low:g} to {high:g}" for n, (low, high) in r.narrowed.items())
            line.append(f"narrowed: {parts.escape(now)}")
        self.line.object = " · ".join(line)
        self.bar.param.update(
            variant="determinate", value=round(100 * n_ended / plan.max_trials) if plan and plan.max_trials else 0
        )
        best = r.of(r.best) if r.best is not None else None
        since = sum(t["number"] > r.best and t["state"] != "RUNNING" for t in r.trials) if best else None
        self.numbers.object = parts.figures_of(
            [
                *([("best loss, nats per cell", f"{best['value']:,.2f}")] if best else []),
                *([("its topics", str(best.get("num_topics", "–")))] if best else []),
                *([("trials since", f"{since:,}")] if since is not None else []),
                ("completed", f"{r.counts.get('COMPLETE', 0):,}"),
                ("pruned", f"{r.counts.get('PRUNED', 0):,}"),
                ("failed", f"{r.counts.get('FAIL', 0):,}"),
                ("running", f"{r.counts.get('RUNNING', 0):,}"),
            ]
        )
        ours = r.plan is not None
        live = r.state in ("running", "pausing", "paused") or (self.starting and r.state != "stopping")
        self.stop.visible = ours and live and not r.attributes.get("stop")
        self.pause.visible = ours and r.state == "running"
        self.unpause.visible = ours and r.state in ("pausing", "paused")
        ended = r.state in ("stopped", "interrupted", "silent", "finished", "idle", "new")
        self.resume.visible = ours and ended and not self.starting
        self.best.visible = best is not None
        self.best.label = f"Best trial: {r.best}"
        self._name_parts(r)

    def _name_parts(self, r: Reading) -> None:
        running = r.counts.get("RUNNING", 0)
        items = [{"label": f"{label} ({running})" if key == "running" and running else label}
                 for key, label in PARTS.items()]  # fmt: skip
        if items != self.menu.items:
            self.menu.items = items

    def _select_best(self) -> None:
        if self.reading is not None and self.reading.best is not None:
            self.session.param.update(part="trials", trials=str(self.reading.best))

    # --- its parts ------------------------------------------------------------------------------------

    def _part(self) -> str:
        return self.session.part if self.session.part in PARTS else "trials"

    def _chose_part(self, event: Any) -> None:
        if event.new is not None:
            self.session.part = list(PARTS)[event.new]

    def _show_part(self) -> None:
        if not self.session.study or self.session.page != "tune":
            return
        name = self._part()
        new = name not in self._parts
        if new:
            self._parts[name] = self._makers[name]()
        for key, part in self._parts.items():
            part.view.visible = key == name
        self.menu.active = list(PARTS).index(name)
        part = self._parts[name]
        if self.reading is not None and (new or name in self._ready):
            part.update(self.reading)  # a new one before it is sent
        if new:
            self.body.append(part.view)
            self._settle(name, part)

    def _settle(self, name: str, part: Any) -> None:
        """Let a part take what is new once the browser has its figures."""

        def ready() -> None:
            if self._parts.get(name) is part:
                self._ready.add(name)
                part.complete() if hasattr(part, "complete") else None
                if self.reading is not None and self._part() == name:
                    part.update(self.reading)

        if (drawn := getattr(part, "drawn", None)) is None:
            ready()
        elif self._arrived:
            self.arrived.when(drawn, ready)
        else:
            pn.state.onload(lambda: self.arrived.when(drawn, ready))

    # --- what it can be asked -----------------------------------------------------------------------

    def act(self, action: Callable[..., Any], *arguments: Any, done: Callable[[Any], None] | None = None) -> None:
        """Do something of `mira_core.tuning.control` to the study; tell if it cannot be done."""
        name = self.session.study
        self.message.objects = []
        parts.in_thread(lambda: self.studies.ask(name, action, *arguments), done or (lambda _: None), self.say_problem)

    def say_problem(self, text: str) -> None:
        """Tell what is wrong above all parts."""
        self.message.objects = [parts.problem(text)]

    def go_on(self, **changes: Any) -> None:
        """Let the study go on, here."""
        name = self.session.study
        self.resume.visible = False
        self.message.objects = []

        def failed(text: str) -> None:
            self.resume.visible = True
            self.say_problem(text)

        def begun(_: str) -> None:
            self.message.objects = [parts.good("It goes on; its workers read the data first.")]

        parts.in_thread(lambda: self.studies.go_on(name, **changes), begun, failed)


class Board:
    """optuna-dashboard, served by this server."""

    def __init__(self, page: TunePage) -> None:
        self.view = pn.Column(sizing_mode="stretch_width", margin=0)
        self.studies = page.studies

    def update(self, reading: Reading) -> None:
        """Show it once: it reads the storage itself."""
        if self.view.objects:
            return
        self.view.objects = [parts.note("…")]

        def show(told: tuple[str, int]) -> None:
            wrong, study_id = told
            if wrong:
                self.view.objects = [parts.problem(wrong)]
                return
            where = optuna_board.link(study_id)
            frame = f'<iframe src="{where}" title="optuna-dashboard" style="width:100%;height:80vh;border:0"></iframe>'
            self.view.objects = [
                parts.note(f'<a href="{where}" target="_blank">Open it in a tab of its own</a>'),
                pn.pane.HTML(frame, sizing_mode="stretch_width", margin=(0, 10)),
            ]

        parts.in_thread(
            lambda: (optuna_board.problem(self.studies.workspace.person), self.studies.id_of(reading.name)), show,
            lambda text: setattr(self.view, "objects", [parts.problem(text)]),
        )  # fmt: skip

    def close(self) -> None:
        """Nothing is held."""


def _frame(rows: list[Row]) -> pd.DataFrame:
    counted = {"completed": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
    told = [
        {
            "study": r.name, "state": r.state, "best loss": None if r.best_value is None else round(r.best_value, 2),
            "topics": r.best_topics, "trials": r.n_trials, **{n: r.counts.get(s, 0) for n, s in counted.items()},
            "data": r.data, "begun by": r.person or r.owner,
        }
        for r in rows
    ]  # fmt: skip
    return pd.DataFrame(told, columns=["study", "state", "best loss", "topics", "trials", *counted, "data", "begun by"])


def seconds_left(r: Reading) -> float | None:
    """Return how long the trials that may still begin would take, at most; None before one has ended."""
    took = [t["seconds"] for t in r.trials if t["seconds"] and t["state"] in ("COMPLETE", "PRUNED")]
    if not took or r.plan is None:
        return None
    to_come = max(r.plan.max_trials - len(r.trials), 0) + len(r.running) / 2
    return to_come * statistics.fmean(took[-20:]) / max(1, len(r.running))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


MENU = {"& .MuiTab-root": {"minHeight": "40px", "textTransform": "none"}}
