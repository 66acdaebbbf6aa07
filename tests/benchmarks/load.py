"""What many people at once cost the dashboard, while it trains and tunes: answers, memory, errors.

    python -m tests.benchmarks.load --minutes 30 --users 25 --trainings 5 --studies 2

A real server with an account, as whose trainings and studies give way to it; these run all the time, each followed by
another when it has ended; people without browsers (`tests.benchmarks.visitors`), who come, look, think, and leave; and
one real headless Chromium that watches a run. Told are the times from what somebody does until the server has sent what
they wait to see; the server's memory, sessions and share of a core; and errors: of requests and websockets, in the
server's log and the browser's console, of jobs that failed, and actions that were not answered. It ends with status 1
unless 95 % of all actions were answered within a second, memory was flat, and nothing went wrong.

Everything is on one machine: on two cores the people and Chromium take what the server would have on a larger one, and
trainings, though they give way, share its caches. Compare only what was measured on equal ones. With ``--servers``
people come to several, on one workspace, as a proxy would spread them.

Memory is flat if the line of least squares through the second half, in which nothing is new to the server, rises by
less than `GROWTH`. Over less than `JUDGED` minutes it is told, and not judged.

A working day in little: somebody who does one thing each 20 s does 1,440 in 8 hours. Sessions and changes are what a
day leaves behind, not its hours, so the same comes of more people who think less: `--users 25 --thinking 4 --minutes
30` are some 11,000 actions, eight such days; `tests/app/test_load.py` is what CI can bear, people who do not think.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import secrets
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests

from mira_app.serving.accounts import Accounts
from mira_app.serving.people import Person
from mira_app.session import PAGES
from mira_app.settings import Settings
from mira_app.studies import Studies
from mira_app.workspace import Workspace
from mira_core import jobs, starting
from mira_core.errors import MiraError
from tests.browser.conftest import CHROMIUM, HARMLESS, MIRA, Server
from tests.browser.test_path import POINTS
from tests.servers import PATIENCE, wait_until

from .tabs import Log
from .visitors import Visit, person

ANSWERED = 1.0  # seconds, of 95 %
GROWTH = 40.0  # MB an hour; what comes and goes with sessions is about as much as that over a quarter of an hour
SESSIONS = r"mira_sessions\{.*\}"
JUDGED = 10.0  # minutes, from which memory is judged
DAY = 1440  # actions of one person
NAME = "somebody"  # as whom all come in: the jobs of people give way to the server
DEMO = "demo:pbmc700"
SMALL = {"feature_type": "expression", "hidden": 32}
EPOCHS = 3000  # of a training: some minutes beside others
STUDY = {"min_topics": 2, "max_topics": 12, "max_trials": 60, "min_trials": 60, "stop_condition": 60}
LIVE = ("waiting", "running")
ASKED = 5.0  # seconds between two questions to the browser
GONE = "assert self._session is not None"  # Bokeh, of what was on its way when somebody left
STILL = 30.0  # seconds after which a run has stood still in it
TENTHS = 10


class Work:
    """Trainings and studies that run all the time.

    Attributes
    ----------
    finished
        Key of a run with topics.
    runs, live
        Name -> key of the runs that have points, and of those of them that run.
    studies
        Names of the studies that have trials.
    cookies
        Of the login.
    """

    def __init__(self, workspace: Path, trainings: int, studies: int, log: Log) -> None:
        whole = Workspace(Settings(workspace=workspace, demo=True, jobs=trainings + studies + 1))
        self.workspace, self.log = whole.seen_by(lambda: Person(NAME, "admin")), log
        self.cookies: dict[str, str] = {}
        self.tuned = Studies(self.workspace)
        self.trainings, self.n_studies, self.number = trainings, studies, 0
        self.finished = self.workspace.submit(DEMO, {**SMALL, "num_epochs": 5}, "finished", embedding=False)
        self.runs: dict[str, str] = {}
        self.live: dict[str, str] = {}
        self.studies: list[str] = []
        self.steps: dict[str, list[tuple[float, int]]] = {}  # of live runs: when, how far
        self._running: dict[str, tuple[str, str]] = {self.finished: ("fit", "finished")}  # key -> kind and name

    @property
    def ready(self) -> bool:
        """Whether there is all that people look at."""
        return "finished" in self.runs and len(self.live) == self.trainings and len(self.studies) == self.n_studies

    def tend(self) -> None:
        """Look how far all is, and begin what has ended anew."""
        for key, (kind, name) in list(self._running.items()):
            status = jobs.read_status(self.workspace.folder_of(key))
            if kind == "fit" and status.step and key != self.finished:
                self.runs[name] = self.live[name] = key
                self.steps.setdefault(key, []).append((time.monotonic(), status.step))
            elif kind == "tune" and name not in self.studies:
                with contextlib.suppress(MiraError):  # it has not begun
                    if self.tuned.readings.read(name).curves:
                        self.studies.append(name)
            if status.state in LIVE:
                continue
            del self._running[key]
            self.live.pop(name, None)
            if status.state == "finished":
                self.runs |= {name: key} if kind == "fit" else {}
            else:
                self.log.error(f"a job {status.state}: {status.error.get('message', '')}")
        kinds = [kind for kind, name in self._running.values() if name != "finished"]
        if "finished" in self.runs:  # it is not held up by others
            for _ in range(self.trainings - kinds.count("fit")):
                self._train()
            for _ in range(self.n_studies - kinds.count("tune")):
                self._tune()

    def _train(self) -> None:
        self.number += 1
        name, options = f"training {self.number}", {**SMALL, "num_epochs": EPOCHS, "seed": self.number}
        self._running[self.workspace.submit(DEMO, options, name, embedding=False)] = "fit", name

    def _tune(self) -> None:
        self.number += 1
        name = f"load/{self.number}"
        key = self.tuned.begin(DEMO, {**SMALL, "num_epochs": 24}, {**STUDY, "study": name, "seed": self.number})
        self._running[key] = "tune", name

    def age(self, key: str, step: int) -> float:
        """Return for how many seconds a live run has been further than a step."""
        later = [at for at, reached in self.steps.get(key, []) if reached > step]
        return time.monotonic() - later[0] if later else 0.0

    def stop(self) -> None:
        """End all jobs: in good order, or else by force."""
        for key in self._running:
            self.workspace.stop(key)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and any(
            jobs.read_status(self.workspace.folder_of(key)).state in LIVE for key in self._running
        ):
            time.sleep(0.2)
        for key in self._running:
            folder = self.workspace.folder_of(key)
            if jobs.read_status(folder).state in LIVE:
                with contextlib.suppress(OSError, ValueError, KeyError):
                    os.killpg(json.loads((folder / "process.json").read_text())["pid"], signal.SIGKILL)
        starting.shared().close()


@dataclass
class Meter:
    """What the servers take together: each second their memory, time of cores and sessions."""

    servers: Sequence[Server]
    at: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)  # MB
    cpu: list[float] = field(default_factory=list)  # seconds
    alive: list[int] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)  # million that Python uses; memory is as much as it ever used

    def read(self) -> None:
        """Look once."""
        processes = [psutil.Process(server.process.pid) for server in self.servers]
        self.at.append(time.monotonic())
        self.rss.append(sum(p.memory_info().rss for p in processes) / 1e6)
        self.cpu.append(sum(sum(p.cpu_times()[:2]) for p in processes))
        told = self._told()
        self.alive.append(int(_sum(SESSIONS, told)))
        self.blocks.append(_sum("mira_python_blocks", told) / 1e6)

    def log(self) -> str:
        """Return what the servers have said."""
        return Path(self.servers[0].log.name).read_text(errors="replace")  # all write into one

    def sessions(self) -> int:
        """Return how many sessions the servers have in memory, as they tell themselves."""
        return int(_sum(SESSIONS, self._told()))

    def _told(self) -> list[str]:
        return [requests.get(server.url("/metrics"), timeout=60).text for server in self.servers]

    def errors(self) -> list[str]:
        """Return what went wrong in the server, each time with what it said next."""
        lines = self.log().splitlines()
        at = [i for i, line in enumerate(lines) if " ERROR" in line or line.startswith(("ERROR", "Traceback"))]
        first = [i for n, i in enumerate(at) if not n or i - at[n - 1] > 3]
        told = ("\n    ".join(lines[i : i + 40]) for i in first)
        return [f"the server's log: {text}" for text in told if GONE not in text]

    def growth(self) -> float:
        """Return the slope of memory in the second half, MB an hour."""
        half = len(self.at) // 2
        return float(np.polyfit(np.array(self.at[half:]) / 3600, self.rss[half:], 1)[0])


def _sum(name: str, told: Sequence[str]) -> float:
    """Return what several servers tell of a metric together."""
    return sum(float(n) for text in told for n in re.findall(rf"^{name} (\S+)$", text, re.MULTILINE))


@contextlib.contextmanager
def serving(
    folder: Path, trainings: int, studies: int, log: Log, servers: int = 1
) -> Iterator[tuple[list[Server], Work]]:
    """Start servers, trainings and studies; give them once they have something to show, and end them."""
    workspace, accounts, password = folder / "workspace", Accounts(folder / "users.json"), secrets.token_hex(8)
    accounts.set(NAME, password, "admin")
    flags = ["--demo", "--workspace", str(workspace), "--users", str(accounts.path)]
    started = [
        Server(workspace, lambda port: [*MIRA, "serve", *flags, "--port", str(port)], {}) for _ in range(servers)
    ]
    work = Work(workspace, trainings, studies, log)
    with requests.Session() as person:
        told, server = {"username": NAME, "password": password}, started[0]
        person.post(server.url("/login"), told, headers={"Origin": server.url()}, timeout=60).raise_for_status()
        work.cookies = dict(person.cookies)

    def ready() -> bool:
        work.tend()
        return work.ready

    try:
        wait_until(ready, 120, "trainings and studies have something to show")
        yield started, work
    finally:
        work.stop()
        for server in started:
            server.stop()


async def watch(server: Server, work: Work, log: Log, until: float) -> list[float]:
    """Look at live runs in a real browser all the time; return how old the newest point was, in seconds."""
    from playwright.async_api import Error, async_playwright

    ages: list[float] = []
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = await chromium.new_context(viewport={"width": 1440, "height": 900})
        told = work.cookies.items()
        await context.add_cookies([{"name": name, "value": value, "url": server.url()} for name, value in told])
        page = await context.new_page()
        page.on("console", lambda m: log.error(f"console: {m.text} {m.location['url']}") if m.type == "error" else None)
        page.on("pageerror", lambda e: None if any(h in str(e) for h in HARMLESS) else log.error(f"browser: {e}"))
        while time.monotonic() < until:
            name, key = next(iter(work.live.items()), ("", ""))
            if not key:
                await asyncio.sleep(1)
                continue
            try:
                await page.goto(server.url(f"/?page=train&job={key}"))
                await page.wait_for_function(f"({POINTS})().length > 0", timeout=1000 * STILL * PATIENCE)
                while name in work.live and time.monotonic() < until:
                    await asyncio.sleep(ASKED)
                    ages.append(work.age(key, (await page.evaluate(POINTS))[-1]))
                    if ages[-1] > STILL:
                        log.error(f"a run stood still in the browser for {STILL:.0f} s")
                        break
            except Error as problem:
                log.error(f"the watching browser: {problem.message}")
        await chromium.close()
    return ages


async def warm(server: Server, work: Work, log: Log) -> None:
    """Let somebody open each page, for which the server loads what it needs; nobody's times are told."""
    for page in PAGES:
        visit = Visit(server.url("/"), work, log, random.Random(0), 0)
        if page in visit.pages:
            await visit.go(0, page=page)
    log.times.clear()
    log.visits = 0


async def measure(servers: Sequence[Server], work: Work, log: Log, meter: Meter, asked: Any) -> list[float]:
    """Let people come for so many minutes; return what `watch` does."""
    for server in servers:
        await warm(server, work, log)
    until = time.monotonic() + 60 * asked.minutes

    async def look() -> None:
        while time.monotonic() < until:
            await asyncio.to_thread(work.tend)
            await asyncio.to_thread(meter.read)
            await asyncio.sleep(1)

    async def come(seed: int) -> None:
        await asyncio.sleep(random.Random(seed).random() * asked.thinking)  # not all at once
        await person(servers[seed % len(servers)].url("/"), work, log, seed, asked.thinking, until)

    watching = watch(servers[0], work, log, until) if asked.browser else asyncio.sleep(0, [])
    people = [come(asked.seed + i) for i in range(asked.users)]
    ages, *_ = await asyncio.gather(watching, look(), *people)
    return ages


def report(log: Log, meter: Meter, ages: list[float], asked: Any, own: float) -> bool:
    """Print what was measured; return whether all is well."""
    every = [seconds for times in log.times.values() for seconds in times]
    print(f"{'action':32} {'count':>7} {'median':>8} {'p95':>8} {'max':>8}  (seconds)")
    for name, times in [*sorted(log.times.items()), ("all", every)]:
        middle, most = statistics.median(times or [0]), max(times or [0])
        print(f"{name:32} {len(times):7,} {middle:8.2f} {p95(times):8.2f} {most:8.2f}")
    print(f"{log.visits:,} visits; {len(every):,} actions are {len(every) / DAY:.1f} days of one person, who does one "
          f"thing each 20 s")  # fmt: skip
    if ages:
        print(f"the run in the browser was {statistics.median(ages):.1f} s old, {p95(ages):.1f} s in 95 %, "
              f"{max(ages):.1f} s ever; told to the second, in {len(ages)} looks")  # fmt: skip
    print(f"{'minute':>8} {'MB':>6} {'blocks':>7} {'sessions':>9} {'of a core':>10}")
    at = [round(i * (len(meter.at) - 1) / TENTHS) for i in range(TENTHS + 1)]
    for before, now in zip(at, at[1:], strict=False):
        share = (meter.cpu[now] - meter.cpu[before]) / max(meter.at[now] - meter.at[before], 1e-9)
        print(f"{(meter.at[now] - meter.at[0]) / 60:8.1f} {meter.rss[now]:6.0f} {meter.blocks[now]:6.2f}M "
              f"{meter.alive[now]:9} {share:10.0%}")  # fmt: skip
    whole = meter.at[-1] - meter.at[0]
    print(f"{asked.servers} server(s) took {(meter.cpu[-1] - meter.cpu[0]) / whole:.0%} of a core of {os.cpu_count()}, "
          f"the people together {own / whole:.0%}")  # fmt: skip
    for text, n in log.errors.most_common():
        print(f"{n} × {text}")
    growth, judged = meter.growth(), asked.minutes >= JUDGED
    told = {
        f"95 % of the actions within {p95(every):.2f} s, at most {ANSWERED:g} s": 0 < p95(every) <= ANSWERED,
        f"memory grew by {growth:.0f} MB/hour in the second half, at most {GROWTH:g}"
        + ("" if judged else f" (not judged below {JUDGED:g} minutes)"): growth <= GROWTH or not judged,
        f"{sum(log.errors.values())} errors": not log.errors,
    }
    for what, holds in told.items():
        print(f"{'yes' if holds else 'NO ':3} {what}")
    return all(told.values())


def p95(values: list[float]) -> float:
    """Return what 95 % do not exceed."""
    return float(np.quantile(values, 0.95)) if values else 0.0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--users", type=int, default=25)
    parser.add_argument("--trainings", type=int, default=5)
    parser.add_argument("--studies", type=int, default=2)
    parser.add_argument("--servers", type=int, default=1, help="on one workspace; people come to one each")
    parser.add_argument("--thinking", type=float, default=8.0, help="seconds between two actions of one, in the mean")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="watch no run in a Chromium")
    asked = parser.parse_args()
    log = Log()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), asked.trainings, asked.studies, log, asked.servers) as served,
    ):
        meter = Meter(served[0])
        before = time.process_time()
        ages = asyncio.run(measure(*served, log, meter, asked))
        own = time.process_time() - before
        for text in meter.errors():
            log.error(text)
    return 0 if report(log, meter, ages, asked, own) else 1


if __name__ == "__main__":
    raise SystemExit(main())
