"""optuna-dashboard on this server: the same port, login and storage.

It knows no base path: its page and its program name ``/dashboard``, ``/api``, ``/csv`` and ``/static``. These are
rewritten so that they lie below ``/optuna``, whatever stands before that in the browser's address, as behind a proxy.
(``/artifacts`` is left alone: no store of artifacts is given, so it asks for none.) ``mira serve`` mounts it; Panel's
own command does with ``panel serve mira_app --plugins mira_app.optuna_board``.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import panel as pn
from bokeh.server.views.auth_request_handler import AuthRequestHandler
from tornado.ioloop import IOLoop
from tornado.web import stream_request_body
from tornado.wsgi import WSGIContainer

from mira_core.errors import MiraError, TuningError
from mira_core.tuning import storage as storages

from .serving.addresses import is_foreign, login_url
from .serving.audit import Audit
from .serving.login import name_of
from .serving.people import ALONE, Person
from .settings import Settings, people

logger = logging.getLogger(__name__)
T = TypeVar("T")

AT = "/optuna"
KNOWN = "0.21"  # version whose files have what is rewritten
# The browser knows best what stands before /optuna: the program asks where it itself was loaded from.
BASE = "window.optunaAt"
FIRST = f"{BASE} = new URL('..', document.currentScript.src).pathname.replace(/[/]$/, '');\n"
# What the program says, what it is to say, and how often it says so at least.
REWRITTEN = (
    ('url_prefix:"/dashboard"', f'url_prefix:{BASE}+"/dashboard"', 1),
    ("`${this.baseURL}/api/", f"`${{{BASE}}}/api/", 15),
    ("`/csv/", f"`${{{BASE}}}/csv/", 1),
)
LOADED = '<script defer src="/static/bundle.js"></script>'  # how its page names the program
MOST = 2 * 10**6  # bytes of a request; the largest are notes to a study
POOL = ThreadPoolExecutor(4, thread_name_prefix="optuna-board")
OPENING = threading.Lock()
MOUNTED = threading.Event()
ADMINS = "optuna-dashboard shows and changes the studies of everybody, so that only admins may open it"


def link(study_id: int | None = None) -> str:
    """Return where a study is, or all of them, relative to the page of this dashboard."""
    return f".{AT}/dashboard" + ("" if study_id is None else f"/studies/{study_id}")


@functools.cache
def bundle() -> bytes:
    """Return the program of optuna-dashboard's page, rewritten and compressed; once, as it is large.

    Raises
    ------
    TuningError
        If it is of a version that cannot be rewritten so.
    """
    import optuna_dashboard

    folder = Path(optuna_dashboard.__file__).parent
    text = (folder / "public" / "bundle.js").read_text("utf-8")
    known = [text.count(old) >= least for old, _, least in REWRITTEN]
    if not all(known) or LOADED not in (folder / "index.html").read_text("utf-8"):
        raise TuningError(
            f"optuna-dashboard {optuna_dashboard.__version__} cannot be shown here: its files are made otherwise than "
            f"those of version {KNOWN}, which are known to work. Install that with "
            f"pip install 'optuna-dashboard=={KNOWN}.*' and start mira again, or run what you have on a port of its "
            "own: optuna-dashboard STORAGE"
        )
    for old, new, _ in REWRITTEN:
        text = text.replace(old, new)
    return gzip.compress((FIRST + text).encode(), 6, mtime=0)  # the same after a restart, so that browsers keep it


def problem(person: Person = ALONE) -> str:
    """Say why optuna-dashboard cannot be shown to somebody; empty if it can. Takes a second the first time."""
    if not person.may("admin"):
        return ADMINS
    if not MOUNTED.is_set():
        return (
            "optuna-dashboard is not on this server. Start it with mira serve, or with "
            "panel serve mira_app --plugins mira_app.optuna_board"
        )
    try:
        bundle()
    except (MiraError, OSError, ImportError) as wrong:
        return str(wrong)
    return ""


@functools.cache
def _audit() -> Audit:
    return Audit(Settings.from_environment().workspace / "audit.jsonl")


@functools.cache
def _version() -> str:
    return hashlib.sha256(bundle()).hexdigest()[:12]


@functools.lru_cache(maxsize=2)
def _opened(url: str) -> tuple[Any, Any]:
    from optuna_dashboard import wsgi

    storage = storages.open_storage(url)
    return wsgi(storage), storage


def _look(storage: Any, url: str) -> None:
    """Raise if a storage is away, as optuna-dashboard itself does not say."""
    try:
        storage.get_all_studies()
    except Exception as away:
        raise TuningError(f"the storage {storages.without_password(url)} does not answer: {away}") from away


@stream_request_body
class Board(AuthRequestHandler):
    """Passes requests on to optuna-dashboard, in threads, for those who have logged in."""

    def initialize(self, storage: str | None = None) -> None:
        """Take the storage's URL; None: that of the settings."""
        self.storage = storage or Settings.from_environment().storage
        self.pieces: list[bytes] = []
        self.size = 0

    def check_xsrf_cookie(self) -> None:
        """Check where requests come from instead, see `is_foreign`; optuna-dashboard sends no such cookie back."""

    def data_received(self, chunk: bytes) -> None:
        """Keep a piece of the body, unless there are too many; what is refused is read too, so that people hear why."""
        self.size += len(chunk)
        if self.size <= MOST:
            self.pieces.append(chunk)

    async def _refuse(self, path: str) -> bool:
        """Answer what must not be passed on; tell whether that was done."""
        reads = self.request.method in ("GET", "HEAD")
        if not self.current_user:
            if reads and (path in ("", "/") or path.startswith(("/dashboard", "/csv/"))):
                self.redirect(f"{login_url(self)}?{urlencode({'next': self.request.uri})}")
            else:
                await self._tell("log in first", 401)
        elif pn.config.authorize_callback is not None:
            await self._tell(
                "optuna-dashboard is not shown where authorize_callback decides who may see which page: it cannot be "
                "asked here. Run it on a port of its own: optuna-dashboard STORAGE", 403,
            )  # fmt: skip
        elif not (person := people().person(name_of(self))).may("admin"):
            await self._tell(ADMINS, 403)
        elif not reads and is_foreign(self):
            await self._tell(
                "refused: this was asked by a page of another address. Behind a proxy, name its address with "
                "--allow-websocket-origin, and let it pass on the header Host", 403,
            )  # fmt: skip
        elif self.size > MOST:
            await self._tell(f"refused: more than {MOST // 10**6} MB", 413)
        elif not reads:
            _audit().tell(person.name, f"optuna-dashboard {self.request.method}", path)
        return self._finished

    async def _pass_on(self, path: str) -> None:
        if await self._refuse(path):
            return
        if path in ("", "/"):
            self.redirect("dashboard" if path else f"{AT[1:]}/dashboard")
            return
        if path.startswith(("/dashboard", "/static/bundle.js")) and (wrong := await _in_thread(problem)):
            await self._tell(wrong)
            return
        if path == "/static/bundle.js":
            self.set_header("Content-Type", "text/javascript; charset=utf-8")
            self.set_header("Content-Encoding", "gzip")
            named = self.get_query_argument("v", "") == _version()
            self.set_header("Cache-Control", f"private, {'max-age=31536000, immutable' if named else 'no-cache'}")
            await self.finish(bundle())
            return
        try:
            status, headers, body = await _in_thread(functools.partial(self._ask, path))
        except MiraError as away:
            await self._tell(f"{str(away).splitlines()[0]}. When it is back, load this page again")
            return
        except Exception as wrong:
            logger.exception("optuna-dashboard could not answer")
            await self._tell(f"optuna-dashboard could not answer: {wrong}", 500)
            return
        self.set_status(int(status[:3]), status[4:])
        up = "../" * (path.count("/") - 1)  # relative, so that it is found behind any proxy
        for name, value in headers:
            if name.lower() == "location":
                value = up + urlsplit(value).path.lstrip("/")
            elif name.lower() == "content-security-policy":
                value += ";frame-ancestors 'self'"  # the buttons are not to be clicked through another's page
            if name.lower() not in ("content-length", "last-modified", "server", "date"):
                self.set_header(name, value)
        self.set_header("Cache-Control", "no-store")
        if path.startswith("/dashboard"):
            here = LOADED.replace("/static/bundle.js", f"{up}static/bundle.js?v={_version()}")
            icon = f'<link rel="icon" href="{up}favicon.ico">'  # else browsers ask for one at the very root
            body = body.replace(LOADED.encode(), (icon + here).encode())
        await self.finish(None if status[:3] in ("204", "304") else body)

    get = head = post = put = delete = _pass_on

    def _ask(self, path: str) -> tuple[str, list[tuple[str, str]], bytes]:
        """Call the WSGI application, as a server would."""
        with OPENING:  # so that two do not make the same tables
            application, storage = _opened(self.storage)
        if path.startswith("/dashboard"):
            _look(storage, self.storage)
        self.request.body = b"".join(self.pieces)
        told = WSGIContainer(application).environ(self.request)
        # It needs to know little of the browser: logins and caching are dealt with here.
        environ = {k: v for k, v in told.items() if not k.startswith("HTTP_") or k == "HTTP_HOST"}
        environ |= {"PATH_INFO": path.encode().decode("latin1"), "HTTP_ACCEPT_ENCODING": ""}
        answer: dict[str, Any] = {}

        def start(status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
            answer.update(status=status, headers=headers)

        parts = application(environ, start)
        try:
            body = b"".join(parts)
        finally:
            getattr(parts, "close", lambda: None)()
        if answer["status"].startswith("5"):
            _look(storage, self.storage)
        return answer["status"], answer["headers"], body

    async def _tell(self, text: str, status: int = 503) -> None:
        """Say what is wrong: to people in place of a blank page, to the program as it expects to hear it."""
        self.set_status(status)
        self.set_header("Cache-Control", "no-store")
        if self.path_args[0].startswith("/api/"):
            await self.finish({"reason": text})
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        looks = "font: 15px/1.5 Roboto, sans-serif; margin: 3em auto; padding: 0 1em; max-width: 40em"
        await self.finish(
            "<!doctype html><meta name='viewport' content='width=device-width'><title>optuna-dashboard</title>"
            f"<style>:root {{ color-scheme: light dark }} body {{ {looks} }}</style>"
            f"<p role='alert'>{html.escape(text)}</p>"
        )


async def _in_thread(work: Callable[[], T]) -> T:
    return await IOLoop.current().run_in_executor(POOL, work)


def routes(storage: str | None = None) -> list[tuple[str, type[Board], dict[str, Any]]]:
    """Return what a Tornado server needs to have it; ``panel serve`` shows the page at ``/mira_app/`` as well."""
    MOUNTED.set()
    return [(rf"(?:/mira_app)?{AT}((?:/.*)?)", Board, {"storage": storage})]


def __getattr__(name: str) -> Any:
    if name == "ROUTES":  # what `panel serve --plugins` asks for
        return routes()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
