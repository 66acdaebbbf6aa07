"""Exports of runs for the browser: made in processes of their own, kept in the job's folder, sent from the disk.

A file goes to the browser by a route of its own, behind the login of the dashboard, and neither through the websocket
nor as a whole through the server's memory. ``mira serve`` has the route; Panel's own command has it with
``panel serve mira_app --plugins mira_app.optuna_board mira_app.downloads``.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import panel as pn
from bokeh.server.views.auth_request_handler import AuthRequestHandler
from tornado.web import HTTPError, StaticFileHandler

from mira_core import jobs, starting
from mira_core.errors import JobError, MiraError
from mira_core.export.zipped import write_zip
from mira_core.files import move_into_place

from .serving.addresses import login_url
from .serving.login import name_of
from .settings import Settings, people
from .workspace import may_see, owner_of

AT = "/exports"
AT_ONCE = 2
LONGEST = 3600  # seconds
MAKING = ".making-"
MOUNTED = threading.Event()
# No script of a report runs, though it is of this server; it has none.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


@dataclass(frozen=True)
class Download:
    """Something to download.

    Attributes
    ----------
    label, hint
        For people.
    what
        As `mira_core.export.export_all` names it.
    file
        Which of the files that it writes; empty: all, as .zip.
    suffix
        Of the file that is sent.
    """

    label: str
    hint: str
    what: tuple[str, ...]
    file: str
    suffix: str


DOWNLOADS = {
    "data": Download(
        "Cells (.h5ad)", "counts, topics, embedding, and how they came about", ("data",), "cells.h5ad", ".h5ad"
    ),
    "report": Download("Report (.html)", "one file that opens without a network", ("report",), "report.html", ".html"),
    "tables": Download("Tables and figures (.zip)", "CSV, SVG, PNG", ("tables", "figures"), "", ".zip"),
    "methods": Download("Methods text (.txt)", "for a paper's methods section", ("methods",), "methods.txt", ".txt"),
    "script": Download(
        "Script that repeats it (.zip)", "trains the same model, and checks it bit for bit", ("script",), "", ".zip"
    ),
}


class Exports:
    """Makes exports of the jobs in a folder, each once, for all sessions.

    Parameters
    ----------
    jobs_folder
        Of the workspace.
    """

    def __init__(self, jobs_folder: Path) -> None:
        self.jobs_folder = jobs_folder
        self._pool = ThreadPoolExecutor(AT_ONCE, "export")
        self._making: dict[tuple[str, str], Future[Path]] = {}
        self._lock = threading.Lock()

    def path(self, key: str, what: str) -> Path | None:
        """Return the file of an export, None if it is not made, or the run's results are newer.

        Raises
        ------
        JobError
            If there is no such job or export.
        """
        folder, path = self._places(key, what)
        try:
            return path if path.stat().st_mtime >= _made(folder) else None
        except FileNotFoundError:
            return None

    def make(self, key: str, what: str) -> Path:
        """Make an export unless it is made, and return its file; those who ask for the same wait for one.

        Raises
        ------
        JobError
            If there is no such job, or it cannot be exported.
        """
        if (path := self.path(key, what)) is not None:
            return path
        with self._lock:
            if (future := self._making.get((key, what))) is None:
                future = self._making[key, what] = self._pool.submit(self._make, key, what)
        try:
            return future.result()
        finally:
            with self._lock:
                self._making.pop((key, what), None)

    def _places(self, key: str, what: str) -> tuple[Path, Path]:
        if what not in DOWNLOADS or not re.fullmatch(r"[\w-]+", key):
            raise JobError(f"there is no export {what!r} of a job {key!r}")
        folder = self.jobs_folder / key
        if not (folder / "job.json").is_file():
            raise JobError(f"there is no job {key!r}")
        return folder, folder / "exports" / f"{key}-{what}{DOWNLOADS[what].suffix}"

    def _make(self, key: str, what: str) -> Path:
        folder, path = self._places(key, what)
        asked = DOWNLOADS[what]
        path.parent.mkdir(exist_ok=True)
        for left in path.parent.glob(f"{MAKING}*"):  # by a server that was killed
            if time.time() - left.stat().st_mtime > LONGEST:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=MAKING, dir=path.parent) as there:
            out = Path(there) / f"{key}-{what}"
            _export(folder, out, asked.what)
            made = out / asked.file
            if not asked.file:
                made = Path(there) / "made.zip"
                with open(made, "wb") as f:
                    write_zip(out, f)
            os.utime(made)  # after the results it was made of
            move_into_place(made, path)
        return path


def _made(folder: Path) -> float:
    """Return when the results of a run were written."""
    return (folder / "result" / "cells.h5ad").stat().st_mtime


def _export(run: Path, out: Path, what: tuple[str, ...]) -> None:
    """Export in a process of its own, which gives its memory back."""
    command = ["export", str(run), "-o", str(out), "--what", *what]
    try:
        done = starting.shared().run("mira_core.cli", command, timeout=LONGEST)
    except TimeoutError:
        raise JobError(
            f"it took longer than {LONGEST // 60} minutes, and was given up; mira export has no limit"
        ) from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
        raise JobError(last[0].removeprefix("mira: error: "))


@functools.lru_cache(maxsize=8)
def exports_of(jobs_folder: Path) -> Exports:
    """Return what all sessions share."""
    return Exports(jobs_folder)


def link(key: str, what: str) -> str:
    """Return where an export is, relative to the page of the dashboard."""
    return f".{AT}/{key}/{what}"


class Sender(AuthRequestHandler, StaticFileHandler):
    """Sends exports that are made, and nothing else, to those who have logged in."""

    def initialize(self, workspace: Path | None = None) -> None:
        """Take the workspace's folder; None: that of the settings."""
        self.exports = exports_of((workspace or Settings.from_environment().workspace) / "jobs")
        super().initialize(path=str(self.exports.jobs_folder))

    async def get(self, key: str, what: str, include_body: bool = True) -> None:
        """Send one; names are looked up, and never become paths as they are."""
        if not self.current_user:
            self.redirect(f"{login_url(self)}?{urlencode({'next': self.request.uri or ''})}")
            return
        if pn.config.authorize_callback is not None:
            raise HTTPError(403, reason="exports are not sent where authorize_callback decides who sees which page")
        try:
            path = self.exports.path(key, what) if self._may_see(key) else None
        except MiraError:
            path = None
        if path is None:
            raise HTTPError(404)
        self.name = path.name
        await super().get(path.relative_to(self.exports.jobs_folder).as_posix(), include_body)

    def _may_see(self, key: str) -> bool:
        folder = self.exports.jobs_folder / key
        return may_see(people().person(name_of(self)), folder, owner_of(jobs.read_spec(folder)))

    async def head(self, key: str, what: str) -> None:
        """Send its headers."""
        await self.get(key, what, include_body=False)

    def set_extra_headers(self, path: str) -> None:
        """Have it saved, unless it is to be read at once; never kept elsewhere, as it may be made anew."""
        shown = path.endswith(".html") and "view" in self.request.arguments
        self.set_header("Content-Disposition", f'{"inline" if shown else "attachment"}; filename="{self.name}"')
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "private, no-cache")

    @classmethod
    def get_content_version(cls, abspath: str) -> str:
        """Tell versions apart by time and size; reading all of a large file would hold up the server."""
        told = os.stat(abspath)
        return f"{told.st_mtime_ns:x}-{told.st_size:x}"

    @classmethod
    def _get_cached_version(cls, abs_path: str) -> str | None:
        return cls.get_content_version(abs_path)


def routes(workspace: Path | None = None) -> list[tuple[str, type[Sender], dict[str, Any]]]:
    """Return what a Tornado server needs to send exports; ``panel serve`` shows the page at ``/mira_app/`` as well."""
    MOUNTED.set()
    return [(rf"(?:/mira_app)?{AT}/([\w-]+)/({'|'.join(DOWNLOADS)})", Sender, {"workspace": workspace})]


def __getattr__(name: str) -> Any:
    if name == "ROUTES":  # what `panel serve --plugins` asks for
        return routes()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
