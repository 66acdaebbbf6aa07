"""Logging in by OAuth, through Panel, with a provider on loopback that speaks the protocol as theirs do."""

from __future__ import annotations

import asyncio
import html
import secrets
import threading
from urllib.parse import parse_qs, urlencode

import pytest
import requests
import tornado.web
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from ..benchmarks.tabs import Log, Model, Tab
from ..servers import to_its_end
from .test_optuna_board import Served, mira_serve

pytestmark = pytest.mark.slow
KEY, SECRET = "the-client", "what-only-server-and-provider-know"


class Provider:
    """Lets in whoever `person` says, by the flow of authorization codes."""

    def __init__(self) -> None:
        self.person = ""
        self.asked: list[dict[str, list[str]]] = []  # what browsers brought
        self._codes: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        provider = self

        class Authorize(tornado.web.RequestHandler):
            def get(self) -> None:
                told = parse_qs(self.request.query)
                provider.asked.append(told)
                code = secrets.token_hex(8)
                provider._codes[code] = provider.person
                back = {"code": code, "state": told["state"][0]}
                self.redirect(f"{told['redirect_uri'][0]}?{urlencode(back)}")

        class Token(tornado.web.RequestHandler):
            def post(self) -> None:
                code = provider._codes.pop(self.get_body_argument("code"), None)  # each once
                known = (self.get_body_argument("client_id"), self.get_body_argument("client_secret")) == (KEY, SECRET)
                if code is None or not known:
                    raise tornado.web.HTTPError(401)
                token = secrets.token_hex(8)
                provider._tokens[token] = code
                self.write({"access_token": token, "token_type": "bearer"})

        class User(tornado.web.RequestHandler):
            def get(self) -> None:
                token = self.request.headers["Authorization"].removeprefix("Bearer ")
                self.write({"email": provider._tokens[token]})

        socket, self.port = bind_unused_port()
        begun = threading.Event()

        async def serve() -> None:
            routes = [("/authorize", Authorize), ("/token", Token), ("/user", User)]
            server = HTTPServer(tornado.web.Application(routes))
            server.add_socket(socket)
            self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
            begun.set()
            await self._over.wait()
            server.stop()

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        begun.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)


@pytest.fixture(scope="module")
def provider():
    made = Provider()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def lab(tmp_path_factory, provider):
    folder = tmp_path_factory.mktemp("oauth")
    at = f"http://localhost:{provider.port}"
    told = {
        "MIRA_OAUTH_PROVIDER": "generic", "MIRA_OAUTH_KEY": KEY, "MIRA_OAUTH_SECRET": SECRET,
        "PANEL_OAUTH_AUTHORIZE_URL": f"{at}/authorize", "PANEL_OAUTH_TOKEN_URL": f"{at}/token",
        "PANEL_OAUTH_USER_URL": f"{at}/user",
    }  # fmt: skip
    flags = ("--login", "oauth", "--members", "*@lab.org", "--admins", "ada@lab.org")
    provider.person = "eva@lab.org"  # as whom it is asked whether the server is there
    served = Served(folder, mira_serve(folder / "workspace", *flags), **told)
    yield served
    served.stop()


def enter(lab, provider, name: str) -> tuple[requests.Session, requests.Response]:
    """Come in a new browser, as whom the provider knows as so."""
    provider.person = name
    person = requests.Session()
    return person, person.get(lab.url(), timeout=60)


async def shown(lab, person: requests.Session) -> dict[str, Model]:
    """Return what the page shows them once it has been drawn."""
    tab = Tab(lab.url(), Log(), dict(person.cookies))
    await tab.open("?page=jobs")
    await tab.close()
    return tab.models


def is_shut_out(models: dict[str, Model]) -> bool:
    texts = " ".join(html.unescape(str(m.has.get("text", ""))) for m in models.values())
    return "may not come in" in texts


@pytest.mark.parametrize(("name", "board"), [("eva@lab.org", 403), ("ada@lab.org", 200)])
def test_members_come_in_as_what_the_lists_say(lab, provider, name, board):
    person, page = enter(lab, provider, name)
    with person:
        assert page.status_code == 200
        models = to_its_end(shown(lab, person))
        assert not is_shut_out(models)
        assert any("dataset" in str(m.has.get("items")) for m in models.values())  # the menu
        assert person.get(lab.url("optuna/api/studies"), timeout=60).status_code == board
    asked = provider.asked[-1]
    assert asked["client_id"] == [KEY]
    assert SECRET not in str(asked)  # browsers never have it


@pytest.mark.parametrize("name", ["mallory@elsewhere.org", "ada@lab.org.evil.org", "token", "holder of the token"])
def test_nobody_else_comes_in_though_the_provider_knows_them(lab, provider, name):
    person, page = enter(lab, provider, name)
    with person:
        assert page.status_code == 200
        models = to_its_end(shown(lab, person))
        assert is_shut_out(models)
        assert not any("dataset" in str(m.has.get("items")) for m in models.values())
        assert person.get(lab.url("optuna/api/studies"), timeout=60).status_code == 403


def test_who_has_no_name_there_does_not_come_in(lab, provider):
    provider.person = ""
    with requests.Session() as person, pytest.raises(requests.TooManyRedirects):
        person.get(lab.url(), timeout=60)


def test_an_answer_that_this_browser_did_not_ask_for_is_refused(lab, provider):
    provider.person = "eva@lab.org"
    with requests.Session() as eve:
        asked = eve.get(lab.url(), timeout=60, allow_redirects=False)
        while "/authorize" not in asked.headers["Location"]:
            asked = eve.get(requests.compat.urljoin(asked.url, asked.headers["Location"]), allow_redirects=False)
        back = eve.get(asked.headers["Location"], allow_redirects=False).headers["Location"]
    with requests.Session() as victim:  # somebody who was sent that link
        got = victim.get(back, timeout=60)
        assert "user" not in victim.cookies
        assert got.status_code >= 400 or "/authorize" in str(got.history[0].headers)


def test_the_log_has_no_secret(lab):
    log = (lab.workspace.parent / "server.log").read_text()
    assert SECRET not in log
