"""A real server and a real headless Chromium. Screenshots go to test-artefacts/, outside git."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..servers import PATIENCE, wait_until

ARTEFACTS = Path(__file__).parents[2] / "test-artefacts"
# The shell has no windows, which a headless Chromium draws for nobody: half the time.
CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((p for n in CHROMIUMS if (p := shutil.which(n))), None)
MIRA = [sys.executable, "-m", "mira_core.cli"]
# Of Bokeh's client where a connection breaks: it closes it with a code that browsers refuse, and speaks while it is
# connecting again, as a page that is left does. Once it is connected, the page is loaded anew.
HARMLESS = ("'close' on 'WebSocket'", "Still in CONNECTING state")


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="module")
def browser():
    """A Chromium for one file: while it is there, Playwright has a loop run, which no other file may depend on."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have a browser: apt-get install chromium")
        pytest.skip("no Chromium on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


# What was pressed last, and what each table of the page takes clicks for; errors that Bokeh catches are only said.
LISTEN = """
window.pressed = []
for (const kind of ['mousedown', 'mouseup', 'click', 'keydown'])
  document.addEventListener(kind, (event) => {
    const [first, ...rest] = event.composedPath().filter((e) => e.tagName)
    const row = [first, ...rest].find((e) => e.classList.contains('tabulator-row'))
    window.pressed.push(`${Math.round(event.timeStamp)} ms ${kind} on ${first.tagName}.${first.className}` +
      (row ? ` in the row ${row.innerText.replace(/\\s+/g, ' ')}` : ''))
  }, true)
"""
TELL = """() => {
  const told = [`now ${Math.round(performance.now())} ms`, ...window.pressed.slice(-12)]
  const look = (view) => {
    if (view.tabulator) told.push('table ' + JSON.stringify({initializing: view._initializing,
      built: view.tabulator.initialized, deaf: view._selection_updating, page: view.model.page,
      selected: view.model.source.selected.indices, rows: view.tabulator.rowManager.getRows().length}))
    for (const child of view.child_views ?? []) look(child)
  }
  for (const view of window.Bokeh?.index.roots ?? []) look(view)
  return told.join('\\n')
}"""


@pytest.fixture
def page(browser, request):
    """A page of 1440 x 900; errors in the browser fail a test, and a failed one tells what was pressed and said."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.add_init_script(LISTEN)
    page = context.new_page()
    page.set_default_timeout(20_000 * PATIENCE)
    errors: list[str] = []
    said: list[str] = []
    page.on("pageerror", lambda e: errors.append(f"{e} {e.stack}") if not any(h in str(e) for h in HARMLESS) else None)
    page.on("console", lambda m: said.append(f"{m.type}: {m.text[:500]}"))
    yield page
    if request.node.stash.get(FAILED, False):
        shot(page, f"end-of-{request.node.name}")
        with contextlib.suppress(Exception):  # as above
            print("in the browser:", page.evaluate(TELL), *said[-20:], sep="\n")
        for server in filter(None, map(request.node.funcargs.get, ("server", "shared"))):
            print("the server:", (server.workspace.parent / "server.log").read_text()[-3000:], sep="\n")
    context.close()
    assert not errors, "\n".join(errors)


def shot(page, name: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    with contextlib.suppress(Exception):  # the page may have gone with the server
        page.screenshot(path=ARTEFACTS / f"{name}.png")


class Server:
    """`mira serve`, or `panel serve`, as a process on a port of its own."""

    def __init__(self, workspace: Path, command: Callable[[int], list[str]], environment: dict[str, str]) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.workspace = workspace
        self.command, self.environment = command, environment
        self.path = ""
        self.start()

    def start(self) -> None:
        self.log = open(self.workspace.parent / "server.log", "ab")  # noqa: SIM115 - closed in `stop`
        self.process = subprocess.Popen(
            self.command(self.port),
            stdout=self.log,
            stderr=self.log,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **self.environment},
        )
        try:
            wait_until(self.answers, 60, "the server answers")
        except BaseException:
            self.stop()
            raise

    def answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError((self.workspace.parent / "server.log").read_text()[-2000:])
        try:
            with urllib.request.urlopen(f"http://localhost:{self.port}/", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def url(self, query: str = "") -> str:
        return f"http://localhost:{self.port}{self.path}{query}"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self.log.close()
        for jobs in (f"mira_core.run {self.workspace}", f"mira_core.starting .*{self.workspace}"):
            subprocess.run(["pkill", "-f", jobs], check=False)


def _demo(folder: Path) -> Iterator[Server]:
    workspace = folder / "workspace"

    def command(port: int) -> list[str]:
        return [*MIRA, "serve", "--demo", "--workspace", str(workspace), "--port", str(port)]

    server = Server(workspace, command, {})
    yield server
    server.stop()


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    """`mira serve --demo` with a workspace of its own."""
    yield from _demo(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Server]:
    """`mira serve --demo` for all tests of a file, which take what they find in the workspace into account."""
    yield from _demo(tmp_path_factory.mktemp("shared"))
