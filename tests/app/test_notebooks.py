"""Widgets in kernels without a browser: example notebooks, what is left of them without one, and ipywidgets."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from mira_app.widgets import notebook as in_notebooks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "assets" / "notebooks").glob("*.ipynb"))
# What each example shows: widget -> whether it is shown with a picture.
SHOWN = {
    "1-first-model": {"ModelForm": False, "TrainingMonitor": True, "TopicExplorer": True},
    "2-tuning": {"StudyView": True},
    "3-batches": {"LearningRateTest": True, "TrainingMonitor": True},
}
PATIENCE = 300  # seconds that a busy machine may take


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """All examples, executed at once, each by a kernel of its own."""
    folder = tmp_path_factory.mktemp("examples")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    async def execute(path: Path) -> nbformat.NotebookNode:
        notebook = nbformat.read(path, 4)
        client = NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(folder)}})
        await client.async_execute(env=environment)
        return notebook

    async def all_of_them() -> list[nbformat.NotebookNode]:
        return await asyncio.gather(*map(execute, EXAMPLES))

    with ThreadPoolExecutor(1) as thread:  # as Playwright's loop may run in this one
        done = thread.submit(asyncio.run, all_of_them()).result()
    return dict(zip([p.stem for p in EXAMPLES], done, strict=True))


def outputs(notebook: nbformat.NotebookNode) -> list[dict]:
    return [o["data"] for c in notebook.cells for o in c.get("outputs", []) if "data" in o]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_kept_without_outputs(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert all(c.get("outputs", []) == [] and c.get("execution_count") is None for c in notebook.cells)


def test_examples_run_and_their_widgets_are_seen_without_a_kernel(executed):
    assert list(executed) == list(SHOWN)
    for name, notebook in executed.items():
        said = [o for c in notebook.cells for o in c.get("outputs", []) if o["output_type"] in ("error", "stream")]
        assert not [o for o in said if o["output_type"] == "error" or o["name"] == "stderr"], said
        found: dict[str, bool] = {}
        for data in outputs(notebook):
            if "mira-widget" not in data.get("text/html", ""):
                continue
            widget = data["text/plain"]
            found[widget] = found.get(widget, False) or "image/png" in data
            assert len(data["text/html"]) < 4e6  # that each button brought its scripts, 1.4 MB, was 70
            assert "globalThis.miraMaterialUI" in data["text/html"]
        assert found == SHOWN[name]
        page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
        without = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
        assert without.count('<div class="mira-still">') == sum("mira-widget" in d.get("text/html", "")
                                                                for d in outputs(notebook))  # fmt: skip
        for data in outputs(notebook):
            if "mira-widget" in data.get("text/html", "") and "image/png" in data:
                assert data["image/png"] in without


def test_scripts_are_sent_once_and_none_comes_from_the_network(executed):
    for notebook in executed.values():
        loads = [d for d in outputs(notebook) if "application/vnd.holoviews_load.v0+json" in d]
        assert sum("miraMaterialUI ??=" in d["application/javascript"] for d in loads) == 1
        for data in loads:
            for name in ("css_urls", "js_urls", "js_modules"):
                for urls in re.findall(rf"const {name} = (\[.*?\]);", data["application/javascript"]):
                    assert "http" not in urls


# --- ipywidgets: VS Code, Colab, and whatever else knows these ------------------------------------

SQUARES = """
import optuna
optuna.logging.set_verbosity(optuna.logging.WARNING)
import mira_app.widgets as mw
study = optuna.create_study(study_name="squares")
study.optimize(lambda t: t.suggest_float("x", 0, 1) ** 2, n_trials=4)
view = mw.StudyView(study, every=None)
view
"""
SOURCE = "view._trials.figures.source.selected"


class Kernel:
    """A kernel, and what it says."""

    def __init__(self, **environment: str) -> None:
        from jupyter_client.manager import start_new_kernel

        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        self.manager, self.client = start_new_kernel(startup_timeout=PATIENCE, env=environment)
        self.sent: list[dict] = []

    def run(self, code: str) -> str:
        """Run code; return what it printed. Messages to the front end are kept in `sent`."""
        asked, printed = self.client.execute(code), []
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            kind, content = message["msg_type"], message["content"]
            self.sent.append(message)
            if kind == "error":
                raise AssertionError("\n".join(content["traceback"]))
            if kind == "stream" and content["name"] == "stdout":
                printed.append(content["text"])
            mine = message["parent_header"].get("msg_id") == asked
            if mine and kind == "status" and content["execution_state"] == "idle":
                return "".join(printed).strip()

    def tell(self, comm: str, content: dict) -> None:
        """Say something over a comm, as the widget in the editor does."""
        data = {"method": "custom", "content": content}
        self.send("comm_msg", {"comm_id": comm, "data": data})

    def send(self, kind: str, content: dict, **header: str) -> None:
        """Send a message of any kind."""
        message = self.client.session.msg(kind, content)
        message["header"].update(header)
        self.client.shell_channel.send(message)

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def start():
    """Starts kernels."""
    started: list[Kernel] = []

    def start(**environment: str) -> Kernel:
        started.append(Kernel(**environment))
        return started[-1]

    yield start
    for kernel in started:
        kernel.stop()


def test_as_an_ipywidget_it_hears_the_editor_and_is_heard(start):
    kernel = start(VSCODE_PID="1")  # by which Panel knows it
    kernel.run(SQUARES)
    assert kernel.run("import panel; print(panel.config.comms)") == "vscode"
    (shown,) = [m["content"]["data"] for m in kernel.sent if m["msg_type"] == "execute_result"]
    comm = shown["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert "mira-still" in shown["text/html"]  # where the editor has no kernel
    assert "image/png" in shown
    (opened,) = [m["content"] for m in kernel.sent if m["msg_type"] == "comm_open" and m["content"]["comm_id"] == comm]
    state = opened["data"]["state"]
    assert (state["_model_name"], state["_model_module"]) == ("BokehModel", "@bokeh/jupyter_bokeh")
    told = state["render_bundle"] if isinstance(state["render_bundle"], str) else json.dumps(state["render_bundle"])
    assert len(told) < 3e6
    assert not re.findall(r'"url":\s*"http', told)

    model, before = kernel.run(f"print({SOURCE}.id)"), len(kernel.sent)
    kernel.tell(comm, {"event": "jsevent", "kind": "ModelChanged", "model": {"id": model}, "attr": "indices",
                       "new": [2], "old": []})  # fmt: skip
    until = time.monotonic() + PATIENCE
    while (selected := kernel.run("print(view.selected)")) != "[2]":
        assert time.monotonic() < until, selected
    heard = [m["content"] for m in kernel.sent[before:] if m["msg_type"] == "comm_msg"]
    assert any("Trial 2" in json.dumps(m) for m in heard if m["comm_id"] == comm)  # which the editor now shows

    before = len(kernel.sent)
    kernel.run("view.selected = [3]")
    heard = [m["content"] for m in kernel.sent[before:] if m["msg_type"] == "comm_msg"]
    assert any(model in json.dumps(m) and "[3]" in json.dumps(m) for m in heard if m["comm_id"] == comm)


# --- before a browser listens, and by threads ---------------------------------------------------------


WORDS = """
import panel as pn
from mira_app.widgets.notebook import Alone

class Words(Alone):
    column = pn.Column()

    def __panel__(self):
        return self.column

words = Words()
words
"""


def test_what_changes_before_the_browser_listens_arrives_in_its_order(start):
    """What came late was lost: it referred to what was brought by something that Panel was yet to send."""
    kernel = start()
    kernel.run(WORDS)
    ((server, client),) = json.loads(
        kernel.run("import json; print(json.dumps([[c.id for c in pair] for pair in words.column._comms.values()]))")
    )
    kernel.run("words.column.append('first')")
    kernel.run("words.column.append('second')")
    assert not [m for m in kernel.sent if m["msg_type"].startswith("comm")]
    kernel.send("comm_open", {"comm_id": "a-browser", "target_name": client, "data": {}})
    kernel.run("words.column.append('third')")
    kernel.run("import asyncio; await asyncio.sleep(1)")
    (opened,) = [m["content"] for m in kernel.sent if m["msg_type"] == "comm_open"]
    assert opened["target_name"] == server
    told = [m["content"]["data"] for m in kernel.sent if m["msg_type"] == "comm_msg"]
    told = [data for data in told if isinstance(data, str) and data.startswith('{"events"')]
    arrived = [[w for w in ("first", "second", "third") if f"&lt;p&gt;{w}" in data] for data in told]
    assert arrived == [["first"], ["second"], ["third"]], told


def test_messages_that_other_threads_take_wait_for_their_turn_but_not_for_a_cell(monkeypatch):
    monkeypatch.setattr(in_notebooks, "BUSY", PATIENCE)
    heard: list[tuple[str, threading.Thread]] = []
    loop = asyncio.new_event_loop()
    own = threading.Thread(target=loop.run_forever)
    own.start()
    hear = in_notebooks._InTurn(loop, lambda message: heard.append((message, threading.current_thread())))
    hear("while nothing runs")
    assert heard == [("while nothing runs", own)]

    def fail(message: str) -> None:
        raise ValueError(message)

    with pytest.raises(ValueError, match="as it is not a number"):
        in_notebooks._InTurn(loop, fail)("as it is not a number")
    done = threading.Event()
    loop.call_soon_threadsafe(done.wait)  # as a cell does that trains
    monkeypatch.setattr(in_notebooks, "BUSY", 0.1)
    hear("while a cell runs")
    assert heard[1:] == [("while a cell runs", threading.current_thread())]
    done.set()
    monkeypatch.setattr(in_notebooks, "BUSY", PATIENCE)
    hear("after it")
    assert heard[2:] == [("after it", own)]
    loop.call_soon_threadsafe(loop.stop)
    own.join()
    loop.close()
