"""How widgets show themselves where no page of the dashboard is: in notebooks, with a kernel and without.

In a notebook everything that a browser needs comes from this installation, as it may stand behind a firewall: Panel's
and Bokeh's scripts, inline, and those of panel-material-ui once. By itself panel-material-ui 0.16 would put its whole
bundle of 1.4 MB into every button and field.

What is put into the notebook has a picture in it, too, which is seen where no script runs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import panel as pn
from bokeh.document import Document
from bokeh.models import UIElement
from panel.io.notebook import patch_inline_stylesheets, push
from panel.io.state import state
from pyviz_comms import JupyterComm

from mira_core.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOAD = "application/vnd.holoviews_load.v0+json"  # what JupyterLab's extension for Panel runs
SOON = 300  # milliseconds between two looks at whether a figure has changed
WAIT = 10  # seconds that a widget waits for the bundle
DRAWN = 120  # seconds that a browser may take to draw a widget
BUSY = 2  # seconds after which a kernel that does not come to it is taken to run a cell

# Each widget carries this in place of the bundle. In a notebook that was opened again, its cells may be drawn in any
# order.
STUB = f"""
for (let i = 0; i < {20 * WAIT} && !globalThis.miraMaterialUI; i++) await new Promise((r) => setTimeout(r, 50))
if (!globalThis.miraMaterialUI) throw new Error("run the notebook again: its widgets' scripts have not been loaded")
const bundle = await importShim(globalThis.miraMaterialUI)
export default bundle.default
"""
LOADED = """{
globalThis.miraMaterialUI ??= URL.createObjectURL(new Blob([%s], {type: "text/javascript"}))
if (!document.getElementById("mira-icons")) {
  const style = document.createElement("style")
  style.id = "mira-icons"
  style.textContent = `@font-face { font-family: "Material Icons"; src: url("data:font/woff2;base64,%s") }`
  document.head.appendChild(style)
}
const mend = setInterval(() => {
  const Manager = window.Bokeh?.Models?.["panel.models.comm_manager.CommManager"]
  if (!Manager) return
  clearInterval(mend)
  if (Manager.prototype.mended) return
  const {_document_changed: changed, msg_handler: take} = Manager.prototype
  Manager.prototype.mended = true
  // Panel 1.9 sends back whatever it is sent, and Python would append its own points once more.
  Manager.prototype._document_changed = function (event) { if (event.sync !== false) changed.call(this, event) }
  // It drops what it is sent while it is not drawn yet, even the one half of what comes in two.
  Manager.prototype.msg_handler = function (message) {
    const drawn = () => window.Bokeh.index[this.plot_id] || window.PyViz.plot_index?.[this.plot_id]
    if (this.waiting) return void this.waiting.push(message)
    if (drawn()) return take.call(this, message)
    this.waiting = [message]
    const until = Date.now() + %d
    const look = setInterval(() => {
      if (!drawn() && Date.now() < until) return
      clearInterval(look)
      const all = this.waiting
      this.waiting = null
      for (const each of all) try { take.call(this, each) } catch (wrong) { console.error(wrong) }
    }, 50)
  }
}, 50)
}"""
ICONS = """.material-icons { font: normal 24px/1 "Material Icons"; display: inline-block; letter-spacing: normal;
  text-transform: none; white-space: nowrap; direction: ltr; font-feature-settings: "liga"; }"""

# All is in the bundle; by this name it is known to be one of Material's.
IMPORTS = {"imports": {"@mui/material/": "https://esm.sh/@mui/material/"}}
# The picture goes once the widget is drawn.
STILL = """.mira-widget:has([data-root-id] > *) > .mira-still { display: none; }
  .mira-still img { max-width: 100%; height: auto; } .mira-still table { border-collapse: collapse; font-size: 12.5px; }
  .mira-still td, .mira-still th { text-align: left; padding: 2px 10px 2px 0; vertical-align: top; }"""

_loaded: list[str] = []
_light: ContextVar[bool] = ContextVar("light", default=False)


class Alone(pn.viewable.Viewer):
    """A widget that can be shown by itself: in a cell of a notebook, in any page of Panel, or as a picture."""

    _sends: Any = None

    def pictures(self) -> list[Figure]:
        """Return the figures as they are now, drawn with matplotlib, for where no script runs."""
        return []

    def words(self) -> str:
        """Return what else there is to say now, as HTML without scripts; text of data is escaped."""
        return ""

    def push(self) -> None:
        """Send what has changed to the notebooks that show it; pages hear of it by themselves.

        Where no browser listens yet it waits.
        """
        for ref in list(self.__panel__()._models):
            _, _, doc, comm = state._views.get(ref, (None, None, None, None))
            if comm is not None and comm._comm is not None and not isinstance(comm._comm, _Unheard):
                push(doc, comm)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Change what is shown within; all of it is sent at once."""
        before, state._hold = state._hold, True
        try:
            yield
        finally:
            state._hold = before
        self.push()

    def _listen(self) -> None:
        """Send what changes, whoever changed it, and lose nothing of it when the browser speaks."""
        loop = _running_loop()
        for comm, client in self.__panel__()._comms.values():
            if not isinstance(client._handle_msg, _InTurn):
                client._on_msg = functools.partial(self._heard, client._on_msg)
                client._on_open = _InTurn(loop, functools.partial(self._opened, comm))
                # all of it, as it catches what is printed meanwhile, by whomever
                client._handle_msg = _InTurn(loop, client._handle_msg)
            if isinstance(comm, JupyterComm) and comm._comm is None:
                comm._comm = _Unheard()
        if self._sends is None:
            self._sends = pn.state.add_periodic_callback(self.push, SOON)

    def _opened(self, comm: Any, _: Any) -> None:
        before = comm._comm
        comm.init()
        if isinstance(before, _Unheard):
            before.say_again(comm._comm)
        self.push()

    def _heard(self, take: Callable[[Any], None], message: Any) -> None:
        """Take what the browser says; Panel forgets meanwhile what was yet to be sent."""
        self.push()
        take(message)

    def ipywidget(self) -> Any:
        """Return it as a widget of ipywidgets, for VS Code and whatever else knows these; needs jupyter_bokeh.

        Notebooks in VS Code show it so by themselves.
        """
        try:
            from jupyter_bokeh.widgets import BokehModel
        except ImportError:
            raise OptionError("widgets of ipywidgets need the package jupyter_bokeh; install it with pip") from None

        with _as_light():
            root = self.__panel__().get_root(Document())
        for element in root.select({"type": UIElement}):
            patch_inline_stylesheets(element)  # which would come from the network
        return BokehModel(root, combine_events=True)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        pictures = [_png(p) for p in self.pictures()]
        still = {"text/plain": self.__class__.__name__, "text/html": still_html(self.words(), pictures)}
        if pictures:
            still["image/png"] = pictures[0]  # for what is printed
        if not in_kernel():
            return still, {}
        if not _loaded:
            load()
        if pn.config.comms in ("vscode", "ipywidgets"):
            live = self.ipywidget()._repr_mimebundle_(include=include, exclude=exclude)
            return {**live, **still}, {}  # who can draw a widget looks at nothing else
        with _as_light():
            live, about = self.__panel__()._repr_mimebundle_(include, exclude)
        self._listen()
        both = f'<div class="mira-widget">{live["text/html"]}{still["text/html"]}</div>'
        return {**live, **still, "text/html": both}, about


class _Unheard:
    """Stands for a browser that does not listen yet, and keeps what it is sent, in order.

    Panel would try to send each message by itself again and again, and what came later might arrive first. That is
    lost if it refers to what the earlier one brings.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def send(self, *args: Any, **kwargs: Any) -> None:
        self._kept.append((args, kwargs))

    def say_again(self, comm: Any) -> None:
        for args, kwargs in self._kept:
            comm.send(*args, **kwargs)


class _InTurn:
    """A function that runs in the kernel's own thread, where widgets change, whichever thread calls it.

    JupyterLab has messages of widgets taken by other threads, so that they are heard while a cell runs. Two threads
    that send at once mix their messages up. Where a cell runs for long, nobody else sends, and it runs at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None, action: Callable[[Any], None]) -> None:
        self._loop, self._action = loop, action

    def __call__(self, message: Any) -> None:
        if self._loop is None or _running_loop() is self._loop:
            return self._action(message)
        done: Future[None] = Future()

        def run() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(self._action(message))
                except (Exception, KeyboardInterrupt) as wrong:
                    done.set_exception(wrong)

        self._loop.call_soon_threadsafe(run)
        try:
            return done.result(BUSY)
        except TimeoutError:
            return self._action(message) if done.cancel() else done.result()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def still_html(words: str, pictures: Sequence[str]) -> str:
    """Return words, which are trusted HTML, and pictures, PNG in base64, as they are seen where no script runs."""
    drawn = "".join(f'<img src="data:image/png;base64,{p}" alt="figure">' for p in pictures)
    return f'<div class="mira-still"><style>{STILL}</style>{words}{drawn}</div>'


def _png(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90, bbox_inches="tight")
    return base64.b64encode(out.getvalue()).decode()


def in_kernel() -> bool:
    """Whether a notebook's kernel runs this."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def load() -> None:
    """Send to a notebook what its widgets need; nothing comes from the network.

    The first widget does this where it is shown. Better call it yourself in the notebook's first cell, so that what is
    large stands there, and in place of ``panel.extension``, which would have the browser fetch from the network.
    Elsewhere than in a notebook it does nothing.
    """
    if not in_kernel():
        return
    from IPython.display import publish_display_data

    pn.extension("tabulator", inline=True)
    _lighten()
    bundle = json.dumps(_dist("panel-material-ui.bundle.js").decode()).replace("</", "<\\/")
    script = LOADED % (bundle, _font(), 1000 * DRAWN)
    publish_display_data({LOAD: script, "application/javascript": script})
    _loaded.append(script)


@functools.cache
def _lighten() -> None:
    """Let widgets of panel-material-ui that go to notebooks carry `STUB` in place of their bundle."""
    from panel_material_ui.base import MaterialComponent

    make, render = MaterialComponent._get_model, MaterialComponent._render_esm.__func__

    def _get_model(self: Any, doc: Any, root: Any = None, parent: Any = None, comm: Any = None) -> Any:
        if not _light.get() and not _for_notebook(doc, comm):
            return make(self, doc, root, parent, comm)
        with _as_light():
            model = make(self, doc, root, parent, comm)
        if model.bundle is not None:
            model.update(css_bundle=ICONS, importmap=IMPORTS)
        return model

    def _render_esm(cls: Any, compiled: Any = True, server: bool = False) -> Any:
        return STUB if _light.get() and cls._esm_base is not None else render(cls, compiled, server)

    MaterialComponent._get_model = _get_model
    MaterialComponent._render_esm = classmethod(_render_esm)


def _for_notebook(doc: Any, comm: Any) -> bool:
    """Whether something is made for a notebook; else it is for a page, or a file."""
    return isinstance(comm, JupyterComm) or (comm is None and getattr(doc, "session_context", None) is None)


@contextlib.contextmanager
def _as_light() -> Iterator[None]:
    token = _light.set(True)
    try:
        yield
    finally:
        _light.reset(token)


def _dist(name: str) -> bytes:
    from panel_material_ui.base import DIST_PATH

    return (DIST_PATH / name).read_bytes()


def _font() -> str:
    from panel_material_ui.base import DIST_PATH

    (path,) = [p for p in DIST_PATH.glob("material-icons-*.woff2") if p.name.count("-") == 2]
    return base64.b64encode(path.read_bytes()).decode()
