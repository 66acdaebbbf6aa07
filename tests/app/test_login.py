"""Logging in to `mira serve`: who comes in, who does not, and what a login can be used for."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode, urlsplit

import pytest
import requests
import trustme
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.web import Application
from tornado.websocket import websocket_connect

from mira_app.serving import configuration, server
from mira_app.serving.accounts import Accounts
from mira_app.serving.login import AT_MOST, Login
from mira_core.errors import OptionError

from ..browser.conftest import MIRA
from ..servers import free_port
from .test_optuna_board import Served, mira_serve, same_origin

pytestmark = pytest.mark.slow
PASSWORD = "a long password"
ROUTES = ["/", "/optuna", "/optuna/api/studies", "/exports/a/data", "/ws"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that asks for a name and a password."""
    folder = tmp_path_factory.mktemp("guarded")
    accounts = Accounts(folder / "users.json")
    accounts.set("anna", PASSWORD, "admin")
    accounts.set("ben", PASSWORD)
    served = Served(folder, mira_serve(folder / "workspace", "--users", str(accounts.path)))
    served.accounts = accounts
    yield served
    served.stop()


def log_in(person: requests.Session, served: Served, name: str = "anna", password: str = PASSWORD, **more):
    at = served.url()
    headers = more.pop("headers", same_origin(at))
    return person.post(f"{at}login", data={"username": name, "password": password, **more}, headers=headers,
                       allow_redirects=False)  # fmt: skip


def test_nobody_sees_anything_without_a_login(guarded):
    at = guarded.url().rstrip("/")
    for route in ROUTES:
        got = requests.get(at + route, allow_redirects=False)
        assert got.status_code in (302, 401, 403, 400), route
        if got.status_code == 302:
            assert got.headers["Location"].split("?")[0].endswith("login")
    forged = requests.get(at, cookies={"user": "anna"}, allow_redirects=False)
    assert forged.status_code == 302
    page = requests.get(at)
    assert urlsplit(page.url).path == "/login"
    assert "Password" in page.text
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert requests.get(f"{at}/health").status_code == 200

    async def connect() -> None:
        await websocket_connect(HTTPRequest(at.replace("http", "ws", 1) + "/ws", headers={"Origin": at}),
                                subprotocols=["bokeh", "none"])  # fmt: skip

    with ThreadPoolExecutor(1) as thread, pytest.raises(HTTPClientError) as refused:
        thread.submit(asyncio.run, connect()).result()
    assert refused.value.code == 403


def test_who_has_an_account_comes_in_until_it_is_taken_away(guarded):
    guarded.accounts.set("cleo", PASSWORD)
    with requests.Session() as person:
        entered = log_in(person, guarded, "cleo")
        assert entered.status_code == 302
        (cookie,) = [c for c in entered.headers["Set-Cookie"].split(", ") if c.startswith("user=")]
        assert "HttpOnly" in entered.headers["Set-Cookie"]
        assert "SameSite=Lax" in entered.headers["Set-Cookie"]
        assert "cleo" not in cookie.split("|")[0]
        page = person.get(guarded.url())
        assert (page.status_code, urlsplit(page.url).path) == (200, "/")
        assert "bokeh" in page.text
        guarded.accounts.remove("cleo")
        assert urlsplit(person.get(guarded.url()).url).path == "/login"


def test_a_restart_logs_nobody_out(guarded):
    with requests.Session() as person:
        log_in(person, guarded)
        guarded.stop()
        guarded.start()
        assert urlsplit(person.get(guarded.url()).url).path == "/"
        left = person.get(f"{guarded.url()}logout")
        assert urlsplit(left.url).path == "/login"
        assert urlsplit(person.get(guarded.url()).url).path == "/login"


@pytest.mark.parametrize(("target", "reached"), [
    ("/?page=tune&study=a", "/?page=tune&study=a"),
    ("/optuna", "/optuna"),
    ("https://evil.example/", "."),
    ("//evil.example/", "."),
    ("/\\evil.example/", "."),
    ("\\\\evil.example", "."),
    ("javascript:alert(1)", "."),
    ("/%0d%0aSet-Cookie: a=b", "/%0d%0aSet-Cookie: a=b"),
    ("/\r\nSet-Cookie: a=b", "."),
    ("", "."),
])  # fmt: skip
def test_a_login_leads_to_where_one_wanted_on_this_server_only(guarded, target, reached):
    with requests.Session() as person:
        entered = log_in(person, guarded, next=target)
    assert entered.status_code == 302
    assert entered.headers["Location"] == reached
    assert "a=b" not in entered.headers["Set-Cookie"]


@pytest.mark.parametrize("headers", [
    {},
    {"Origin": "https://evil.example"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Referer": "https://evil.example/page"},
    {"Origin": "null"},
])  # fmt: skip
def test_another_page_cannot_log_somebody_in(guarded, headers):
    with requests.Session() as person:
        refused = log_in(person, guarded, headers=headers)
    assert refused.status_code == 403
    assert "user=" not in refused.headers.get("Set-Cookie", "")
    assert "page of another address" in refused.text


def test_passwords_cannot_be_guessed(guarded):
    guarded.stop()
    guarded.start()  # which forgets who was wrong before
    with requests.Session() as person:
        for name in ["anna", "nobody", "<script>alert(1)</script>"]:
            wrong = log_in(person, guarded, name, "guessed")
            assert wrong.status_code == 403
            assert "do not belong together" in wrong.text
            assert "<script>" not in wrong.text
        codes = [log_in(person, guarded, "ben", f"guess {i}").status_code for i in range(AT_MOST)]
        assert codes[-1] == 429
        assert log_in(person, guarded, "ben").status_code == 429  # also the right one, for a while
        assert not person.cookies
    guarded.stop()
    guarded.start()


def test_passwords_that_are_sent_at_once_cannot_be_guessed_either():
    class Slow:
        """Accounts of which each password takes a while to try."""

        tried = 0

        def check(self, name: str, password: str) -> bool:
            self.tried += 1
            time.sleep(0.1)
            return password == PASSWORD

    async def ask() -> None:
        accounts = Slow()
        pages = Application([("/login", Login(accounts).login_handler)], cookie_secret="secret")
        port = free_port()
        listening = pages.listen(port, "127.0.0.1")
        at = f"http://127.0.0.1:{port}/login"
        pages.prefix, pages.websocket_origins = "", {f"127.0.0.1:{port}"}  # as Bokeh's have
        client = AsyncHTTPClient(force_instance=True, max_clients=100)

        async def code(password: str) -> int:
            body = urlencode({"username": "anna", "password": password})
            asked = HTTPRequest(
                at, "POST", same_origin(at.removesuffix("/login")), body, follow_redirects=False, request_timeout=60
            )
            got = await client.fetch(asked, raise_error=False)
            return got.code

        # The right ones count for nothing, neither for the name nor for the address.
        assert [await code(PASSWORD) for _ in range(AT_MOST + 1)] == [302] * (AT_MOST + 1)
        accounts.tried = 0
        codes = await asyncio.gather(*(code(f"guess {i}") for i in range(5 * AT_MOST)))
        assert sorted(codes) == [403] * AT_MOST + [429] * 4 * AT_MOST
        assert accounts.tried == AT_MOST
        client.close()
        listening.stop()

    asyncio.run(ask())


def test_behind_a_proxy_one_persons_guesses_keep_nobody_else_out(tmp_path):
    Accounts(tmp_path / "users.json").set("anna", PASSWORD)
    served = Served(tmp_path, mira_serve(tmp_path / "workspace", "--users", str(tmp_path / "users.json"), "--proxied"))

    def log_in_from(address: str, name: str, password: str) -> requests.Response:
        told = {**same_origin(served.url()), "X-Forwarded-For": address, "X-Forwarded-Proto": "https"}
        with requests.Session() as person:
            return log_in(person, served, name, password, headers=told)

    try:
        # The proxy writes the address it sees behind whatever it was told.
        codes = [log_in_from(f"10.9.9.{i}, 10.0.0.1", f"name{i}", "guess").status_code for i in range(AT_MOST + 1)]
        assert codes == [403] * AT_MOST + [429]
        done = log_in_from("10.0.0.2", "anna", PASSWORD)
        assert done.status_code == 302
        assert "Secure" in done.headers["Set-Cookie"]
        assert '"10.0.0.2"' in (tmp_path / "workspace" / "audit.jsonl").read_text()
    finally:
        served.stop()


def test_who_has_the_token_comes_in(tmp_path):
    served = Served(tmp_path, mira_serve(tmp_path / "workspace", "--login", "token"))
    try:
        (link,) = re.findall(r"http://localhost:\S+login\?token=\S+", (tmp_path / "server.log").read_text())
        with requests.Session() as person:
            assert urlsplit(person.get(served.url()).url).path == "/login"
            assert person.get(f"{link}x").status_code == 403
            assert log_in(person, served, "", "guessed").status_code == 403
            there = person.get(link)
            assert (there.status_code, urlsplit(there.url).path, urlsplit(there.url).query) == (200, "/", "")
        with requests.Session() as person:
            assert log_in(person, served, "", link.partition("token=")[2]).status_code == 302
            assert urlsplit(person.get(served.url()).url).path == "/"
    finally:
        served.stop()


def told_at_the_start(capsys, *flags: str, **environment: str) -> tuple[object, str]:
    parser = argparse.ArgumentParser()
    configuration.add_arguments(parser)
    login = server._login(configuration.resolve(parser.parse_args(flags), environment))
    return login, capsys.readouterr().out


def test_beyond_this_machine_a_token_is_asked_for_unless_told_otherwise(capsys, tmp_path):
    login, told = told_at_the_start(capsys)
    assert login == ""
    login, told = told_at_the_start(capsys, "--address", "0.0.0.0")
    assert login.token
    assert f"login?token={login.token}" in told
    assert "not encrypted" in told
    login, told = told_at_the_start(capsys, "--address", "10.1.2.3", MIRA_TOKEN="a secret of ours")
    assert login.holds("a secret of ours")
    assert "a secret of ours" not in told
    login, told = told_at_the_start(capsys, "--address", "0.0.0.0", "--login", "none")
    assert login == ""
    assert "anybody who reaches this address may come in" in told
    users = str(tmp_path / "users.json")
    with pytest.raises(OptionError, match="has no account yet"):
        told_at_the_start(capsys, "--users", users)
    with pytest.raises(OptionError, match="--login password needs --users FILE"):
        told_at_the_start(capsys, "--login", "password")
    with pytest.raises(OptionError, match="MIRA_OAUTH_PROVIDER, MIRA_OAUTH_KEY, MIRA_OAUTH_SECRET"):
        told_at_the_start(capsys, "--login", "oauth")
    Accounts(tmp_path / "users.json").set("anna", PASSWORD)
    login, _ = told_at_the_start(capsys, "--users", users, "--address", "0.0.0.0")
    assert login.token is None
    assert login.admits("anna")
    assert not login.admits("token")


class Encrypted(Served):
    """A server whose certificate an authority of ours has signed."""

    def answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            at = f"https://localhost:{self.port}/health"
            return requests.get(at, timeout=5, verify=str(self.workspace.parent / "ca.pem")).status_code == 200
        return False


def test_with_a_certificate_all_is_encrypted_and_cookies_stay_so(tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    flags = ("--tls-certificate", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    accounts = Accounts(tmp_path / "users.json")
    accounts.set("anna", PASSWORD)
    served = Encrypted(tmp_path, mira_serve(tmp_path / "workspace", "--users", str(accounts.path), *flags))
    try:
        at = f"https://localhost:{served.port}/"
        ca = str(tmp_path / "ca.pem")
        with requests.Session() as person:
            entered = person.post(f"{at}login", data={"username": "anna", "password": PASSWORD},
                                  headers=same_origin(at), allow_redirects=False, verify=ca)  # fmt: skip
            assert "Secure" in entered.headers["Set-Cookie"]
            assert urlsplit(person.get(at, verify=ca).url).path == "/"
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://localhost:{served.port}/", timeout=5)
    finally:
        served.stop()
    for given, told in [
        (("--tls-key", flags[3]), "go together"),
        (("--tls-certificate", flags[3], "--tls-key", flags[1]), "cannot be used"),
    ]:
        done = subprocess.run([*MIRA, "serve", *given, "--workspace", str(tmp_path / "w"), "--port", "1"],
                              capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
        assert done.returncode == 2
        assert told in done.stderr
