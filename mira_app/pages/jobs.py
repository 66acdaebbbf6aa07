"""Jobs: all that was run here, with what each takes; stop, go on, run again, share, delete."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import panel as pn
import panel_material_ui as pmui

from mira_core import jobs
from mira_core.errors import MiraError

from ..hub import Hub
from ..serving.people import EVERYONE
from ..session import Session
from ..studies import Studies
from ..styles import SEVERAL
from ..widgets.live_table import LiveTable
from ..workspace import Job, Workspace, owner_of
from . import parts

KINDS = {"fit": "training", "range_test": "learning rates", "tune": "study", "gradient_tune": "number of topics",
         "predict": "topics"}  # fmt: skip
LIVE = {"running", "waiting"}
# On a phone the table is wider than the page, and is moved sideways.
WIDTHS = {"job": 270, "kind": 120, "person": 110, "seen by": 120, "progress": 100, "took": 90, "size (MB)": 100}
EVERY = 5000  # milliseconds between two looks while the page is shown
FIRST = 10  # priority of what an admin lets begin next


@dataclass(frozen=True)
class _Row:
    """A job, with what the table says of it besides."""

    job: Job
    size: int
    shared: tuple[str, ...]

    @property
    def waits(self) -> bool:
        """Whether it is in the queue."""
        return self.job.status.state == "waiting"


class JobsPage:
    """A table of jobs, and what can be done with those that are selected."""

    def __init__(self, workspace: Workspace, studies: Studies, session: Session, hub: Hub) -> None:
        self.workspace, self.studies, self.session, self.hub = workspace, studies, session, hub
        self._rows: dict[str, _Row] = {}  # by what the table calls them
        self._leave: Callable[[], None] | None = None
        self._timer: Any = None
        self._loads = False
        self._names: list[str] = []  # of those with whom something can be shared
        self.line = parts.markup("note", margin=(0, 10))
        self.table = LiveTable(
            on_select=lambda _: self._selected(), selectable="checkbox", header_filters=True, pagination="local",
            page_size=20, widths=WIDTHS, text_align={"size (MB)": "right"},
        )  # fmt: skip
        self.table.view.objects = [pmui.LinearProgress(variant="indeterminate", sizing_mode="stretch_width")]
        self.open = _button("Open", "open_in_new", variant="contained")
        self.stop = _button("Stop", "stop", color="error")
        self.resume = _button("Go on", "play_arrow")
        self.again = _button("Run again", "replay")
        self.first = _button("Begin next", "low_priority")
        self.delete = _button("Delete", "delete", color="error")
        self.sure = _button("Delete for ever", "delete_forever", color="error", variant="contained")
        self.keep = _button("Keep", "undo")
        self.shared = pmui.MultiChoice(
            label="Seen by", placeholder="only its owner and admins", options={}, visible=False, visual_size="small",
            width=320, margin=(8, 10, 4, 10), stylesheets=[SEVERAL],
        )  # fmt: skip
        self._shared_for = ""  # key of the job that `shared` is about
        self.message = pn.Column(sizing_mode="stretch_width", margin=0)
        self.log = parts.markup("code", margin=(4, 10))
        self.below = pn.Column(
            self.message,
            pn.FlexBox(
                self.open, self.stop, self.resume, self.again, self.first, self.delete, self.sure, self.keep,
                self.shared, sizing_mode="stretch_width", align_items="center",
            ),
            self.log, sizing_mode="stretch_width", margin=0,
        )  # fmt: skip
        self.view = pn.Column(
            parts.title("Jobs", "What runs, waits and has been run here; jobs go on without you."),
            self.line, self.table.view, self.below, sizing_mode="stretch_width",
        )  # fmt: skip
        for button, action in (
            (self.open, self._open), (self.resume, lambda: self._each(self.workspace.resume)),
            (self.stop, lambda: self._each(self.workspace.stop)),
            (self.again, lambda: self._each(self.workspace.rerun)),
            (self.first, lambda: self._each(lambda key: self.workspace.prefer(key, FIRST))),
            (self.delete, lambda: self._ask(True)), (self.keep, lambda: self._ask(False)),
            (self.sure, lambda: self._each(self._delete)),
        ):  # fmt: skip
            parts.on_click(button, action)
        self.shared.param.watch(lambda _: parts.in_turn(self._share), "value")
        session.param.watch(lambda _: self._shown(), "page")
        self._selected()
        pn.state.onload(self._shown)

    def close(self) -> None:
        """Look no more."""
        if self._leave is not None:
            self._leave()
            self._leave = None
        if self._timer is not None:
            self._timer.stop()
            self._timer = None

    # --- the table ------------------------------------------------------------------------------

    def _shown(self) -> None:
        if self.session.page != "jobs":
            self.close()
        elif self._leave is None and pn.state.curdoc is not None:
            self._leave = self.hub.follow_all(self.workspace.jobs_folder, pn.state.curdoc, lambda _: self._load())
            self._timer = pn.state.add_periodic_callback(self._load, EVERY)

    def _load(self) -> None:
        if not self._loads:
            self._loads = True
            parts.in_thread(self._read, self._told, self._failed)

    def _read(self) -> tuple[list[_Row], str, list[str]]:
        rows = [
            _Row(job, self.workspace.disk.size(self.workspace.jobs_folder / job.key),
                 self.workspace.shared_with(job.key) if self.workspace.person.name else ())
            for job in self.workspace.jobs()
        ]  # fmt: skip
        return rows, self.workspace.room(), self.workspace.names() if self.workspace.person.name else []

    def _told(self, read: tuple[list[_Row], str, list[str]]) -> None:
        self._loads = False
        rows, room, self._names = read
        names: dict[str, _Row] = {}
        for row in rows:
            name = row.job.label
            names[name if name not in names else f"{name} · {row.job.key[-4:]}"] = row
        self._rows = names
        states = [row.job.status.state for row in rows]
        self.line.object = f"{states.count('running')} run, {states.count('waiting')} wait · {room}"
        if not rows:
            self.table.view.objects = [parts.empty("No job yet", "Set up a model and press Train; it appears here.")]
            self.table.table = None
            return
        self.table.show(lambda: self._frame(names))
        if not self.sure.visible:
            self._selected()

    def _failed(self, why: str) -> None:
        self._loads = False
        self.message.objects = [parts.problem(why)]

    def _frame(self, rows: dict[str, _Row]) -> pd.DataFrame:
        out = []
        for name, row in rows.items():
            status, spec = row.job.status, row.job.spec
            line = {"job": name, "kind": KINDS.get(spec["kind"], spec["kind"])}
            if self.workspace.person.name:
                line |= {"person": owner_of(spec) or "nobody", "seen by": _people(row.shared)}
            line |= {
                "state": _state(status),
                "progress": f"{100 * status.step / status.num_steps:.0f} %" if status.num_steps else "",
                "took": _took(status),
                "size (MB)": round(row.size / 1e6, 1),
            }
            out.append(line)
        return pd.DataFrame(out)

    # --- what is selected -----------------------------------------------------------------------

    @property
    def _chosen(self) -> list[_Row]:
        return [self._rows[name] for name in self.table.selected if name in self._rows]

    def _selected(self) -> None:
        chosen = self._chosen
        person = self.workspace.person
        mine = bool(chosen) and all(person.owns(owner_of(row.job.spec)) for row in chosen)
        states = {row.job.status.state for row in chosen}
        one = chosen[0] if len(chosen) == 1 else None
        self.open.visible = one is not None
        self.stop.visible = mine and bool(states & LIVE)
        self.resume.visible = mine and one is not None and not states & LIVE and not jobs.why_not_resume(
            self.workspace.jobs_folder / one.job.key
        )  # fmt: skip
        tunes = any(row.job.spec["kind"] == "tune" for row in chosen)
        self.again.visible = bool(chosen) and not states & LIVE and not tunes and person.may("user")
        self.first.visible = one is not None and one.waits and person.may("admin")
        self.delete.visible = mine and not states & LIVE
        self.sure.visible = self.keep.visible = False
        self.shared.visible = bool(person.name) and mine and one is not None
        key = one.job.key if one is not None and self.shared.visible else ""
        if one is not None and key and key != self._shared_for:  # not while somebody chooses
            names = {EVERYONE, *self._names, *one.shared} - {owner_of(one.job.spec)}
            options = {"everyone" if name == EVERYONE else name: name for name in sorted(names)}
            self.shared.param.update(options=options, value=list(one.shared))
        self._shared_for = key
        self.log.visible = one is not None
        self.log.object = "" if one is None else _log(self.workspace.log(one.job.key))

    def _open(self) -> None:
        for row in self._chosen[:1]:
            self.session.show_job(row.job.key, row.job.spec["kind"], row.job.spec["name"])

    def _ask(self, sure: bool) -> None:
        n = len(self._chosen)
        what = "this job and its results" if n == 1 else f"these {n} jobs and their results"
        if any(row.job.spec["kind"] == "tune" for row in self._chosen):
            what += ", and the study with all its trials and models"
        self.sure.visible = self.keep.visible = sure
        self.delete.visible = not sure
        self.message.objects = [parts.note(f"Delete {what}? They cannot be had back.")] if sure else []

    def _share(self) -> None:
        """Share at once with whom somebody has chosen."""
        names = list(self.shared.value)
        if self._shared_for and set(names) != set(self.workspace.shared_with(self._shared_for)):
            self._each(lambda key: self._share_with(key, names))

    def _share_with(self, key: str, names: list[str]) -> None:
        spec = jobs.read_spec(self.workspace.folder_of(key))
        if spec["kind"] == "tune":
            self.studies.share(spec["tune"]["study"], names)
        else:
            self.workspace.share(key, names)

    def _delete(self, key: str) -> None:
        spec = jobs.read_spec(self.workspace.folder_of(key))
        if spec["kind"] == "tune":
            self.studies.delete(spec["tune"]["study"])
        else:
            self.workspace.delete(key)

    def _each(self, action: Callable[[str], Any]) -> None:
        """Do something with each that is selected, in a thread; say what could not be done."""
        keys = [row.job.key for row in self._chosen]

        def work() -> list[str]:
            wrong = []
            for key in keys:
                try:
                    action(key)
                except (MiraError, OSError) as problem:
                    wrong.append(str(problem))
            return wrong

        def done(wrong: Sequence[str]) -> None:
            self.message.objects = [parts.problem(text) for text in wrong]
            self.sure.visible = self.keep.visible = False
            self._load()

        self.message.objects = [pmui.LinearProgress(variant="indeterminate", sizing_mode="stretch_width")]
        parts.in_thread(work, done, lambda why: done([why]))


def _button(label: str, icon: str, color: str = "primary", variant: str = "outlined") -> Any:
    return pmui.Button(label=label, icon=icon, color=color, variant=variant, visible=False)


def _people(names: Sequence[str]) -> str:
    return "everyone" if EVERYONE in names else ", ".join(names) or "only them"


def _took(status: jobs.Status) -> str:
    if not status.started:
        return ""
    s = int((status.ended or time.time()) - status.started)
    return f"{s // 3600}:{s // 60 % 60:02}:{s % 60:02}"


def _state(status: jobs.Status) -> str:
    if status.state == "waiting" and status.stage:
        return f"waiting: {status.stage}"
    return "not heard of" if status.state == "silent" else status.state


def _log(text: str) -> str:
    return f"<pre>{parts.escape(text[-8000:].strip() or 'It has written no log.')}</pre>"
