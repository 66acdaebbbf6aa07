"""The whole page: head, navigation, and one of the pages below it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui
from bokeh.models import CustomJS

from .figures.colours import ACCENT, ACCENT_ON_DARK
from .hub import Hub
from .pages.data import DataPage
from .pages.explore import ExplorePage
from .pages.model import ModelPage
from .pages.train import TrainPage
from .session import PAGES, Session
from .settings import Settings
from .styles import LINE, MUTED
from .workspace import Workspace

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
ICONS = {"data": "dataset", "model": "tune", "train": "show_chart", "explore": "bubble_chart"}


@functools.cache
def shared() -> tuple[Workspace, Hub]:
    """Return what all sessions of this process share."""
    return Workspace(Settings.from_environment()), Hub()


def asset(name: str) -> Path:
    """Find a file of ``assets/``, installed or in a checkout."""
    here = Path(__file__).parent
    for folder in (here / "assets", here.parent / "assets"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"the file {name} is missing from the installation; install again")


def app() -> pmui.Page:
    """Build the page for one session."""
    # After a restart of the server an open page comes back by itself. It has to load again, since the new session
    # knows nothing of the old one's models; the URL holds what was looked at.
    pn.config.reconnect = True
    if pn.state.curdoc is not None:
        pn.state.curdoc.js_on_event("client_reconnected", CustomJS(code="window.location.reload()"))
        # Back and forward change the URL alone; what it says has to be loaded.
        back = "window.addEventListener('popstate', () => window.location.reload())"
        pn.state.curdoc.js_on_event("document_ready", CustomJS(code=back))
    workspace, hub = shared()
    session = Session(data="demo:pbmc700" if workspace.settings.demo else "")
    if pn.state.location is not None:
        pn.state.location.sync(session, ["page", "data", "job", "test", "beside", "colour"])
    closing = [DataPage(workspace, session), ModelPage(workspace, session, hub), TrainPage(workspace, session, hub)]
    pages: dict[str, Any] = {
        **dict(zip(PAGES, closing, strict=False)),
        "explore": ExplorePage(workspace, session),
    }
    pn.state.on_session_destroyed(lambda _: [page.close() for page in closing])

    items = [{"label": name.capitalize(), "icon": ICONS[name]} for name in PAGES]
    menu = pmui.TabMenu(items=items, active=PAGES.index(session.page), color="primary", sx=MENU)
    body = pn.Column(pages[session.page].view, sizing_mode="stretch_width", margin=0)

    def show(event: Any) -> None:
        # A page that was seen once stays, hidden, so that its zoom and selections are kept.
        view = pages[event.new].view
        if view not in body.objects:
            body.append(view)
        for page in body.objects:
            page.visible = page is view
        menu.active = PAGES.index(event.new)

    session.param.watch(show, "page")
    menu.param.watch(lambda e: setattr(session, "page", PAGES[e.new]) if e.new is not None else None, "active")

    dark = pn.state.cookies.get("mira_theme") == "dark"
    page = pmui.Page(
        title="mira",
        logo=asset("logo.svg"),
        favicon=asset("logo.svg"),
        header=[menu],
        main=[body],
        dark_theme=dark,
        theme_config={"light": THEME, "dark": {**THEME, "palette": {"primary": {"main": ACCENT_ON_DARK}}}},
        busy_indicator="linear",
        main_width=1600,
        sx=HEAD,
    )
    remember = "document.cookie = `mira_theme=${cb_obj.dark_theme ? 'dark' : 'light'}; path=/; max-age=31536000`"
    page.jscallback(dark_theme=remember)
    return page
