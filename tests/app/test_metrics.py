"""Scrapers read how the server does, if they may, and no names."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace

import pytest
import requests
from bokeh.application import Application
from bokeh.application.handlers import FunctionHandler
from bokeh.client import pull_session
from prometheus_client.parser import text_string_to_metric_families
from tornado import web
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from mira_app.serving import metrics
from mira_app.settings import Settings
from mira_core import jobs
from mira_core.files import write_json

from ..servers import bokeh_server, wait_until

TOKEN = "a-token-for-scrapers"


def write_job(settings: Settings, key: str, state: str = "", kind: str = "fit") -> None:
    folder = settings.workspace / "jobs" / key
    jobs.write_spec(folder, data="demo:pbmc700", model={"feature_type": "expression"}, kind=kind)
    if state:
        write_json(folder / "status.json", dataclasses.asdict(jobs.Status(state=state, kind=kind)))


@pytest.fixture
def settings(tmp_path) -> Settings:
    """A workspace with jobs and uploads of somebody."""
    settings = Settings(workspace=tmp_path / "workspace")
    for key, state, kind in [("annas-1", "finished", "fit"), ("annas-2", "finished", "fit"), ("annas-3", "", "fit"),
                             ("annas-4", "failed", "range_test")]:  # fmt: skip
        write_job(settings, key, state, kind)
    (settings.workspace / "jobs" / "no-job").mkdir()
    (settings.uploads / "anna").mkdir(parents=True)
    (settings.uploads / "anna" / "annas-cells.h5ad").write_bytes(bytes(1000))
    (settings.uploads / "anna" / ".0123.part").write_bytes(bytes(10))
    return settings


@pytest.fixture
def server(settings):
    """A server with an application, and a token for scrapers."""
    applications = {"/": Application(FunctionHandler(lambda document: None))}
    with bokeh_server(applications=applications, extra_patterns=metrics.routes(settings, TOKEN)) as server:
        yield server


def scrape(server) -> dict[tuple[str, ...], float]:
    """Return name and values of labels -> value."""
    answer = requests.get(f"http://localhost:{server.port}/metrics", timeout=30)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "anna" not in answer.text
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_jobs_uploads_the_disk_and_the_process_are_told(server):
    found = scrape(server)
    assert found["mira_jobs", "fit", "finished"] == 2
    assert found["mira_jobs", "fit", "waiting"] == 1
    assert found["mira_jobs", "range_test", "failed"] == 1
    assert found["mira_jobs", "tune", "running"] == 0
    assert sum(value for key, value in found.items() if key[0] == "mira_jobs") == 4
    assert found["mira_uploads",] == 1
    assert found["mira_uploads_bytes",] == 1000
    assert found["mira_uploads_unfinished",] == 1
    assert 0 < found["mira_workspace_free_bytes",] < found["mira_workspace_size_bytes",]
    assert found["process_resident_memory_bytes",] > 1e7
    assert found["process_open_fds",] > 3
    assert found["process_cpu_seconds_total",] > 0
    assert found["mira_python_blocks",] > 100_000


def test_sessions_are_counted_by_whether_a_browser_is_there(server):
    requests.get(f"http://localhost:{server.port}/", timeout=30).raise_for_status()
    session = pull_session(url=f"http://localhost:{server.port}/")
    found = scrape(server)
    assert (found["mira_sessions", "connected"], found["mira_sessions", "away"]) == (1, 1)
    session.close()
    wait_until(lambda: scrape(server)["mira_sessions", "connected"] == 0, 10, "end of the connection")


def test_requests_are_counted_by_what_answered_them_and_never_by_their_path(server):
    scrape(server)
    address = f"http://localhost:{server.port}"
    for _ in range(3):
        requests.get(f"{address}/annas-cells", timeout=30)
    requests.request("ANNA", f"{address}/", timeout=30)
    found = scrape(server)
    assert found["mira_requests_total", "ErrorHandler", "GET", "404"] == 3
    assert found["mira_requests_total", "DocHandler", "other", "405"] == 1
    assert found["mira_requests_total", "Scraped", "GET", "200"] == 1
    assert found["mira_request_seconds_count", "ErrorHandler"] == 3


def test_an_event_loop_that_is_held_up_is_told(server):
    def late() -> float:
        return scrape(server)["mira_event_loop_late_seconds_sum",]

    before = late()
    server.io_loop.add_callback(time.sleep, 1)
    wait_until(lambda: late() - before > 0.5, 10, "lateness in the histogram")


def test_jobs_that_have_ended_are_read_once_unless_their_status_changes(settings, monkeypatch):
    read, usual = [], jobs.read_status
    monkeypatch.setattr(jobs, "read_status", lambda folder: read.append(folder.name) or usual(folder))
    counts = metrics.JobCounts(settings.workspace / "jobs")
    first = counts.count()
    assert sorted(read) == ["annas-1", "annas-2", "annas-3", "annas-4"]
    read.clear()
    assert counts.count() == first
    assert read == ["annas-3"]
    folder = settings.workspace / "jobs" / "annas-1"
    write_json(folder / "status.json", dataclasses.asdict(jobs.Status(state="waiting", resumed=1)))
    (settings.workspace / "jobs" / "annas-2").rename(settings.workspace / "annas-2")
    assert counts.count() == {("fit", "waiting"): 2, ("range_test", "failed"): 1}


def test_the_disk_is_looked_at_seldom_and_what_cannot_be_read_is_left_out(settings, monkeypatch):
    disk = metrics.OnDisk(settings)
    before = {m.name: m for m in disk.collect()}
    write_job(settings, "annas-5")
    assert {m.name: m for m in disk.collect()} == before
    monkeypatch.setattr(metrics, "SELDOM", -1.0)
    disk = metrics.OnDisk(settings)
    for path in (settings.workspace / "jobs").rglob("*.json"):
        path.unlink()
    (settings.workspace / "jobs").rename(settings.workspace / "gone")
    assert [m.name for m in disk.collect()] == [name for name in before if name != "mira_jobs"]


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200),
    ({"X-Forwarded-For": "10.0.0.7"}, 401),
    ({"Forwarded": "for=10.0.0.7"}, 401),
    ({"Host": "lab.example.org"}, 401),
    ({"X-Forwarded-For": "10.0.0.7", "Authorization": f"Bearer {TOKEN}"}, 200),
    ({"X-Forwarded-For": "10.0.0.7", "Authorization": f"bearer {TOKEN}"}, 200),
    ({"X-Forwarded-For": "10.0.0.7", "Authorization": f"Bearer {TOKEN}x"}, 401),
    ({"X-Forwarded-For": "10.0.0.7", "Authorization": "Bearer"}, 401),
    ({"X-Forwarded-For": "10.0.0.7", "Authorization": f"Basic {TOKEN}"}, 401),
    ({"X-Forwarded-For": "10.0.0.7", "Authorization": b"Bearer \xff\xfe"}, 401),
])  # fmt: skip
def test_this_machine_and_who_has_the_token_are_answered(server, headers, status):
    answer = requests.get(f"http://127.0.0.1:{server.port}/metrics", headers=headers, timeout=30)
    assert answer.status_code == status
    assert ("mira_jobs" in answer.text) == (status == 200)
    if status == 401:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "MIRA_METRICS_TOKEN" in answer.text


def test_without_a_token_only_this_machine_is_answered(settings):
    with bokeh_server(extra_patterns=metrics.routes(settings)) as server:
        for given in ("Bearer ", "Bearer x", ""):
            asked = {"X-Forwarded-For": "10.0.0.7", "Authorization": given}
            answer = requests.get(f"http://localhost:{server.port}/metrics", headers=asked, timeout=30)
            assert answer.status_code == 403
            assert "MIRA_METRICS_TOKEN" in answer.text


@pytest.mark.parametrize(("remote_ip", "host", "here"), [
    ("127.0.0.1", "localhost:5006", True),
    ("::1", "[::1]:5006", True),
    ("127.0.0.1", "localhost.example.org", False),
    ("10.0.0.7", "localhost:5006", False),
    ("0.0.0.0", "localhost", False),
    ("", "localhost", False),
])  # fmt: skip
def test_this_machine_is_known_by_the_address_that_asks_and_the_one_that_is_asked(settings, remote_ip, host, here):
    connection = SimpleNamespace(
        set_close_callback=lambda _: None, context=SimpleNamespace(remote_ip=remote_ip, protocol="http")
    )
    start = RequestStartLine("GET", "/metrics", "HTTP/1.1")
    request = HTTPServerRequest(start_line=start, headers=HTTPHeaders({"Host": host}), connection=connection)
    handler = metrics.Scraped(web.Application(), request, metrics=metrics.Metrics(settings), token="")
    assert handler._is_here() == here


def test_panel_serve_can_mount_it(settings, monkeypatch):
    monkeypatch.setenv("MIRA_WORKSPACE", str(settings.workspace))
    monkeypatch.setenv("MIRA_METRICS_TOKEN", TOKEN)
    ((path, handler, told),) = metrics.ROUTES
    assert (path, handler, told["token"]) == ("/metrics", metrics.Scraped, TOKEN)
