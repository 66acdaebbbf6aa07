"""People at the dashboard without browsers (`tests.benchmarks.tabs`): what they open, do, and wait to see."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from tornado.httpclient import HTTPClientError
from tornado.websocket import WebSocketError

from mira_app.session import PAGES
from mira_app.widgets.training import IN_WORDS

from .tabs import Log, Model, Sign, Tab, Unanswered, address, change, draws, event, labelled, says

ACTIONS = 5, 25  # of a visit, from and to
SHOWN = {
    "data": says("Raw counts in X."), "model": labelled("num_topics"), "train": draws("step", "learning_rate"),
    "tune": draws("number", "curve_hue"), "explore": draws("name", "value", "colour"), "jobs": draws("job", "state"),
}  # fmt: skip


class Work(Protocol):
    """What there is to look at."""

    finished: str  # key of a run with topics
    runs: dict[str, str]  # name -> key of the runs that have points
    live: dict[str, str]  # those of them that run
    studies: list[str]  # names of the studies that have trials
    cookies: dict[str, str]  # of the login


class Visit:
    """Somebody opens the dashboard, looks at things for a while, and leaves.

    Parameters
    ----------
    thinking
        Seconds between two actions, in the mean.
    """

    def __init__(self, url: str, work: Work, log: Log, rng: random.Random, thinking: float) -> None:
        self.work, self.rng, self.thinking, self.log = work, rng, thinking, log
        self.tab = Tab(url, log, work.cookies)
        self.page, self.study = "", ""
        self._seen: set[str] = set()  # pages
        self._run: Model  # chooses the run on the page Train
        self._last: dict[str, Any] = {}  # what was chosen last

    async def go(self, actions: int, until: float = math.inf, page: str = "") -> None:
        """Open a page, do so many things, and leave; or leave before, when it is time."""
        self.log.visits += 1
        try:
            await self._open(page or self.rng.choice(self.pages))
            for _ in range(actions):
                await asyncio.sleep(min(self.thinking and self.rng.expovariate(1 / self.thinking), 10 * self.thinking))
                if time.monotonic() > until:
                    break
                await self.rng.choice(self._able())()
        except (Unanswered, HTTPClientError, WebSocketError, OSError) as problem:
            self.log.error(f"{type(problem).__name__}: {problem}")
        finally:
            await self.tab.close()

    @property
    def pages(self) -> list[str]:
        """Pages that have something to show."""
        return [page for page in PAGES if page != "tune" or self.work.studies]

    def _able(self) -> list[Callable[[], Awaitable[None]]]:
        able: dict[str, list[Callable[[], Awaitable[None]]]] = {
            "model": [self._type], "train": [self._choose_run, self._compare], "explore": [self._recolour],
            "tune": [self._select_trial, self._select_trial, self._list_studies] if self.study else [self._open_study],
        }  # fmt: skip
        return [self._switch, *2 * able.get(self.page, [])]

    def _other(self, what: str, choices: list[Any]) -> Any:
        """Choose anything but what was chosen last, as that would change nothing; None if there is nothing else."""
        others = [c for c in choices if c != self._last.get(what)]
        if not others:
            return None
        self._last[what] = self.rng.choice(others)
        return self._last[what]

    def _arrive(self, page: str) -> None:
        if page == "train" and page not in self._seen:
            self._run = self.tab.widget("Run")  # Explore has one, too
        self.page = page
        self._seen.add(page)

    # --- what they do -----------------------------------------------------------------------------

    async def _open(self, page: str) -> None:
        more = ""
        if page == "train":
            more = f"&job={self.rng.choice(list((self.work.live or self.work.runs).values()))}"
        elif page == "explore":
            more = f"&job={self.work.finished}"
        elif page == "tune":
            self.study = self.rng.choice(self.work.studies)
            more = f"&study={self.study}"
        async with self.tab.answered(f"open {page.capitalize()}", SHOWN[page]):
            await self.tab.open(f"?page={page}{more}")
        self._arrive(page)

    async def _switch(self) -> None:
        page = self.rng.choice([p for p in self.pages if p != self.page])
        signs = [address(page=page)]
        if page not in self._seen:
            # The newest run may not have begun, and has no points then.
            other = {"train": says(*IN_WORDS.values()), "tune": SHOWN["tune"] if self.study else draws("study")}
            signs.append(other.get(page, SHOWN[page]))
        menu = self.tab.newest("its menu", lambda m: "'dataset'" in str(m.has.get("items")))
        async with self.tab.answered(f"switch to {page.capitalize()}", *signs):
            await self.tab.send(change(menu, "active", PAGES.index(page)))
        self._arrive(page)

    async def _type(self) -> None:
        number, field_ = self._other("number", list(range(2, 40))), self.tab.widget("num_topics")
        async with self.tab.answered("type in a field of Model", says(f"num_topics={number}")):
            await self.tab.send(change(field_, "value_input", str(number)), change(field_, "value", str(number)))

    async def _choose_run(self) -> None:
        labels = self._labels(self._run)
        if (label := self._other("run", labels)) is None or label == self._run.has.get("value"):
            return
        key = self.work.runs[_name(label)]
        others = Sign(
            "others to compare with", lambda m: m.has.get("label") == "Compare with" and label not in _options(m)
        )
        async with self.tab.answered("choose another run", address(job=key), SHOWN["train"], others):
            await self.tab.send(change(self._run, "value", label))

    async def _compare(self) -> None:
        widget = self.tab.widget("Compare with")
        label = self._other("beside", self._labels(widget))
        if label is None or widget.has.get("value") == [label]:
            return
        drawn = Sign(f"{label} in the legend", lambda m: label in str(m.has.get("label")) and "renderers" in m.has)
        async with self.tab.answered("compare with a run", drawn):
            await self.tab.send(change(widget, "value", [label]))

    async def _open_study(self) -> None:
        table = self.tab.newest("studies", lambda m: "study" in (m.has.get("data") or {}))
        sheet = self.tab.newest("a table of studies", lambda m: m.has.get("source") == {"id": table.id})
        rows = [i for i, name in enumerate(table.has["data"]["study"]) if name in self.work.studies]
        if not rows:
            return
        row = self.rng.choice(rows)
        name = table.has["data"]["study"][row]
        async with self.tab.answered("open a study", address(study=name), SHOWN["tune"]):
            await self.tab.send(event("cell-click", model=sheet, column="study", row=row))
        self.study = name

    async def _list_studies(self) -> None:
        label = self.tab.widget("All studies")
        button = self.tab.newest("the button", lambda m: m.has.get("data") == {"id": label.id})
        async with self.tab.answered("list all studies", address(study=""), draws("study")):
            await self.tab.send(event("dom_event", model=button, node="click", data={"type": "map", "entries": []}))
        self.study = ""

    async def _select_trial(self) -> None:
        trials = self.tab.newest("trials", SHOWN["tune"].seen)
        row = self._other("trial", list(range(len(trials.has["data"]["number"]))))
        if row is None:
            return
        selection = self.tab.models[trials.has["selected"]["id"]]
        chosen = Sign("a trial in the address", lambda m: "trials=" in str(m.has.get("search")))
        async with self.tab.answered("select a trial", chosen):
            await self.tab.send(change(selection, "indices", [row]))

    async def _recolour(self) -> None:
        widget = self.tab.widget("Colour by")
        colour = self._other("colour", [c for c in _options(widget) if c != widget.has.get("value")])
        if colour is None:
            return
        async with self.tab.answered("colour the cells of Explore", address(colour=colour), SHOWN["explore"]):
            await self.tab.send(change(widget, "value", colour))

    def _labels(self, widget: Model) -> list[str]:
        """Return the runs that a widget offers and that have points."""
        return [label for label in _options(widget) if _name(label) in self.work.runs]


def _options(widget: Model) -> list[str]:
    return [str(option) for option in widget.has.get("options", [])]


def _name(label: str) -> str:
    """Return the name of a run that is offered as its name and time."""
    return label.partition(" · ")[0]


async def person(
    url: str, work: Work, log: Log, seed: int, thinking: float, until: float = math.inf, visits: int = 10**9,
    actions: tuple[int, int] = ACTIONS,
) -> None:  # fmt: skip
    """Come, look, leave and come again, until it is time or for so many visits."""
    rng = random.Random(seed)
    for _ in range(visits):
        if time.monotonic() > until:
            break
        await Visit(url, work, log, rng, thinking).go(rng.randint(*actions), until)
        await asyncio.sleep(thinking * rng.random())
