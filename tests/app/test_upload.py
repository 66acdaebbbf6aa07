"""Uploads in pieces, as the browser sends them."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mira_app.widgets import upload
from mira_app.widgets.upload import Upload


@pytest.fixture
def told():
    return []


@pytest.fixture
def came():
    return []


@pytest.fixture
def box(tmp_path, told, came, monkeypatch):
    box = Upload(lambda *_: tmp_path / "uploads", 10_000, came.append)
    monkeypatch.setattr(box, "_send_msg", told.append)
    monkeypatch.setattr(upload, "PIECE", 400)
    return box


def send(box, told, name: str, content: bytes) -> dict:
    """Send a file as the browser does; return the last answer."""
    box._handle_msg({"what": "begin", "name": name, "size": len(content)})
    while told[-1]["what"] == "next":
        at = told[-1]["offset"]
        box._handle_msg({"what": "piece", "offset": at, "data": content[at : at + told[-1]["piece"]]})
    return told[-1]


@pytest.mark.parametrize("n", [0, 1, 400, 401, 9_999])
def test_a_file_comes_whole(box, told, came, tmp_path, n):
    content = os.urandom(n)
    assert send(box, told, "cells.h5ad", content) == {"what": "done", "name": "cells.h5ad"}
    assert came == [tmp_path / "uploads" / "cells.h5ad"]
    assert came[0].read_bytes() == content
    assert [p.name for p in came[0].parent.iterdir()] == ["cells.h5ad"]
    assert not box.busy


def test_no_file_is_replaced(box, told, came):
    for content in (b"one", b"two", b"three"):
        send(box, told, "cells.zarr.zip", content)
    assert [p.name for p in came] == ["cells.zarr.zip", "cells-2.zarr.zip", "cells-3.zarr.zip"]
    assert [p.read_bytes() for p in came] == [b"one", b"two", b"three"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../cells.h5ad", "cannot be the name"),
        ("/etc/cells.h5ad", "cannot be the name"),
        ("..\\cells.h5ad", "cannot be the name"),
        (".hidden.h5ad", "cannot be the name"),
        ("a#b.h5ad", "cannot be the name"),
        ("", "cannot be the name"),
        ("cells.csv", "of no format that can be opened"),
        ("cells.pkl", "of no format that can be opened"),
    ],
)
def test_names_that_are_not_taken(box, told, came, tmp_path, name, said):
    answer = send(box, told, name, b"x")
    assert answer["what"] == "wrong"
    assert said in answer["text"]
    assert not came
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_beyond_the_limit_is_refused_before_it_comes(box, told, tmp_path):
    assert "at most 0.0 GB are taken" in send(box, told, "cells.h5ad", bytes(10_001))["text"]
    assert len(told) == 1
    assert not list(tmp_path.rglob("*"))


def test_more_than_was_announced_is_refused(box, told, came, tmp_path):
    box._handle_msg({"what": "begin", "name": "cells.h5ad", "size": 10})
    box._handle_msg({"what": "piece", "offset": 0, "data": bytes(11)})
    assert "in disorder" in told[-1]["text"]
    assert not came
    assert not list((tmp_path / "uploads").iterdir())


@pytest.mark.parametrize("end", ["cancel", "gone", "another"])
def test_what_does_not_come_whole_leaves_nothing(box, told, came, tmp_path, end):
    box._handle_msg({"what": "begin", "name": "cells.h5ad", "size": 10})
    box._handle_msg({"what": "piece", "offset": 0, "data": bytes(5)})
    if end == "cancel":
        box._handle_msg({"what": "cancel"})
    elif end == "gone":
        box.close()
    else:
        send(box, told, "other.h5ad", b"x")
    assert [p.name for p in (tmp_path / "uploads").iterdir()] == (["other.h5ad"] if end == "another" else [])
    n = len(told)
    box._handle_msg({"what": "piece", "offset": 5, "data": bytes(5)})  # was on its way
    assert len(told) == n


def test_a_full_disk_is_told_beforehand(box, told, monkeypatch):
    monkeypatch.setattr(upload, "SPARE", 10**18)
    assert "no room" in send(box, told, "cells.h5ad", b"x")["text"]


def test_a_file_that_gets_no_name_is_told_and_leaves_nothing(box, told, came, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("Input/output error")

    monkeypatch.setattr(upload, "move_into_place", fail)
    answer = send(box, told, "cells.h5ad", b"x" * 500)
    assert answer["what"] == "wrong"
    assert "Input/output error" in answer["text"]
    assert not came
    assert not box.busy
    assert not list((tmp_path / "uploads").iterdir())


def test_others_are_answered_while_a_file_is_written_to_the_disk(box, told, came, monkeypatch):
    moved, written = upload.move_into_place, threading.Event()

    def slowly(part, path):
        assert written.wait(30)
        moved(part, path)

    monkeypatch.setattr(upload, "move_into_place", slowly)

    async def work() -> None:
        box._handle_msg({"what": "begin", "name": "cells.h5ad", "size": 3})
        box._handle_msg({"what": "piece", "offset": 0, "data": b"abc"})
        await asyncio.sleep(0)
        assert not came  # and yet we are here
        written.set()
        while not came:
            await asyncio.sleep(0.01)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work()).result(30)
    assert told[-1] == {"what": "done", "name": "cells.h5ad"}
