"""Logging in: by name and password, or by a token that the server prints when it starts, as Jupyter does.

Who has logged in carries a signed cookie, which Panel reads as `pn.state.user`. The secret that signs it is kept in the
workspace, so that a restart logs nobody out.
"""

from __future__ import annotations

import asyncio
import hmac
import html
import logging
import secrets
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import panel as pn
from bokeh.server.auth_provider import AuthProvider
from tornado.web import RequestHandler, decode_signed_value

from mira_core.files import replace_file

from .accounts import Accounts
from .addresses import asked_from, is_encrypted, is_foreign, upwards
from .audit import Audit

logger = logging.getLogger(__name__)

COOKIE = "user"  # the name that Panel knows
HOLDER = "holder of the token"  # what its cookie calls somebody who has it
DAYS = 14  # that a login lasts
AT_MOST = 8  # passwords that may be wrong within `WINDOW`, for one name or from one address
WINDOW = 300.0  # seconds
REMEMBERED = 4096  # names and addresses


class Login(AuthProvider):
    """Lets in who has an account, or the token.

    Parameters
    ----------
    accounts
        Names and passwords; None: only the token lets in.
    token
        None: only an account lets in.
    audit
        Where it is noted who came in, and who did not.
    proxied
        Whether a proxy says who asks, and how.
    """

    def __init__(
        self, accounts: Accounts | None = None, token: str | None = None, audit: Audit | None = None, *,
        proxied: bool = False,
    ) -> None:  # fmt: skip
        self.accounts, self.token, self.audit, self.proxied = accounts, token, audit, proxied
        self.failures = Failures()
        super().__init__()

    def admits(self, name: str) -> bool:
        """Tell whether somebody who has logged in is still let in."""
        if name == HOLDER and self.token is not None:
            return True
        return self.accounts is not None and self.accounts.get(name) is not None

    def holds(self, token: str) -> bool:
        """Tell whether this is the token."""
        return self.token is not None and hmac.compare_digest(token.encode(), self.token.encode())

    @property
    def get_user(self) -> Any:
        """A function from a request to a name, or None."""

        def get_user(handler: Any) -> str | None:
            cookie = handler.get_secure_cookie(COOKIE, max_age_days=DAYS)
            if cookie and self.admits(name := cookie.decode("utf-8", "replace")):
                return name
            return None

        return get_user

    @property
    def login_url(self) -> str:
        """Where to log in."""
        return "/login"

    @property
    def login_handler(self) -> Any:
        """The page to log in."""
        return type("LoginPage", (LoginPage,), {"provider": self})

    @property
    def logout_url(self) -> str:
        """Where to log out."""
        return "/logout"

    @property
    def logout_handler(self) -> Any:
        """What logs out."""
        return LogoutPage


class Failures:
    """Counts passwords that were wrong, so that they cannot be guessed; knows the last few thousand names."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, list[float]] = OrderedDict()

    def too_many(self, *keys: str) -> bool:
        """Tell whether no further password is tried for now."""
        return any(len(self._recent(key)) >= AT_MOST for key in keys)

    def add(self, *keys: str) -> None:
        """Count one."""
        for key in keys:
            self._known[key] = [*self._recent(key), time.monotonic()][-AT_MOST:]
            self._known.move_to_end(key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def take_back(self, key: str) -> None:
        """Count one less."""
        self._known[key] = self._recent(key)[:-1]

    def forget(self, key: str) -> None:
        """Begin anew."""
        self._known.pop(key, None)

    def _recent(self, key: str) -> list[float]:
        since = time.monotonic() - WINDOW
        return [t for t in self._known.get(key, ()) if t > since]


class LoginPage(RequestHandler):
    """Asks for a name and a password, or for the token."""

    provider: Login

    def set_default_headers(self) -> None:
        """Keep the page out of others' frames and caches."""
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
                        "frame-ancestors 'none'")  # fmt: skip
        self.set_header("Referrer-Policy", "same-origin")

    def get(self) -> None:
        """Show the form; a link with the token logs in at once."""
        token = self.get_query_argument("token", "")
        if not token:
            self._show()
        elif self.provider.holds(token):
            self._enter(HOLDER)
        else:
            self._show("This link's token is not the one that the server printed when it started last.", 403)

    async def post(self) -> None:
        """Try what was given."""
        if is_foreign(self):
            self._show("This was sent by a page of another address. Log in here.", 403)
            return
        name = self.get_body_argument("username", "").strip()
        password = self.get_body_argument("password", "", strip=False)
        here = f"address {self._asked_from}"
        failures = self.provider.failures
        if failures.too_many(f"name {name}", here):
            self._show("Too many passwords were wrong. Wait five minutes, then try again.", 429)
            return
        if self.provider.token is not None and self.provider.holds(password):
            self._enter(HOLDER)
            return
        accounts = self.provider.accounts
        failures.add(f"name {name}", here)  # before it is tried, as others that are sent meanwhile are tried too
        # In a thread, as it takes a while on purpose.
        if accounts is not None and await asyncio.to_thread(accounts.check, name, password):
            failures.forget(f"name {name}")
            failures.take_back(here)
            self._enter(name)
            return
        logger.warning("a login as %r from %s was refused", name, self._asked_from)
        self._note(name, "refused")
        self._show("This name and password do not belong together." if accounts else "This is not the token.", 403)

    @property
    def _asked_from(self) -> str:
        return asked_from(self.request, self.provider.proxied)

    def _enter(self, name: str) -> None:
        secure = is_encrypted(self.request, self.provider.proxied)
        self.set_secure_cookie(COOKIE, name, expires_days=DAYS, httponly=True, secure=secure, samesite="Lax")
        logger.info("%s has logged in from %s", name, self._asked_from)
        self._note(name, "done")
        self.redirect(_local(self.get_argument("next", "")) or f"{upwards(self)}.")

    def _note(self, name: str, outcome: str) -> None:
        if self.provider.audit is not None:
            self.provider.audit.tell(name[:64], "log in", self._asked_from, outcome)

    def _show(self, problem: str = "", status: int = 200) -> None:
        self.set_status(status)
        told = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
        name = (
            '<label>Name<input name="username" autocomplete="username" autofocus required></label>'
            if self.provider.accounts is not None and self.provider.token is None
            else '<label>Name<input name="username" autocomplete="username" autofocus></label>'
            if self.provider.accounts is not None
            else ""
        )
        secret = "Password" if self.provider.accounts is not None else "Token, as the server printed it when it started"
        following = html.escape(_local(self.get_argument("next", "")))
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(
            PAGE.format(
                fields=f'{name}<label>{secret}<input name="password" type="password" '
                f'autocomplete="current-password" required></label>'
                f'<input type="hidden" name="next" value="{following}">',
                told=told,
            )
        )


class LogoutPage(RequestHandler):
    """Logs out."""

    def get(self) -> None:
        """Forget the login; a page of another address cannot ask for it, as it could by a picture."""
        if self.request.headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none"):
            self.clear_cookie(COOKIE)
        self.redirect(f"{upwards(self)}login")


def name_in(cookies: Any) -> str | None:
    """Return the name that a browser's cookies prove, as Panel has them (`pn.state.cookies`).

    `pn.state.user` would take a browser's word for it that it is a guest. With one password for all, which
    ``panel serve --basic-auth PASSWORD`` has, whoever knows it chooses the name, which then proves nothing.
    """
    told = None if pn.config.oauth_provider else pn.config.basic_auth  # which Panel says is the provider
    if isinstance(told, str) and told and not Path(told).is_file():
        return None
    signed, secret = cookies.get(COOKIE), pn.config.cookie_secret
    if not signed or secret is None:
        return None
    name = decode_signed_value(secret, COOKIE, signed, max_age_days=DAYS)
    return None if name is None else name.decode("utf-8", "replace")


def name_of(handler: Any) -> str | None:
    """Return the name that a request's cookies prove."""
    return name_in({name: cookie.value for name, cookie in handler.request.cookies.items()})


def secret_of(workspace: Path) -> str:
    """Return the secret that signs logins, made when it is first asked for; only the owner can read it."""
    path = workspace / "secret"
    try:
        kept = path.read_text()
        if len(kept) >= 32:
            return kept
    except FileNotFoundError:
        pass
    workspace.mkdir(parents=True, exist_ok=True)
    made = secrets.token_urlsafe(48)
    replace_file(path, made.encode(), mode=0o600)
    return made


def _local(target: str) -> str:
    """Return where to go after the login, if it is on this server; else nothing."""
    parts = urlsplit(target)
    safe = target.startswith("/") and not target.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return target if safe and not any(ord(c) < 32 or c == "\\" for c in target) else ""


PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>mira: log in</title><style>
:root {{ color-scheme: light dark; font: 15px/1.5 Roboto, system-ui, sans-serif }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center }}
main {{ width: min(22rem, 90vw) }} h1 {{ font-weight: 500; font-size: 1.4rem }}
label {{ display: block; margin: .8rem 0 }}
input {{ display: block; box-sizing: border-box; width: 100%; padding: .55rem; font: inherit; margin-top: .2rem;
  border: 1px solid #8886; border-radius: 4px; background: Canvas; color: CanvasText }}
button {{ width: 100%; padding: .6rem; font: inherit; border: 0; border-radius: 4px; background: #0b7285; color: #fff;
  cursor: pointer }}
[role=alert] {{ border-left: 3px solid #d55e00; padding-left: .7rem }}
</style></head><body><main><h1>mira</h1>{told}<form method="post">{fields}<button>Log in</button></form></main></body>
</html>"""
