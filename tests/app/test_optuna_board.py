"""optuna-dashboard below /optuna: what it shows, to whom, behind which proxies, and what is said where it cannot be."""

from __future__ import annotations

import contextlib
import csv
import http.client
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import optuna
import optuna_dashboard
import panel as pn
import pytest
import requests

from mira_app import optuna_board
from mira_app.settings import Settings

from ..browser.conftest import MIRA, Server
from ..servers import RedisServer, free_port

pytestmark = pytest.mark.slow
optuna.logging.set_verbosity(optuna.logging.WARNING)
PASSWORD = "to be told"


class Served(Server):
    """A server whose pages may lie below a prefix. It starts no jobs."""

    def __init__(self, folder: Path, command, path: str = "/", **environment: str) -> None:
        self.page = path
        super().__init__(folder / "workspace", command, environment)
        self.path = path

    def answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError((self.workspace.parent / "server.log").read_text()[-2000:])
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"http://localhost:{self.port}{self.page}", timeout=5).status_code == 200
        return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


class Proxy:
    """A small reverse proxy that shows a server below /lab, and nothing else.

    Parameters
    ----------
    port
        Of the server; may be set later.
    strips
        Whether the server is asked without /lab.
    tells_host
        Whether the header Host is passed on; else the server sees its own address, as with nginx unless told.
    """

    def __init__(self, port: int = 0, *, strips: bool = False, tells_host: bool = False) -> None:
        self.upstream = port
        self.outside: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def forward(self) -> None:
                if not self.path.startswith("/lab"):
                    proxy.outside.append(self.path)
                    self.send_error(404)
                    return
                headers = dict(self.headers) | ({} if tells_host else {"Host": f"127.0.0.1:{proxy.upstream}"})
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream, timeout=30)
                path = (self.path.removeprefix("/lab") or "/") if strips else self.path
                upstream.request(self.command, path, body, headers)
                answer = upstream.getresponse()
                content = answer.read()
                self.send_response(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                        self.send_header(name, value)
                if answer.status not in (204, 304):
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                upstream.close()

            do_GET = do_POST = do_PUT = do_DELETE = forward

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def write_study(storage: str, name: str = "lungs/0") -> optuna.Study:
    """A study with trials of every end, as Optuna itself writes it."""
    Path(storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(storage=storage, study_name=name, sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        loss = trial.suggest_int("num_topics", 5, 55) + trial.suggest_float("dropout", 0.01, 0.3)
        trial.set_user_attr("device", "cpu")
        for epoch in range(3):
            trial.report(loss + 3 - epoch, epoch)
        if trial.number == 2:
            raise optuna.TrialPruned
        if trial.number == 3:
            raise ValueError("not a number")
        return loss

    study.optimize(objective, n_trials=8, catch=ValueError)
    return study


def mira_serve(workspace: Path, *flags: str):
    return lambda port: [*MIRA, "serve", "--workspace", str(workspace), "--port", str(port), *flags]


def panel_serve(*flags: str):
    panel = [sys.executable, "-m", "panel", "serve", "mira_app", "--plugins", "mira_app.optuna_board"]
    return lambda port: [*panel, "--port", str(port), "--allow-websocket-origin", f"localhost:{port}", *flags]


@pytest.fixture(scope="module")
def mira(tmp_path_factory):
    """`mira serve`, with a study where it keeps studies unless told otherwise."""
    folder = tmp_path_factory.mktemp("mira")
    workspace = folder / "workspace"
    study = write_study(Settings(workspace=workspace).storage)
    served = Served(folder, mira_serve(workspace))
    served.study = study
    yield served
    served.stop()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """`panel serve mira_app` with a login, below a prefix."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "workspace").mkdir()
    storage = f"sqlite:///{folder / 'elsewhere' / 'studies.db'}"
    study = write_study(storage)
    passwords = folder / "passwords.json"
    passwords.write_text(json.dumps({"me": PASSWORD, "somebody": PASSWORD}))
    command = panel_serve("--basic-auth", str(passwords), "--cookie-secret", "stirred", "--prefix", "/lab")
    environment = {"MIRA_STORAGE": storage, "MIRA_WORKSPACE": str(folder / "workspace"), "MIRA_ADMINS": "me"}
    served = Served(folder, command, "/lab/mira_app", **environment)
    served.study, served.storage = study, storage
    yield served
    served.stop()


@pytest.fixture
def beside():
    """Serves below /optuna in this process; call it with the storage's URL."""
    servers = []

    def serve(storage: str) -> str:
        port = free_port()
        patterns = optuna_board.routes(storage)
        servers.append(
            pn.serve(
                {"/": lambda: pn.pane.Markdown("beside")}, port=port, threaded=True, show=False, verbose=False,
                extra_patterns=patterns,
            )
        )  # fmt: skip
        at = f"http://localhost:{port}"
        for _ in range(100):
            with contextlib.suppress(requests.RequestException):
                requests.get(at, timeout=5)
                return at
            time.sleep(0.1)
        raise AssertionError("no answer")

    yield serve
    for server in servers:
        server.stop()


def program_of(page: requests.Response) -> str:
    (source,) = re.findall(r'<script defer src="([^"]+)"', page.text)
    return urljoin(page.url, source)


def same_origin(url: str) -> dict[str, str]:
    return {"Origin": url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}


def names(storage: str) -> list[str]:
    return optuna.get_all_study_names(storage)


# --- what it shows --------------------------------------------------------------------------------


def test_its_program_asks_below_the_address_it_came_from(mira):
    page = requests.get(mira.url("optuna"))
    assert urlsplit(page.url).path == "/optuna/dashboard"
    assert page.headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'self'" in page.headers["Content-Security-Policy"]
    deep = requests.get(mira.url("optuna/dashboard/studies/1/trials"))
    assert program_of(page) == program_of(deep)
    assert program_of(page).startswith(mira.url("optuna/static/bundle.js?v="))

    program = requests.get(program_of(page))
    assert program.headers["Content-Encoding"] == "gzip"
    assert program.headers["Content-Type"].startswith("text/javascript")
    assert "immutable" in program.headers["Cache-Control"]
    original = (Path(optuna_dashboard.__file__).parent / "public" / "bundle.js").read_text("utf-8")
    assert int(program.headers["Content-Length"]) < len(original) / 3
    for old, new, _ in optuna_board.REWRITTEN:
        assert old not in program.text
        assert program.text.count(new) == original.count(old)
    assert requests.get(mira.url("optuna/static/bundle.js")).headers["Cache-Control"] == "private, no-cache"
    known = {"If-None-Match": program.headers["Etag"]}
    assert requests.get(program_of(page), headers=known).status_code == 304


def test_it_shows_what_optuna_wrote(mira):
    (listed,) = [
        s for s in requests.get(mira.url("optuna/api/studies")).json()["study_summaries"] if s["study_id"] == 1
    ]
    assert listed["study_name"] == "lungs/0"
    shown = requests.get(mira.url("optuna/api/studies/1?after=0"))
    assert shown.headers["Cache-Control"] == "no-store"
    for trial, told in zip(mira.study.trials, shown.json()["trials"], strict=True):
        assert told["state"].upper() == trial.state.name
        assert told.get("values") == trial.values
        assert {p["name"]: p["param_internal_value"] for p in told["params"]} == trial.params
    rows = list(csv.DictReader(io.StringIO(requests.get(mira.url("optuna/csv/1")).text)))
    assert [int(r["Param num_topics"]) for r in rows] == [t.params["num_topics"] for t in mira.study.trials]
    assert [r["State"] for r in rows] == [t.state.name for t in mira.study.trials]


def test_the_rest_of_it_is_passed_on(mira):
    """Files, its calculations, and its own refusals."""
    assert requests.get(mira.url("optuna/favicon.ico")).status_code == 200
    assert requests.head(mira.url("optuna/dashboard")).status_code == 200
    assert requests.get(mira.url("optuna/api/studies/1/param_importances")).json()["param_importances"]
    missing = requests.get(mira.url("optuna/api/studies/99"))
    assert (missing.status_code, missing.json()) == (404, {"reason": "study_id=99 is not found"})
    for path in ("optuna/none", "optuna/static/../_app.py", "optuna/static/..%2f_app.py", "optunas"):
        assert requests.get(mira.url(path)).status_code in (403, 404), path


def test_the_link_of_the_page_finds_a_study(mira):
    page = requests.get(urljoin(mira.url(), optuna_board.link(1)))
    assert page.status_code == 200
    assert urlsplit(page.url).path == "/optuna/dashboard/studies/1"
    assert requests.get(urljoin(mira.url(), optuna_board.link())).status_code == 200


# --- what it may change ---------------------------------------------------------------------------


def test_its_own_page_makes_renames_and_deletes_studies(mira):
    at, ours = mira.url("optuna/api/studies"), same_origin(mira.url())
    storage = Settings(workspace=mira.workspace).storage
    made = requests.post(at, json={"study_name": "new", "directions": ["minimize"]}, headers=ours)
    assert made.status_code == 201
    assert "new" in names(storage)
    number = made.json()["study_summary"]["study_id"]
    # Of a browser that does not say Sec-Fetch-Site.
    renamed = requests.post(f"{at}/{number}/rename", json={"study_name": "Zürich"}, headers={"Origin": mira.url()[:-1]})
    assert renamed.status_code == 201
    assert "Zürich" in names(storage)
    number = renamed.json()["study_id"]
    note = {"version": 1, "body": "x" * 500_000}
    assert requests.put(f"{at}/{number}/note", json=note, headers=ours).status_code == 204
    assert requests.delete(f"{at}/{number}", json={}, headers={"Referer": mira.url("optuna/")}).status_code == 204
    assert names(storage) == ["lungs/0"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:1"},
        {"Referer": "https://evil.example/optuna/"},
        {"Origin": "https://evil.example", "Referer": "HERE"},
        {"Origin": "HERE.evil.example"},
        {"Origin": "HERE", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "HERE", "Sec-Fetch-Site": "same-site"},
        {"Origin": "HERE", "Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
        # A name of the attacker's that was made to point to this machine.
        {"Origin": "http://evil.example", "Host": "evil.example"},
        {"Origin": "http://evil.example", "Host": "evil.example", "Sec-Fetch-Site": "same-origin"},
    ],
    ids=str,
)
def test_another_page_changes_nothing(mira, headers):
    told = {k: v.replace("HERE", mira.url()[:-1]) for k, v in headers.items()}
    at, storage = mira.url("optuna/api/studies"), Settings(workspace=mira.workspace).storage
    # What a form of any page can send without being asked whether it may, and what a script can.
    form = json.dumps({"study_name": "evil", "directions": ["minimize"]})
    sent = [
        requests.post(at, data=form, headers={**told, "Content-Type": "text/plain"}),
        requests.post(at, data=form, headers={**told, "Content-Type": "application/json"}),
        requests.put(f"{at}/1/note", json={"version": 1, "body": "evil"}, headers=told),
        requests.delete(f"{at}/1", json={}, headers=told),
    ]
    assert [s.status_code for s in sent] == [403] * 4
    assert "another address" in sent[0].json()["reason"]
    assert names(storage) == ["lungs/0"]
    assert not any("note" in key for key in optuna.load_study(study_name="lungs/0", storage=storage)._storage.
                   get_study_system_attrs(1))  # fmt: skip


def test_bodies_are_small(mira):
    at, ours = mira.url("optuna/api/studies/1/note"), same_origin(mira.url())
    refused = requests.put(at, json={"version": 1, "body": "x" * (optuna_board.MOST + 1)}, headers=ours)
    assert refused.status_code == 413
    assert "more than 2 MB" in refused.json()["reason"]
    pieces = (b"x" * 100_000 for _ in range(100))  # without saying how many
    assert requests.put(at, data=pieces, headers=ours).status_code == 413
    assert requests.get(mira.url("optuna/api/studies")).status_code == 200


# --- who may see it -------------------------------------------------------------------------------

PATHS = ["", "/", "/dashboard", "/dashboard/studies/1", "/static/bundle.js", "/api/meta", "/api/studies",
         "/api/studies/1", "/csv/1", "/favicon.ico", "/artifacts/1/2", "/incompatible-rdb-schema"]  # fmt: skip


def test_nothing_is_reached_without_a_login(guarded):
    at = guarded.url("").removesuffix("/mira_app") + "/optuna"
    for mount in (at, at.replace("/optuna", "/mira_app/optuna")):
        for path in PATHS:
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
                got = requests.request(method, mount + path, headers=same_origin(at), allow_redirects=False)
                assert got.status_code in (302, 401), (method, path)
                assert "lungs" not in got.text
                if got.status_code == 302:
                    assert urlsplit(urljoin(got.url, got.headers["Location"])).path == "/lab/login"
    sent = requests.post(f"{at}/api/studies", json={"study_name": "x", "directions": ["minimize"]},
                         headers=same_origin(at))  # fmt: skip
    assert (sent.status_code, sent.json()) == (401, {"reason": "log in first"})
    assert names(guarded.storage) == ["lungs/0"]
    forged = requests.get(f"{at}/api/studies", cookies={"user": "admin", "is_guest": "1"})
    assert forged.status_code == 401
    assert requests.get(at.replace("/lab", "") + "/api/studies").status_code == 404


def test_only_admins_may_open_what_shows_everybodys_studies(guarded):
    at = guarded.url("").removesuffix("/mira_app")
    with requests.Session() as person:
        login = person.get(f"{at}/optuna/dashboard")
        person.post(login.url, data={"username": "somebody", "password": PASSWORD})
        assert person.get(f"{at}/mira_app").status_code == 200
        person.cookies.set("is_guest", "1")  # by which Panel takes a name from a browser
        for path in ("dashboard", "api/studies", "csv/1"):
            refused = person.get(f"{at}/optuna/{path}")
            assert refused.status_code == 403
            assert "only admins" in refused.text
        ours = same_origin(f"http://{urlsplit(at).netloc}")
        assert person.delete(f"{at}/optuna/api/studies/1", json={}, headers=ours).status_code == 403


def test_who_logs_in_comes_to_where_they_wanted(guarded):
    at = guarded.url("").removesuffix("/mira_app")
    with requests.Session() as person:
        wanted = f"{at}/optuna/dashboard/studies/1"
        login = person.get(wanted)
        assert urlsplit(login.url).path == "/lab/login"
        wrong = person.post(login.url, data={"username": "me", "password": "guessed"})
        assert "login" in wrong.url
        page = person.post(login.url, data={"username": "me", "password": PASSWORD})
        assert page.url == wanted
        assert program_of(page).startswith(f"{at}/optuna/static/bundle.js")
        assert person.get(program_of(page)).status_code == 200
        assert len(person.get(f"{at}/optuna/api/studies/1").json()["trials"]) == 8
        assert "lungs0.csv" in person.get(f"{at}/optuna/csv/1").headers["Content-Disposition"]
        for shown in ("/mira_app", "/mira_app/"):
            there = person.get(urljoin(at + shown, optuna_board.link(1)))
            assert there.status_code == 200, shown
            assert person.get(program_of(there)).status_code == 200
        made = {"study_name": "mine", "directions": ["minimize"]}
        foreign = {"Origin": "https://evil.example"}
        assert person.post(f"{at}/optuna/api/studies", json=made, headers=foreign).status_code == 403
        ours = same_origin(f"http://{urlsplit(at).netloc}")
        answer = person.post(f"{at}/optuna/api/studies", json=made, headers=ours)
        assert answer.status_code == 201
        number = answer.json()["study_summary"]["study_id"]
        assert person.delete(f"{at}/optuna/api/studies/{number}", json={}, headers=ours).status_code == 204


def test_where_pages_are_for_some_it_is_for_nobody(beside, tmp_path, monkeypatch):
    at = beside(f"sqlite:///{tmp_path / 'studies.db'}")
    assert requests.get(f"{at}/optuna").status_code == 200
    monkeypatch.setattr(pn.config, "authorize_callback", lambda user: True)
    refused = requests.get(f"{at}/optuna")
    assert refused.status_code == 403
    assert "authorize_callback" in refused.text


# --- behind a proxy -------------------------------------------------------------------------------


@pytest.mark.parametrize("strips", [True, False])
def test_behind_a_proxy_all_is_below_its_path(tmp_path, strips):
    storage = f"sqlite:///{tmp_path / 'mine.db'}"
    write_study(storage)
    proxies = {tells_host: Proxy(strips=strips, tells_host=tells_host) for tells_host in (True, False)}
    flags = [f for p in proxies.values() for f in ("--origin", f"localhost:{p.port}")]
    flags += [] if strips else ["--prefix", "/lab"]
    command = mira_serve(tmp_path / "workspace", "--storage", storage, *flags)
    served = Served(tmp_path, command, "/" if strips else "/lab/")
    try:
        for tells_host, proxy in proxies.items():
            proxy.upstream = served.port
            origin = f"http://localhost:{proxy.port}"
            page = requests.get(urljoin(f"{origin}/lab/", optuna_board.link(1)))
            assert page.status_code == 200
            assert program_of(page).startswith(f"{origin}/lab/optuna/static/bundle.js")
            assert requests.get(program_of(page)).status_code == 200
            assert requests.get(f"{origin}/lab/optuna").url == f"{origin}/lab/optuna/dashboard"
            assert requests.get(f"{origin}/lab/optuna/").url == f"{origin}/lab/optuna/dashboard"
            assert len(requests.get(f"{origin}/lab/optuna/api/studies/1").json()["trials"]) == 8
            at, made = f"{origin}/lab/optuna/api/studies", {"study_name": f"a{proxy.port}", "directions": ["minimize"]}
            assert requests.post(at, json=made, headers={"Origin": "https://evil.example"}).status_code == 403
            assert requests.post(at, json=made, headers=same_origin(origin)).status_code == 201
            # Without Sec-Fetch-Site, that is by plain http, there is only Host to compare with.
            made["study_name"] += " plain"
            plain = requests.post(at, json=made, headers={"Origin": origin})
            assert plain.status_code == (201 if tells_host else 403)
            assert tells_host or "pass on the header Host" in plain.json()["reason"]
            assert not proxy.outside
    finally:
        served.stop()
        for proxy in proxies.values():
            proxy.stop()


# --- where it cannot be shown ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("public/bundle.js", 'url_prefix:"/dashboard"', 'url_prefix:"/board"'),
        ("public/bundle.js", "`${this.baseURL}/api/", "`${this.base}/api/"),
        ("public/bundle.js", "`/csv/", "`/table/"),
        ("index.html", "/static/bundle.js", "/static/main.js"),
    ],
)
def test_a_version_that_is_made_otherwise_is_told_in_place_of_a_blank_page(
    beside, tmp_path, monkeypatch, file, old, new
):
    installed = Path(optuna_dashboard.__file__).parent
    other = tmp_path / "optuna_dashboard"
    (other / "public").mkdir(parents=True)
    for name in ("index.html", "public/bundle.js"):
        shutil.copy(installed / name, other / name)
    text = (other / file).read_text("utf-8")
    assert old in text
    (other / file).write_text(text.replace(old, new), "utf-8")
    monkeypatch.setattr(optuna_dashboard, "__file__", str(other / "__init__.py"))
    monkeypatch.setattr(optuna_dashboard, "__version__", "9.8.7")
    optuna_board.bundle.cache_clear()
    try:
        at = beside(f"sqlite:///{tmp_path / 'studies.db'}")
        said = optuna_board.problem()
        assert said.startswith("optuna-dashboard 9.8.7 cannot be shown here")
        assert "pip install 'optuna-dashboard==0.21.*'" in said
        assert said.endswith("optuna-dashboard STORAGE")
        page = requests.get(f"{at}/optuna")
        assert page.status_code == 503
        assert "optuna-dashboard 9.8.7 cannot be shown here" in page.text
        assert "<script" not in page.text
        assert requests.get(f"{at}/optuna/static/bundle.js").status_code == 503
        assert requests.get(f"{at}/optuna/api/studies").status_code == 200
    finally:
        monkeypatch.undo()
        optuna_board.bundle.cache_clear()
    assert optuna_board.problem() == ""


def test_a_server_that_has_it_not_is_told():
    """As `panel serve mira_app` alone is, or a notebook."""
    script = """
from mira_app import optuna_board
print(optuna_board.problem())
assert optuna_board.ROUTES
assert not optuna_board.problem(), optuna_board.problem()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "panel serve mira_app --plugins mira_app.optuna_board" in done.stdout


@pytest.mark.parametrize(
    "storage",
    [
        "redis://user:hidden@localhost:1",
        "postgresql+psycopg://user:hidden@localhost:1/studies",
        "sqlite:////dev/null/studies.db",
        "nonsense://user:hidden@somewhere",
    ],
)
def test_a_storage_that_is_away_is_told(beside, storage):
    at = beside(storage)
    page = requests.get(f"{at}/optuna")
    assert page.status_code == 503
    assert page.text.count("cannot be opened") == 1
    asked = requests.get(f"{at}/optuna/api/studies")
    assert asked.status_code == 503
    assert asked.json()["reason"].startswith(f"the storage {storage.replace('user:hidden@', '')} cannot be opened")
    for answer in (page.text, asked.text):
        assert "Traceback" not in answer
        assert "hidden" not in answer
    assert requests.get(at).status_code == 200


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_storage_that_goes_and_comes_again(beside, tmp_path):
    redis = RedisServer(tmp_path)
    try:
        at = beside(redis.url)
        made = {"study_name": "kept", "directions": ["minimize"]}
        assert requests.post(f"{at}/optuna/api/studies", json=made, headers=same_origin(at)).status_code == 201
        redis.kill()
        for path in ("dashboard", "api/studies", "api/studies/0", "csv/0"):
            away = requests.get(f"{at}/optuna/{path}")
            assert away.status_code == 503, path
            assert "does not answer" in away.text
            assert "Traceback" not in away.text
        redis.start()
        assert requests.get(f"{at}/optuna").status_code == 200
        (listed,) = requests.get(f"{at}/optuna/api/studies").json()["study_summaries"]
        assert listed["study_name"] == "kept"
    finally:
        redis.kill()


def test_a_slow_storage_holds_up_nobody_else(beside, tmp_path):
    redis = RedisServer(tmp_path)
    at = beside(redis.url)
    assert requests.get(f"{at}/optuna/api/studies").status_code == 200
    with ThreadPoolExecutor(1) as apart:
        redis.process.send_signal(signal.SIGSTOP)
        try:
            waits = apart.submit(requests.get, f"{at}/optuna/api/studies")
            began = time.monotonic()
            for _ in range(5):
                assert requests.get(at).status_code == 200
            assert time.monotonic() - began < 5
            assert not waits.done()
        finally:
            redis.process.send_signal(signal.SIGCONT)
        assert waits.result(60).status_code == 200
    redis.kill()
