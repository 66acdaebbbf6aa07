"""Where requests come from, and where things are for whoever asked: what every handler of this server needs."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from bokeh.server.util import check_allowlist
from bokeh.settings import settings as bokeh_settings


def is_foreign(handler: Any) -> bool:
    """Tell whether a page of another origin asks, or whether nothing says that it does not."""
    request = handler.request
    site = request.headers.get("Sec-Fetch-Site")
    asks = urlsplit(request.headers.get("Origin") or request.headers.get("Referer") or "").netloc.lower()
    if not asks or site not in (None, "same-origin"):
        return True
    if site is None and asks != request.host.lower():  # browsers say it over https and to localhost alone
        return True
    # Who may not open the dashboard may not change anything; a name that was made to point here is no Host to trust.
    allowed = bokeh_settings.allowed_ws_origin() or handler.application.websocket_origins
    return not check_allowlist(asks, set(allowed))


def upwards(handler: Any) -> str:
    """Return the way from a request's path up to the dashboard, relative, as a proxy may show it anywhere."""
    below = handler.request.path.removeprefix(handler.application.prefix)
    return "../" * (below.count("/") - 1)


def login_url(handler: Any) -> str:
    """Return where to log in, relative as all else is."""
    url, prefix = handler.get_login_url(), handler.application.prefix
    return upwards(handler) + url.removeprefix(f"{prefix}/") if url.startswith(f"{prefix}/") else url


def asked_from(request: Any, proxied: bool = False) -> str:
    """Return the address that asks: with a proxy the last that it names, as those before are what others say."""
    told = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip() if proxied else ""
    return told or str(request.remote_ip)


def is_encrypted(request: Any, proxied: bool = False) -> bool:
    """Tell whether browsers asked by https: this server, or the proxy before it."""
    told = request.headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip() if proxied else ""
    return (told or request.protocol) == "https"
