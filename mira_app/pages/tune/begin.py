"""A new study: what is searched, for how long, with how many jobs; and a quick estimate before."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import panel as pn
import panel_material_ui as pmui

from mira_core import options
from mira_core.data import Recipe
from mira_core.data.describe import Description
from mira_core.errors import MiraError
from mira_core.tuning.storage import SQLITE_JOBS, check_jobs, without_password
from mira_core.tuning.tune_options import BY_TRIAL

from ...datasets import label_of
from ...forms import ModelForm, prepared
from ...hub import Hub
from ...session import Session
from ...studies import Studies
from ...styles import GRID
from ...workspace import Workspace
from .. import parts
from ..model import name_of
from .estimate import QuickEstimate
from .steering import number_of

# label -> default, as BayesianTuner has them
BUDGET = {"min_topics": 5, "max_topics": 55, "n_jobs": 1, "max_trials": 128, "min_trials": 48, "stop_condition": 12,
          "seed": 2556, "train_size": 0.8}  # fmt: skip
HELP = {
    "min_topics": "Least number of topics to try.",
    "max_topics": "Greatest number of topics to try.",
    "n_jobs": "Trials that run at the same time, each in a process of its own.",
    "max_trials": "Ends when so many trials have begun.",
    "min_trials": "Does not end before so many have ended.",
    "stop_condition": "Ends once so many trials have passed without a better one.",
    "seed": "With one job, the same seed gives the same study.",
    "train_size": "Share of the cells that is trained on; the others score the models.",
}
TUNED = BY_TRIAL


class Begin:
    """The form of a new study, for the data and options that are chosen."""

    def __init__(
        self, workspace: Workspace, studies: Studies, session: Session, hub: Hub, began: Callable[[str], None]
    ) -> None:
        self.workspace, self.studies, self.session, self.began = workspace, studies, session, began
        self.given: dict[str, Any] = {}
        self.recipe = Recipe()
        self.below = pn.Column(sizing_mode="stretch_width", margin=0)
        self.quick = QuickEstimate(workspace, hub, self._what, "Search", self.use_range)
        self.view = parts.card(self.below, heading="New study")
        shared: dict[str, Any] = {"size": "small", "sizing_mode": "stretch_width", "margin": (6, 10)}
        self.name = pmui.TextInput(label="Name", **shared)
        self._called = ""  # by us, after the data
        self.fields = {
            name: pmui.TextInput(label=name, placeholder=f"{default:g}", description=HELP[name], **shared)
            for name, default in BUDGET.items()
        }
        self.also = pmui.MultiChoice(label="Search these options too", options=[], value=[], visual_size="small",
                                     sizing_mode="stretch_width", margin=(6, 10))  # fmt: skip
        self.also.param.watch(lambda *_: self._make_ranges(), "value")
        self.ranges: dict[str, tuple[Any, Any]] = {}
        self.box = pn.Column(stylesheets=[GRID], sizing_mode="stretch_width", margin=0)
        self.button = pmui.Button(label="Begin", icon="play_arrow", size="large", sizing_mode="stretch_width")
        self.said = pn.Column(sizing_mode="stretch_width", margin=0)
        parts.on_click(self.button, self._begin)
        session.param.watch(lambda *_: self._load(), ["data", "recipe", "given"])
        self._load()

    def _load(self) -> None:
        key, recipe_key, given = self.session.data, self.session.recipe, dict(self.session.given)
        if not key:
            go = pmui.Button(label="Choose data", margin=10)
            parts.on_click(go, lambda: setattr(self.session, "page", "data"))
            self.below.objects = [parts.empty("No data set is chosen", "A study is of one data set."), go]
            return

        def show(got: tuple[Recipe, Description]) -> None:
            if (key, recipe_key) == (self.session.data, self.session.recipe):
                self._make(key, *got, given)

        parts.load(self.below, lambda: prepared(self.workspace, key, recipe_key), show)

    def _make(self, key: str, recipe: Recipe, described: Description, given: Mapping[str, Any]) -> None:
        form = ModelForm(described)
        self.recipe = recipe
        self.given = {k: v for k, v in (given or form.given).items() if k not in TUNED}
        can = [n for n in options.names() if options.parameter(n).metadata["search"] and n not in TUNED
               and options.applies(n, self.given)]  # fmt: skip
        self.also.options = can
        if self.name.value in ("", self._called):
            self.name.value = self._called = f"{name_of(key)}/{self.given['feature_type']}/1"
        told = ", ".join(f"{k} {v}" for k, v in self.given.items() if k != "feature_type")
        size = f"{described.n_cells:,} cells × {described.n_features:,} features, {self.given['feature_type']}"
        change = pmui.Button(label="Change the model", icon="tune", variant="text", size="small")
        parts.on_click(change, lambda: setattr(self.session, "page", "model"))
        most = SQLITE_JOBS if self.studies.url.startswith("sqlite") else os.cpu_count() or 1
        self.below.objects = [
            parts.note(f"{parts.escape(label_of(key))}: {size}<br>Options: {parts.escape(told) or 'as recommended'}"),
            change,
            self.name,
            pn.Column(*self.fields.values(), stylesheets=[GRID], sizing_mode="stretch_width"),
            self.quick.view,
            parts.note(f"Its trials are kept in {parts.escape(without_password(self.studies.url))}, which is good for "
                       f"{most} jobs at a time; this machine has {os.cpu_count()} cores."),
            self.also,
            self.box,
            self.button,
            self.said,
        ]  # fmt: skip
        self.quick.look()

    def close(self) -> None:
        """Follow nothing any more."""
        self.quick.close()

    def _what(self) -> tuple[str, Any, Any]:
        return (
            self.workspace.data.data_of(self.session.data),
            self.given,
            self.recipe.to_dict() if self.recipe.steps else None,
        )

    def _make_ranges(self) -> None:
        for name in self.also.value:
            if name not in self.ranges:
                low, high = options.parameter(name).metadata["search"][:2]
                shared: dict[str, Any] = {"size": "small", "sizing_mode": "stretch_width", "margin": (6, 10)}
                self.ranges[name] = (
                    pmui.TextInput(label=f"{name}, from", placeholder=f"{low:g}", **shared),
                    pmui.TextInput(label=f"{name}, to", placeholder=f"{high:g}", **shared),
                )
        self.box.objects = [w for name in self.also.value for w in self.ranges[name]]

    def use_range(self, low: int, high: int) -> None:
        """Take a range of numbers of topics from elsewhere."""
        self.fields["min_topics"].value, self.fields["max_topics"].value = str(low), str(high)

    def _asked(self) -> dict[str, Any]:
        """Return the arguments of the tuner.

        Raises
        ------
        ValueError, MiraError
            If one is no number, or the storage is not for so many jobs.
        """
        asked: dict[str, Any] = {"study": self.name.value.strip()}
        for name, widget in self.fields.items():
            value = _number(widget)
            if value is not None:
                asked[name] = value
        asked = {**{k: BUDGET[k] for k in ("min_topics", "max_topics")}, **asked}
        if "max_trials" in asked and "min_trials" not in asked:  # a small budget needs no further number
            asked["min_trials"] = min(BUDGET["min_trials"], asked["max_trials"])
        check_jobs(self.studies.url, asked.get("n_jobs", 1))
        search = {}
        for name in self.also.value:
            low, high = (_number(w) for w in self.ranges[name])
            usual = options.parameter(name).metadata["search"]
            search[name] = None if low is None and high is None else [usual[0] if low is None else low,
                                                                       usual[1] if high is None else high]  # fmt: skip
        return asked | ({"search": search} if search else {})

    def _begin(self) -> None:
        self.said.objects = []
        try:
            asked = self._asked()
        except (MiraError, ValueError) as problem:
            self.said.objects = [parts.problem(str(problem))]
            return
        recipe = self.recipe if self.recipe.steps else None
        key, given = self.session.data, dict(self.given)

        def done(_: str) -> None:
            self.name.value = ""
            self.began(asked["study"])

        def failed(text: str) -> None:
            self.said.objects = [parts.problem(text)]

        parts.in_thread(lambda: self.studies.begin(key, given, asked, recipe), done, failed, self.button)


def _number(widget: Any) -> float | int | None:
    try:
        return number_of(widget.value)
    except ValueError:
        raise ValueError(f"{widget.label} must be a number; got {widget.value!r}") from None
