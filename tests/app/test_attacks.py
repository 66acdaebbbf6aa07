"""What somebody may try on a lab's server: every route without a login and with the wrong one, paths, other origins.

One real server with accounts, on loopback; each attack is one request or message.
"""

from __future__ import annotations

import json
import re

import pytest
import requests
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from mira_app.serving.accounts import Accounts
from mira_app.serving.people import Person
from mira_app.session import PAGES
from mira_app.settings import Settings
from mira_app.workspace import Workspace
from mira_core.data.simulate import simulate_expression
from mira_core.files import write_json

from ..servers import to_its_end
from .test_optuna_board import Served, mira_serve, same_origin

PASSWORD = "a long password"
ROLES = {"ann": "user", "bob": "user", "vic": "viewer", "ada": "admin"}
OPEN = ("/health", "/login", "/static/js/bokeh.min.js")  # what anybody may have
ROUTES = (
    "/", "/?page=jobs", "/autoload.js?bokeh-autoload-element=1", "/metadata", "/metadata/sessions", "/ws", "/admin",
    "/optuna", "/optuna/dashboard", "/optuna/api/studies", "/optuna/csv/1", "/optuna/static/bundle.js",
    "/exports/{key}/report", "/exports/{key}/methods", "/liveness", "/secret", "/users.json", "/audit.jsonl",
    "/jobs/{key}/job.json", "/.git/config", "//etc/passwd", "/component-resources/../../secret", "/static/../secret",
    "/static/extensions/../../secret", "/static/%2e%2e/%2e%2e/secret",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server with accounts, a finished job of Ann's with an export, and data of hers."""
    folder = tmp_path_factory.mktemp("lab")
    accounts = Accounts(folder / "users.json")
    for name, role in ROLES.items():
        accounts.set(name, PASSWORD, role)
    (folder / "personal" / "ann").mkdir(parents=True)
    simulate_expression(60, 30, 3, seed=1).write_h5ad(folder / "personal" / "ann" / "own.h5ad")
    workspace = Workspace(Settings((), folder / "workspace", personal=folder / "personal"))
    workspace.dispatcher.wake = lambda: None
    model = {"feature_type": "expression", "num_topics": 3}
    key = workspace.seen_by(lambda: Person("ann", "user")).submit("0/own.h5ad", model)
    workspace.dispatcher.withdraw(key)
    job = workspace.jobs_folder / key
    write_json(job / "status.json", {"state": "finished", "ended": 1.0})
    for path in (job / "result" / "cells.h5ad", job / "exports" / f"{key}-report.html"):
        path.parent.mkdir()
        path.write_text("<p>SECRET-OF-ANN</p>")
    served = Served(
        folder, mira_serve(folder / "workspace", "--users", str(accounts.path), "--personal", str(folder / "personal"))
    )
    served.key, served.at, served.accounts = key, f"http://localhost:{served.port}", accounts
    yield served
    served.stop()


def entered(lab, name: str) -> requests.Session:
    person = requests.Session()
    told = {"username": name, "password": PASSWORD}
    person.post(f"{lab.at}/login", data=told, headers=same_origin(f"{lab.at}/"), allow_redirects=False)
    return person


def of(name: str):
    """Return a fixture: a session of somebody who has logged in."""

    @pytest.fixture(scope="module", name=name)
    def logged_in(lab):
        with entered(lab, name) as person:
            yield person

    return logged_in


ann, bob, vic, ada = map(of, ROLES)


def ask(person, lab, path: str, **more) -> requests.Response:
    """Ask for a path as it stands, which requests would tidy up."""
    request = requests.Request("GET", lab.at + "/", **more)
    prepared = person.prepare_request(request)
    prepared.url = lab.at + path.format(key=lab.key)
    return person.send(prepared, allow_redirects=False, timeout=30)


def gives_away(answer: requests.Response, lab) -> list[str]:
    secret = (lab.workspace / "secret").read_text()
    told = ("SECRET-OF-ANN", "scrypt$", secret, "root:x:0", '"format":')
    return [text for text in told if text in answer.text]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("cookie", ["", "user=ann", "user=ann; is_guest=1", 'user="2|1:0|10:0|4:user|4:YW5u|00"'])
def test_nothing_is_told_without_a_login(lab, path, cookie):
    with requests.Session() as nobody:
        answer = ask(nobody, lab, path, headers={"Cookie": cookie} if cookie else {})
    refused = answer.status_code in (400, 401, 403, 404, 405) or "login" in answer.headers.get("Location", "")
    assert refused, (answer.status_code, answer.text[:200])
    assert gives_away(answer, lab) == []


@pytest.mark.parametrize("path", OPEN)
def test_what_anybody_may_have_tells_nothing(lab, path):
    with requests.Session() as nobody:
        answer = ask(nobody, lab, path)
    assert answer.status_code == 200
    assert gives_away(answer, lab) == []


@pytest.mark.parametrize("path", [p for p in ROUTES if p not in ("/", "/?page=jobs")])
@pytest.mark.parametrize("name", ["bob", "vic"])
def test_others_get_nothing_of_what_is_anns(lab, path, name, request):
    answer = ask(request.getfixturevalue(name), lab, path)
    assert gives_away(answer, lab) == []
    assert "optuna" not in path or answer.status_code in (403, 301, 302)
    assert "exports" not in path or answer.status_code == 404


def test_ann_and_an_admin_get_it(lab, ann, ada):
    for person in (ann, ada):
        assert "SECRET-OF-ANN" in ask(person, lab, "/exports/{key}/report").text
    assert ask(ada, lab, "/optuna/api/studies").status_code == 200


def test_who_is_shut_out_is_so_at_once(lab):
    lab.accounts.set("eve", PASSWORD, "user")
    with entered(lab, "eve") as eve:
        assert ask(eve, lab, "/").status_code == 200
        lab.accounts.remove("eve")
        assert "login" in ask(eve, lab, "/").headers["Location"]


WAYS = (
    "../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "0/../../users.json", "....//....//etc/passwd",
    "-1/x", "0/%00", "0/own.h5ad%00.png", "file:///etc/passwd", "demo:../../x", "99/x", "~/x", "${HOME}/x", "C:\\x",
    "a" * 5000,
)  # fmt: skip


FIELDS = ("data", "recipe", "job", "test", "beside", "study", "against", "tab", "colour", "feature", "column", "trials")


@pytest.mark.parametrize(("page", "way"), [(PAGES[i % len(PAGES)], way) for i, way in enumerate([*WAYS, *WAYS[:3]])])
def test_no_field_of_the_address_leads_out_or_crashes(lab, bob, page, way):
    answer = bob.get(f"{lab.at}/", params={"page": page, **dict.fromkeys(FIELDS, way)}, timeout=60)
    assert answer.status_code in (200, 414, 431)
    assert gives_away(answer, lab) == []
    assert requests.get(f"{lab.at}/health", timeout=30).ok


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {}])
def test_a_page_of_another_origin_opens_no_websocket(lab, ann, headers):
    page = ann.get(f"{lab.at}/", timeout=60).text
    cookies = "; ".join(f"{c.name}={c.value}" for c in ann.cookies)
    (token,) = set(re.findall(r'"token":"([^"]+)"', page))

    async def connect(origin: dict[str, str]) -> None:
        request = HTTPRequest(f"ws://localhost:{lab.port}/ws", headers={"Cookie": cookies, **origin})
        (await websocket_connect(request, subprotocols=["bokeh", token])).close()

    if headers:
        with pytest.raises(HTTPClientError, match="403"):
            to_its_end(connect(headers))
    else:
        to_its_end(connect({"Origin": lab.at}))  # its own page does


def test_a_websocket_without_the_login_of_its_page_is_refused(lab, ann):
    page = ann.get(f"{lab.at}/", timeout=60).text
    (token,) = set(re.findall(r'"token":"([^"]+)"', page))

    async def connect() -> object:
        request = HTTPRequest(f"ws://localhost:{lab.port}/ws", headers={"Origin": lab.at})
        return await websocket_connect(request, subprotocols=["bokeh", token])

    with pytest.raises(HTTPClientError, match="403"):
        to_its_end(connect())


@pytest.mark.parametrize("path", ["/login", "/optuna/api/studies", "/exports/{key}/report", "/", "/metrics", "/logout"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_no_other_site_can_make_a_browser_change_anything(lab, ada, path, method):
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    url = lab.at + path.format(key=lab.key)
    told = {"data": {"study_name": "x"}, "headers": foreign, "allow_redirects": False, "timeout": 30}
    answer = ada.request(method, url, **told)
    assert answer.status_code in (403, 405), answer.text[:200]
    assert ask(ada, lab, "/exports/{key}/report").status_code == 200, "nor is she logged out"


def test_the_log_has_no_secret_and_the_audit_file_is_closed(lab):
    log = (lab.workspace.parent / "server.log").read_text()
    assert PASSWORD not in log
    assert (lab.workspace / "secret").read_text() not in log
    # Panel tells of this one, after it has sent people on to the login.
    told = [part for part in log.split(" ERROR ") if "Traceback" in part]
    wrong = [part for part in told if "Uncaught exception GET /autoload.js" not in part]
    assert wrong == []
    audit = lab.workspace / "audit.jsonl"
    assert audit.stat().st_mode & 0o077 == 0
    assert {json.loads(line)["action"] for line in audit.read_text().splitlines()} >= {"log in"}
