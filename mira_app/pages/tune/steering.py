"""What a study does next: trials with chosen values, narrower ranges, a larger budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import panel as pn
import panel_material_ui as pmui

from mira_core.tuning import control
from mira_core.tuning.reading import Reading
from mira_core.tuning.study import Plan

from ...styles import GRID
from .. import parts

if TYPE_CHECKING:
    from .page import TunePage


def number_of(text: str | None) -> float | int | None:
    """Read a number that may be left out.

    Raises
    ------
    ValueError
        If it is none.
    """
    text = (text or "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)


class Steering:
    """Forms that change what the trials to come are."""

    def __init__(self, page: TunePage) -> None:
        self.page = page
        self._for: tuple[str, ...] = ()
        self._narrowed: dict[str, Any] = {}  # as the fields show it
        self.chosen: dict[str, pmui.TextInput] = {}
        self.low: dict[str, pmui.TextInput] = {}
        self.high: dict[str, pmui.TextInput] = {}
        self.enqueue = pmui.Button(label="Queue a trial", icon="playlist_add", variant="outlined")
        self.narrow = pmui.Button(label="Set the ranges", icon="compress", variant="outlined")
        self.widen = pmui.Button(label="As at the start", icon="expand", variant="text")
        self.trials = pmui.TextInput(label="max_trials", size="small", sizing_mode="stretch_width")
        self.jobs = pmui.TextInput(label="n_jobs", size="small", sizing_mode="stretch_width")
        self.more = pmui.Button(label="Go on with these", icon="play_arrow", variant="outlined")
        self.said = {name: pn.Column(sizing_mode="stretch_width", margin=0) for name in ("queue", "range", "more")}
        parts.on_click(self.enqueue, self._enqueue)
        parts.on_click(self.narrow, self._narrow)
        parts.on_click(self.widen, lambda: self._set({name: None for name in self.low}))
        parts.on_click(self.more, self._go_on)
        self.view = pn.Column(sizing_mode="stretch_width", margin=0)

    def close(self) -> None:
        """Nothing is held."""

    def update(self, reading: Reading) -> None:
        """Make the fields for what is searched, once; show what is narrowed."""
        plan = reading.plan
        if plan is None:
            self.view.objects = [parts.empty("This study was not made by a BayesianTuner", "It can be looked at only.")]
            return
        if self._for != tuple(plan.space):
            self._for = tuple(plan.space)
            self._make(reading, plan)
        if self._narrowed != reading.narrowed:  # also by others, and elsewhere on the page
            self._show_narrowed(plan, reading.narrowed)
        can = reading.state not in ("running", "pausing", "stopping")
        self.more.disabled = not can
        self.trials.placeholder = str(plan.max_trials)

    def _make(self, reading: Reading, plan: Plan) -> None:
        for name, r in plan.space.items():
            between = f"{r.low:g} to {r.high:g}"
            shared = {"size": "small", "sizing_mode": "stretch_width", "margin": (6, 10)}
            self.chosen[name] = pmui.TextInput(label=name, placeholder=f"{between}; empty: chosen for you", **shared)
            self.low[name] = pmui.TextInput(label=f"{name}, from", placeholder=f"{r.low:g}", **shared)
            self.high[name] = pmui.TextInput(label=f"{name}, to", placeholder=f"{r.high:g}", **shared)
        self._narrowed = {}
        ends = [w for name in self.low for w in (self.low[name], self.high[name])]
        self.trials.placeholder, self.jobs.placeholder = str(plan.max_trials), "as before"
        self.view.objects = [
            parts.card(
                parts.note("The next free worker runs it, before what the sampler would choose."),
                pn.Column(*self.chosen.values(), stylesheets=[GRID], sizing_mode="stretch_width"),
                self.enqueue, self.said["queue"], heading="A trial with chosen values",
            ),
            parts.card(
                parts.note("For the trials to come. What was tried beyond a range still tells the sampler of what is "
                           "left."),
                pn.Column(*ends, stylesheets=[GRID], sizing_mode="stretch_width"),
                pn.Row(self.narrow, self.widen), self.said["range"], heading="Narrower ranges",
            ),
            parts.card(
                parts.note("A study that has ended goes on from where it was, on this server."),
                pn.Column(self.trials, self.jobs, stylesheets=[GRID], sizing_mode="stretch_width"),
                self.more, self.said["more"], heading="A larger budget",
            ),
        ]  # fmt: skip

    def _show_narrowed(self, plan: Plan, narrowed: Mapping[str, Sequence[float]]) -> None:
        self._narrowed = dict(narrowed)
        for name, r in plan.space.items():
            low, high = narrowed.get(name, (r.low, r.high))
            self.low[name].value = f"{low:g}" if low != r.low else ""
            self.high[name].value = f"{high:g}" if high != r.high else ""

    def _read(self, name: str, fields: dict[str, Any]) -> dict[str, Any] | None:
        out = {}
        for key, widget in fields.items():
            try:
                value = number_of(widget.value)
            except ValueError:
                self.said[name].objects = [parts.problem(f"{widget.label} must be a number; got {widget.value!r}")]
                return None
            if value is not None:
                out[key] = value
        return out

    def _enqueue(self) -> None:
        chosen = self._read("queue", self.chosen)
        if chosen is None:
            return

        def done(_: Any) -> None:
            for widget in self.chosen.values():
                widget.value = ""
            told = ", ".join(f"{k} {v:g}" for k, v in chosen.items())
            self.said["queue"].objects = [parts.good(f"Queued: {told}.")]

        self._ask("queue", control.enqueue, chosen, done=done)

    def _narrow(self) -> None:
        low, high = self._read("range", self.low), self._read("range", self.high)
        reading = self.page.reading
        if low is None or high is None or reading is None or reading.plan is None:
            return
        space = reading.plan.space
        self._set({n: None if n not in low and n not in high else (low.get(n, r.low), high.get(n, r.high))
                   for n, r in space.items()})  # fmt: skip

    def _set(self, ranges: dict[str, Any]) -> None:
        def done(kept: dict[str, list[float]]) -> None:
            for name in self.low:
                if name not in kept:
                    self.low[name].value = self.high[name].value = ""
            told = ", ".join(f"{n} {low:g} to {high:g}" for n, (low, high) in kept.items())
            self.said["range"].objects = [
                parts.good(f"Searched now: {told}." if told else "The ranges are as at the start.")
            ]

        self._ask("range", control.narrow, ranges, done=done)

    def _ask(self, where: str, action: Any, argument: Any, done: Any) -> None:
        name = self.page.session.study
        self.said[where].objects = []
        parts.in_thread(
            lambda: self.page.studies.ask(name, action, argument), done,
            lambda text: setattr(self.said[where], "objects", [parts.problem(text)]),
        )  # fmt: skip

    def _go_on(self) -> None:
        changes = self._read("more", {"max_trials": self.trials, "n_jobs": self.jobs})
        if changes is None:
            return
        self.said["more"].objects = []
        self.page.go_on(**changes)
