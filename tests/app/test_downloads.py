"""Exports are sent from the disk, to those who may have them, and nothing else is."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from bokeh.server.auth_provider import AuthProvider, NullAuth

import mira_core as mira
from mira_app import downloads
from mira_app.downloads import Exports
from mira_core import jobs
from mira_core.errors import JobError
from mira_core.run import run_job

from ..servers import bokeh_server

SMALL = {"feature_type": "expression", "num_topics": 3, "hidden": 8, "num_epochs": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A workspace with one finished run, and one that waits."""
    folder = tmp_path_factory.mktemp("workspace")
    cells = mira.data.simulate_expression(100, 30, 3, n_types=2, depth=400, seed=2)
    cells.write_h5ad(folder / "cells.h5ad")
    for key in ("done", "waits"):
        jobs.write_spec(folder / "jobs" / key, data=str(folder / "cells.h5ad"), model=SMALL, embedding=False)
    assert run_job(folder / "jobs" / "done").state == "finished"
    (folder / "jobs" / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def made(workspace) -> Exports:
    """What all sessions share, with everything made that the tests ask for."""
    exports = downloads.exports_of(workspace / "jobs")
    exports.make("done", "methods")
    exports.make("done", "script")
    return exports


@contextlib.contextmanager
def serving(workspace: Path, auth: AuthProvider) -> Iterator[str]:
    """Serve exports; give the address."""
    with bokeh_server(extra_patterns=downloads.routes(workspace), auth_provider=auth) as server:
        yield f"http://localhost:{server.port}"


@pytest.fixture(scope="module")
def at(workspace, made):
    """The address of a server without a login."""
    with serving(workspace, NullAuth()) as address:
        yield address


def test_an_export_is_made_once_and_again_when_the_results_are_newer(workspace, made, monkeypatch):
    path = made.path("done", "methods")
    assert path.name == "done-methods.txt"
    assert path.read_text().startswith("Cells were described by 3 topics")
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    calls = []
    monkeypatch.setattr(downloads, "_export", lambda *arguments: calls.append(arguments))
    assert made.make("done", "methods") == path
    assert calls == []
    result = workspace / "jobs" / "done" / "result" / "cells.h5ad"
    before = result.stat()
    os.utime(result, (path.stat().st_mtime + 10,) * 2)
    assert made.path("done", "methods") is None
    os.utime(result, (before.st_atime, before.st_mtime))
    assert made.path("done", "methods") == path


@pytest.mark.parametrize(
    ("key", "what"), [("../jobs/done", "report"), ("done", "../../cells"), ("nobody", "report"), ("done", "")]
)
def test_what_is_no_job_or_no_export_is_no_path(made, key, what):
    with pytest.raises(JobError, match="there is no"):
        made.path(key, what)
    with pytest.raises(JobError, match="there is no"):
        made.make(key, what)


def test_a_run_without_topics_is_told_in_words(made):
    with pytest.raises(JobError, match="a run can be exported once it has topics"):
        made.make("waits", "methods")
    assert [p.name for p in (made.jobs_folder / "waits" / "exports").iterdir()] == []


def test_exports_are_sent_as_files_in_whole_and_in_parts(at, made):
    answer = requests.get(f"{at}/exports/done/methods", timeout=30)
    assert answer.status_code == 200
    assert answer.content == made.path("done", "methods").read_bytes()
    assert answer.headers["Content-Disposition"] == 'attachment; filename="done-methods.txt"'
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    part = requests.get(f"{at}/exports/done/methods", headers={"Range": "bytes=5-9"}, timeout=30)
    assert (part.status_code, part.content) == (206, answer.content[5:10])
    head = requests.head(f"{at}/mira_app/exports/done/methods", timeout=30)
    assert int(head.headers["Content-Length"]) == len(answer.content)
    again = requests.get(f"{at}/exports/done/methods", headers={"If-None-Match": answer.headers["Etag"]}, timeout=30)
    assert again.status_code == 304

    bundle = zipfile.ZipFile(io.BytesIO(requests.get(f"{at}/exports/done/script", timeout=30).content))
    assert {n.split("/")[0] for n in bundle.namelist()} == {"done-script"}
    assert "done-script/repeat/repeat.py" in bundle.namelist()


@pytest.mark.parametrize(
    "path",
    ["/exports/done/report", "/exports/nobody/methods", "/exports/../secret.txt", "/exports/done/..%2f..%2fsecret.txt",
     "/exports/secret.txt/methods", "/exports/done/exports/done-methods.txt", "/exports/done%2f..%2fdone/methods"],
)  # fmt: skip
def test_nothing_else_is_sent(at, path):
    session = requests.Session()
    request = session.prepare_request(requests.Request("GET", at))
    request.url = at + path  # as it stands
    answer = session.send(request, timeout=30)
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_links_are_not_followed_out_of_the_workspace(at, made, tmp_path):
    path = made.path("done", "methods").with_name("done-report.html")
    (tmp_path / "elsewhere").write_text("secret")
    path.symlink_to(tmp_path / "elsewhere")
    os.utime(path)
    try:
        answer = requests.get(f"{at}/exports/done/report", timeout=30)
        assert answer.status_code == 403
        assert "secret" not in answer.text
    finally:
        path.unlink()


class Guarded(NullAuth):
    """A login that a cookie stands for."""

    get_user = staticmethod(lambda handler: handler.get_cookie("user"))
    login_url = "/login"


def test_who_has_not_logged_in_gets_nothing(workspace, made):
    with serving(workspace, Guarded()) as address:
        at = f"{address}/exports/done/methods"
        answer = requests.get(at, allow_redirects=False, timeout=30)
        assert answer.status_code == 302
        assert answer.headers["Location"].startswith("../../login?next=")
        assert requests.get(at, cookies={"user": "me"}, timeout=30).status_code == 200
