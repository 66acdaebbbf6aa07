"""Logs are lines of text or of JSON, and hold no secrets."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
from datetime import datetime, timedelta

import pytest

from mira_app.serving import logs

# What is known of it, who logs what, and a server that is asked with a token.
SCRIPT = """
import asyncio, logging, sys, warnings
from mira_app.serving import logs
logs.set_up(sys.argv[1], ["s3cr3t-of-oauth", ""])
logging.getLogger("mira_app.login").info("%s has logged in\\nfrom %s", "anna", "::1")
logging.getLogger("mira_core.x").debug("too much")
logging.getLogger("other").info("too much")
logging.getLogger("panel.io").debug("too much")
for name in ("panel.io", "bokeh.server", "optuna.storages", "param.widgets"):
    logging.getLogger(name).warning("from %s, of s3cr3t-of-oauth", name)
import param
param.parameterized.get_logger().warning("from param")
warnings.warn("a warning")
try:
    raise ValueError("cannot open postgresql://mira:s3cr3t@db/mira")
except ValueError:
    logging.getLogger("mira_app").exception("it failed")
logging.getLogger("mira_app").error("%d arguments, Cookie: %s", "s3cr3t")
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application
async def ask():
    socket, port = bind_unused_port()
    HTTPServer(Application()).add_socket(socket)
    await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/login?token=s3cr3t&next=%2F", raise_error=False)
asyncio.run(ask())
"""


def written(form: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, form], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "s3cr3t" not in done.stderr
    assert "too much" not in done.stderr
    return done.stderr.splitlines()


def test_json_has_one_object_a_line_of_whoever_logs():
    lines = [json.loads(line) for line in written("json")]
    by_logger = {line["logger"]: line for line in lines}
    assert len(lines) == len(by_logger) + 1  # mira_app wrote twice
    assert by_logger.keys() == {"mira_app", "mira_app.login", "panel.io", "bokeh.server", "optuna.storages", "param",
                                "param.widgets", "py.warnings", "tornado.access"}  # fmt: skip
    assert by_logger["mira_app.login"]["message"] == "anna has logged in\nfrom ::1"
    assert by_logger["panel.io"] == {**by_logger["panel.io"], "level": "WARNING", "message": "from panel.io, of ***"}
    failed = next(line for line in lines if line["message"] == "it failed")
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("ValueError: cannot open postgresql://mira:***@db/mira")
    assert by_logger["tornado.access"]["message"].startswith("404 GET /login?token=***&next=%2F (127.0.0.1)")
    when = datetime.fromisoformat(lines[0]["time"])
    assert when.utcoffset() == timedelta(0)
    assert abs(when.timestamp() - time.time()) < 120


def test_text_has_time_level_logger_and_message():
    lines = written("text")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO mira_app.login: anna has logged in", lines[0])
    assert any(line.endswith("ERROR mira_app: it failed") for line in lines)
    assert "ValueError: cannot open postgresql://mira:***@db/mira" in lines


@pytest.mark.parametrize(("text", "hidden"), [
    ("403 GET /login?token=abc-1_2&next=/ (::1) 2ms", "403 GET /login?token=***&next=/ (::1) 2ms"),
    ("302 GET /login?next=%2F%3Ftoken%3Dabc%26a%3D1 x", "302 GET /login?next=%2F%3Ftoken%3D***%26a%3D1 x"),
    ("GET /a?next=%252Flogin%253Ftoken%253Dabc", "GET /a?next=%252Flogin%253Ftoken%253D***"),
    ("GET /?code=abc&state=x.y&bokeh-session-id=z", "GET /?code=***&state=***&bokeh-session-id=***"),
    ("postgresql+psycopg://mira:p@ss/w:rd@db:5432/m is away", "postgresql+psycopg://mira:***@db:5432/m is away"),
    ("redis://:pw@host:1, redis://anna@host", "redis://:***@host:1, redis://anna@host"),
    ("host=db password=abc user=x", "host=db password=*** user=x"),
    ("{'Authorization': 'Basic abc=', 'Accept': '*/*'}", "{'Authorization': ***, 'Accept': '*/*'}"),
    ("authorization: Bearer abc.def\nHost: x", "authorization: ***\nHost: x"),
    ("Cookie: user=2|1:0|abc; theme=dark", "Cookie: ***"),
    ("[('Set-Cookie', 'user=abc'), ('Host', 'x')]", "[('Set-Cookie', ***), ('Host', 'x')]"),
    ("it sent Bearer abcdefg", "it sent Bearer ***"),
    ("known: k/n wn1 and k%2Fn%20wn1", "known: *** and ***"),
    ("http://lab:5006/mira?data=0%2Fcells.h5ad&page=train (::1)", None),
    ("GET /exports/20250101-cells-ab12/report?view=1", None),
    ("the cookie of the login, and a token, are kept for 14 days", None),
])  # fmt: skip
def test_secrets_are_hidden_and_nothing_else(text, hidden):
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", (text,), None)
    assert logs.Hiding(["k/n wn1", "cells", "a"]).filter(record)
    assert record.getMessage() == (hidden or text)


@pytest.mark.parametrize(
    "piece", ["a", "?", "?a", "a.a+", "a://", "a://x:", "?token", "%3F", "token='", "cookie:'", "code="]
)
def test_no_request_is_slow_to_be_hidden(piece):
    began = time.perf_counter()
    logs.Hiding().hide(piece * (60_000 // len(piece)))
    assert time.perf_counter() - began < 3
