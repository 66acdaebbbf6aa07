"""The whole page: head, navigation, and one of the pages below it."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from bokeh.models import CustomJS
from panel.io.resources import LOCAL_DIST
from panel.pane.echarts import setup_js_callbacks
from panel.pane.holoviews import find_links, link_axes
from panel.param import link_param_method

from .figures.colours import ACCENT, ACCENT_ON_DARK
from .hub import Hub
from .lighter import lighten
from .ordered import keep_order
from .pages import parts
from .pages.data import DataPage
from .pages.explore import ExplorePage
from .pages.jobs import JobsPage
from .pages.model import ModelPage
from .pages.now import Now
from .pages.train import TrainPage
from .pages.tune import TunePage
from .scripted import script
from .serving import upgrading
from .serving.login import name_in
from .session import PAGES, Session
from .settings import Settings
from .studies import Studies
from .styles import LINE, MUTED
from .widgets.arrived import Arrived
from .workspace import Workspace

logger = logging.getLogger(__name__)

THEME = {
    "palette": {"primary": {"main": ACCENT}},
    "typography": {"fontFamily": "Roboto, sans-serif", "fontSize": 13},
    "shape": {"borderRadius": 4},
    "components": {
        "MuiAppBar": {
            "styleOverrides": {
                "root": {
                    "backgroundColor": "var(--panel-background-color)",
                    "color": "var(--panel-on-background-color)",
                    "boxShadow": "none",
                    "borderBottom": f"1px solid {LINE}",
                }
            }
        },
        # Labels stand above the field, so that what an empty field would be shows inside it.
        "MuiInputLabel": {"defaultProps": {"shrink": True}},
        "MuiOutlinedInput": {"defaultProps": {"notched": True}},
    },
}
IN_URL = ["page", "data", "recipe", "job", "test", "beside", "study", "part", "trials", "pin", "colour", "feature",
          "column", "tab", "against"]  # fmt: skip
REMEMBER = "document.cookie = `mira_theme=${cb_obj.dark_theme ? 'dark' : 'light'}; path=/; max-age=31536000`"
SELDOM = 30.0
SCRIPTS = ("accessible.js", "recover.js", "tables.js")
NARROW = "@media (max-width: 640px)"
HEAD = {
    "& .MuiAppBar-root .title": {
        "color": "var(--panel-on-background-color) !important",
        NARROW: {"display": "none"},
    }
}
MENU = {
    "& .MuiTab-root": {
        "color": f"{MUTED} !important",
        "minHeight": "64px",
        "textTransform": "none",
        NARROW: {"minWidth": "0", "padding": "12px 8px"},
    },
    f"{NARROW}": {"& .MuiTab-root .MuiIcon-root, & .MuiTab-root .MuiTab-icon": {"display": "none"}},
    "& .Mui-selected": {"color": "var(--panel-primary-color) !important"},
    "& .MuiTabs-indicator": {"backgroundColor": "var(--panel-primary-color) !important"},
}
ICONS = {
    "data": "dataset", "model": "tune", "train": "show_chart", "tune": "query_stats", "explore": "bubble_chart",
    "jobs": "list_alt",
}  # fmt: skip


@functools.cache
def shared() -> tuple[Workspace, Hub, Studies]:
    """Return what all sessions of this process share."""
    settings = Settings.from_environment()
    if told := upgrading.prepare(settings.workspace):
        logger.warning("%s", told)
    workspace = Workspace(settings)
    if "sqlite" in settings.storage or "postgresql" in settings.storage or "mysql" in settings.storage:
        import sqlalchemy  # noqa: F401 - half a second, in which nobody waits yet
    # What has been loaded stays. To look through it for garbage, as Panel does after each session, would hold everybody
    # up for a fifth of a second.
    gc.collect()
    gc.freeze()
    give_memory_back()
    workspace.dispatcher.wake()  # what waited or ran when the server ended
    return workspace, Hub(), Studies(workspace)


def give_memory_back() -> None:
    """Let the machine have what sessions leave, where the C library would keep it: a tenth of a busy server's memory.

    Asked for after garbage is collected, as Panel does after each session, at most each `SELDOM` seconds.
    """
    trim = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "malloc_trim", None)
    if trim is None:  # another C library than that of GNU
        return
    last = 0.0

    def collected(phase: str, what: dict[str, int]) -> None:
        nonlocal last
        if phase == "stop" and what["generation"] == 2 and (now := time.monotonic()) - last > SELDOM:
            last = now
            trim(0)

    gc.callbacks.append(collected)


def asset(name: str) -> Path:
    """Find a file of ``assets/``, installed or in a checkout."""
    here = Path(__file__).parent
    for folder in (here / "assets", here.parent / "assets"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"the file {name} is missing from the installation; install again")


# Panel's, for figures of HoloViews and ECharts, and for methods that are shown as parts.
FOREIGN = (link_axes, find_links, setup_js_callbacks, link_param_method)


class Off(param.Boolean):
    """A switch that stays off, whatever it is linked to."""

    def __set__(self, obj: Any, val: Any) -> None:
        """Do nothing."""


class Page(pmui.Page):
    """A page that is not told each time that any session of the server is busy.

    Telling it walks the whole document, some 20 ms of the server for every page, whichever of them is used; and the
    link keeps pages for ever. Nor is it looked through, for each part that is added, for what it does not have.
    """

    busy = Off(default=False)

    @property
    def _preprocessing_hooks(self) -> list[Callable[..., Any]]:
        return [hook for hook in pmui.Page._preprocessing_hooks if hook not in FOREIGN]


def app() -> Page:
    """Build the page for one session."""
    pn.extension("tabulator")
    keep_order()
    lighten()
    # After a restart of the server an open page comes back by itself. It has to load again, since the new session
    # knows nothing of the old one's models; the URL holds what was looked at.
    pn.config.reconnect = True
    if pn.state.curdoc is not None:
        # A browser that comes late gets a session for which no page is written; without this, Panel would have it fetch
        # style sheets from a network of others.
        local = f"{pn.state.rel_path}/{LOCAL_DIST}" if pn.state.rel_path else LOCAL_DIST
        pn.state.curdoc.template_variables.setdefault("dist_url", local)
        pn.state.curdoc.js_on_event("client_reconnected", CustomJS(code="window.miraReload()"))
        # Bokeh gives up a server that has not come back within half a minute, as after a restart of the machine.
        given_up = "if (cb_data.timeout === null) window.miraReload()"
        pn.state.curdoc.js_on_event("connection_lost", CustomJS(code=given_up))
        # Back and forward change the URL alone; what it says has to be loaded.
        back = "window.addEventListener('popstate', () => window.location.reload())"
        pn.state.curdoc.js_on_event("document_ready", CustomJS(code=back))
        for name in SCRIPTS:
            pn.state.curdoc.js_on_event("document_ready", CustomJS(code=asset(name).read_text()))
    everyones, hub, all_studies = shared()
    workspace = everyones.seen_by(everyones.people.who(name_in(pn.state.cookies)))
    if not workspace.person.may("viewer"):
        told = f"{workspace.person.name or 'Who has no name'} may not come in here. Ask who keeps this server."
        return Page(title="mira", logo=asset("logo.svg"), main=[parts.problem(told)], busy_indicator=None)
    studies = all_studies.seen_by(workspace)
    arrived = Arrived()
    session = Session(data="demo:pbmc700" if workspace.settings.demo else "")
    if pn.state.location is not None:
        pn.state.location.sync(session, IN_URL)
    makers: dict[str, Callable[[], Any]] = {
        "data": lambda: DataPage(workspace, session),
        "model": lambda: ModelPage(workspace, session, hub),
        "train": lambda: TrainPage(workspace, session, hub, arrived),
        "tune": lambda: TunePage(workspace, studies, session, hub, arrived),
        "explore": lambda: ExplorePage(workspace, session, hub),
        "jobs": lambda: JobsPage(workspace, studies, session, hub),
    }
    made: dict[str, Any] = {}  # a page is made when it is first shown, as the form alone has a hundred widgets

    def page_of(name: str) -> Any:
        if name not in made:
            made[name] = makers[name]()
        return made[name]

    now = Now(workspace, session, hub)
    pn.state.on_session_destroyed(lambda _: [page.close() for page in (now, *made.values())])

    items = [{"label": name.capitalize(), "icon": ICONS[name]} for name in PAGES]
    menu = pmui.TabMenu(items=items, active=PAGES.index(session.page), color="primary", sx=MENU)
    body = pn.Column(page_of(session.page).view, sizing_mode="stretch_width", margin=0)

    def show(event: Any) -> None:
        # A page that was seen once stays, hidden, so that its zoom and selections are kept.
        view = page_of(event.new).view
        if view not in body.objects:
            body.append(view)
        for page in body.objects:
            page.visible = page is view
        menu.active = PAGES.index(event.new)

    session.param.watch(show, "page")
    menu.param.watch(lambda e: setattr(session, "page", PAGES[e.new]) if e.new is not None else None, "active")

    dark = pn.state.cookies.get("mira_theme") == "dark"
    page = Page(
        title="mira",
        logo=asset("logo.svg"),
        favicon=asset("logo.svg"),
        header=[menu],
        main=[now.view, body, arrived],
        dark_theme=dark,
        theme_config={"light": THEME, "dark": {**THEME, "palette": {"primary": {"main": ACCENT_ON_DARK}}}},
        busy_indicator=None,
        main_width=1600,
        sx=HEAD,
    )
    script(page, {"dark_theme": REMEMBER})
    return page
