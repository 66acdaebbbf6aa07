"""What a browser may send that no page would: buttons that are off are pressed, fields are given what they don't offer.

Somebody who only looks, and somebody who runs jobs, send such messages over a page's websocket, while they are shown a
job of Ann's and a study. What is pressed opens other pages, too. Nothing that is not theirs may change, and the server
must go on for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import html
import json
import random
import re

import pytest
import requests
from optuna.storages import RDBStorage

from mira_app.serving.accounts import Accounts
from mira_app.serving.people import Person
from mira_app.settings import Settings
from mira_app.workspace import Workspace

from ..benchmarks.tabs import Log, Model, Tab, change, event, says
from ..servers import to_its_end
from .test_attacks import PASSWORD, entered
from .test_optuna_board import Served, mira_serve, write_study
from .test_workspace import ended
from .test_workspace_jobs import SMALL

pytestmark = pytest.mark.slow
ROLES = {"ann": "user", "bob": "user", "vic": "viewer"}
MARKUP = "<img src=x onerror=alert(1)>"
NAN, ENDLESS = ({"type": "number", "value": value} for value in ("nan", "+inf"))  # as Bokeh sends them
HOSTILE = (
    MARKUP, "../../users.json", "", "x" * 10_000, 10**30, -1, 0.5, NAN, None, True, [], [MARKUP],
    {"a": MARKUP}, [[0, 1], [2, 3]], {"type": "object", "name": "Plot", "id": "p9999"},
)  # fmt: skip
PRESSED = re.compile("Button|Switch|Checkbox|FileDownload")  # what acts when it is pressed
MESSAGES = 100  # by chance of all that can be said so, on each page
FIELDS = ("value", "value_input", "active", "indices", "search", "filters", "expanded", "page", "data")
CLICK = {"node": "click", "data": {"type": "map", "entries": []}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server with accounts, a trained model of Ann's that she shows to all, and a study that nobody began here."""
    folder = tmp_path_factory.mktemp("forged")
    accounts = Accounts(folder / "users.json")
    for name, role in ROLES.items():
        accounts.set(name, PASSWORD, role)
    settings = Settings(workspace=folder / "workspace")
    workspace = Workspace(settings)
    of_ann = workspace.seen_by(lambda: Person("ann", "user"))
    key = of_ann.submit("demo:simulated", SMALL, embedding=False)
    assert ended(of_ann, key).state == "finished", of_ann.log(key)
    of_ann.share(key, ["*"])
    write_study(settings.storage)
    flags = ("--users", str(accounts.path), "--jobs", "1", "--upload-gb", "0.001")
    served = Served(folder, mira_serve(folder / "workspace", *flags))
    served.key, served.at = key, f"http://localhost:{served.port}"
    yield served
    served.stop()


def kept(lab) -> dict[str, str]:
    """Return a digest of each file that is Ann's or the server's own; its log of actions and databases aside."""
    jobs = (path for path in (lab.workspace / "jobs" / lab.key).rglob("*") if path.is_file())
    files = [*jobs, lab.workspace / "secret", lab.workspace.parent / "users.json"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def study_of(lab) -> list[object]:
    """Return what the study holds."""
    storage = RDBStorage(Settings(workspace=lab.workspace).storage)
    key = storage.get_study_id_from_name("lungs/0")
    return [storage.get_study_user_attrs(key), storage.get_study_system_attrs(key), *storage.get_all_trials(key)]


def done(lab, name: str) -> set[str]:
    """Return what somebody has done, as the audit tells it."""
    lines = map(json.loads, (lab.workspace / "audit.jsonl").read_text().splitlines())
    return {line["action"] for line in lines if line["person"] == name and line["outcome"] == "done"}


async def forge(lab, name: str, page: str) -> dict[str, Model]:
    """Open a page as somebody, and send what a page would not; return what the page then had."""
    chance = random.Random(name + page)
    tab = Tab(f"{lab.at}/", Log(), cookies_of(lab, name))
    await tab.open(f"?page={page}&data=demo:simulated&job={lab.key}&study=lungs/0")
    sent: set[str] = set()

    async def press() -> None:
        """Press all that can be pressed and was not, whether it is on or off, seen or hidden."""
        for model in list(tab.models.values()):
            if "disabled" in model.has:
                await tab.send(change(model, "disabled", False))
        for model in [
            m for m in tab.models.values() if PRESSED.search(str(m.has.get("class_name"))) and m.id not in sent
        ]:
            sent.add(model.id)
            await tab.send(event("dom_event", model=model, **CLICK))
            with contextlib.suppress(KeyError):
                await tab.send(change(tab.models[model.has["data"]["id"]], "clicks", 7))

    async def settle() -> None:
        """Wait until the server has answered all that came before."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                await tab.pull()
        await asyncio.sleep(0.5)

    await settle()
    for model in list(tab.models.values()):  # what is chosen first is what there is to harm
        if "indices" in model.has:
            await tab.send(change(model, "indices", [0]))
        if isinstance(model.has.get("data"), dict) and "columns" in model.has:
            await tab.send(event("cell-click", model=model, column="index", row=0))
    for _ in range(2):  # what asks whether it is meant is pressed, too
        await press()
        await settle()
    told = [(m, name, v) for m in tab.models.values() for name in FIELDS if name in m.has for v in HOSTILE]
    for model, name, value in chance.sample(told, min(len(told), MESSAGES)):
        await tab.say(change(model, name, value))
    for model in list(tab.models.values()):
        for row in (10**9, -1, MARKUP):
            if "columns" in model.has:
                await tab.send(event("cell-click", model=model, column=MARKUP, row=row))
                await tab.send(event("table-edit", model=model, column=MARKUP, row=row, pre=True))
        for geometry in ({"type": "point", "x": NAN, "y": ENDLESS}, {"type": "poly", "x": [1], "y": []}):
            if model.type == "Figure":
                await tab.send(event("selectiongeometry", model=model, geometry=geometry, final=True))
    await settle()
    await tab.close()
    return tab.models


def cookies_of(lab, name: str) -> dict[str, str]:
    with entered(lab, name) as person:
        return dict(person.cookies)


async def look(lab, log: Log) -> None:
    """Let Ann look at data, as she does with an own page."""
    tab = Tab(f"{lab.at}/", log, cookies_of(lab, "ann"))
    async with tab.answered("look", says("Raw counts in X.")):
        await tab.open("?page=data&data=demo:simulated")
    await tab.close()


@pytest.mark.parametrize(("name", "page"), [("vic", "train"), ("vic", "jobs"), ("bob", "jobs")])
def test_forged_messages_change_nothing_of_others_and_stop_nobody(lab, name, page):
    before, studied = kept(lab), study_of(lab)
    models = to_its_end(forge(lab, name, page))
    assert lab.process.poll() is None
    assert requests.get(f"{lab.at}/health", timeout=60).ok
    assert kept(lab) == before
    if name == "vic":
        assert study_of(lab) == studied
        assert done(lab, "vic") <= {"log in"}
    assert [m for m in models.values() if MARKUP in html.unescape(str(m.has.get("text", "")))] == []
    log = Log()
    to_its_end(look(lab, log))
    assert not log.errors


def test_the_same_messages_of_the_owner_do_change_what_is_hers(lab):
    before = kept(lab)
    to_its_end(forge(lab, "ann", "jobs"))
    assert kept(lab) != before
