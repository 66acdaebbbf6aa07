"""Widgets in a real JupyterLab, which may fetch nothing from the network: both ways between the browser and Python."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import TimeoutError

from .conftest import shot, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PATIENCE = 90  # seconds that a busy machine may take for a cell
CELLS = [
    """
    import optuna
    import mira_core as mira
    import mira_app.widgets as mw
    mw.load()
    cells = mira.data.simulate_expression(150, 40, 4, seed=0)
    """,
    """
    form = mw.ModelForm(cells, num_epochs=40, hidden=16, batch_size=32)
    form
    """,
    """
    rates = mw.LearningRateTest(form.model(), cells, num_steps=30, eval_every=1)
    rates
    """,
    """
    model = form.model()
    monitor = mw.TrainingMonitor(model.fit_records(cells), num_epochs=model.num_epochs)
    monitor
    """,
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="squares")
    study.optimize(lambda t: t.suggest_float("x", 0, 1) ** 2, n_trials=6)
    trials = mw.StudyView(study)
    trials
    """,
    """
    explorer = mw.TopicExplorer(model.fit(cells, progress=False), model.predict(cells))
    explorer
    """,
]
# Runs a cell as Shift+Enter does.
RUN = """async ([index, code, seconds]) => {
  const notebook = window.jupyterapp.shell.currentWidget.content
  notebook.activeCellIndex = index
  if (code !== null) notebook.activeCell.model.sharedModel.setSource(code)
  const late = new Promise((_, fail) => setTimeout(() => fail(`no end after ${seconds} s: ${code}`), 1000 * seconds))
  await Promise.race([window.jupyterapp.commands.execute('notebook:run-cell'), late])
}"""
# What it printed, which may arrive later than that it has ended.
TOLD = """(index) => {
  const outputs = window.jupyterapp.shell.currentWidget.content.widgets[index].model.outputs
  const found = []
  for (let i = 0; i < outputs.length; i++) found.push(outputs.get(i).toJSON())
  return found.map((o) => o.text ?? o.traceback?.join('\\n') ?? '').join('')
}"""
MODEL = """([type, change]) => {
  const act = new Function('model', change)
  for (const document of window.Bokeh.documents)
    for (const model of document._all_models.values()) {
      const told = model.type === type ? act(model) : undefined
      if (told !== undefined) return told
    }
  return null
}"""


class Lab:
    """A JupyterLab with a notebook, as a process on a port of its own, and a page that has it open."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        cells = [nbformat.v4.new_code_cell("\n".join(line[4:] for line in c.strip("\n").splitlines())) for c in CELLS]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(
            cells=[*cells, nbformat.v4.new_code_cell("")], metadata={"kernelspec": kernel}
        )
        (folder / "work").mkdir()
        nbformat.write(notebook, folder / "work" / "widgets.ipynb")
        settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        news = {"fetchNews": "false", "checkForUpdates": False}
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(news))
        places = {"CONFIG": "config", "RUNTIME": "runtime", "DATA": "data"}
        self.log = open(folder / "lab.log", "ab")  # noqa: SIM115 - closed in `stop`
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
             "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.port}", "--ServerApp.port_retries=0",
             "--IdentityProvider.token=a-token", f"--ServerApp.root_dir={folder / 'work'}",
             f"--LabApp.user_settings_dir={folder / 'settings'}", f"--LabApp.workspaces_dir={folder / 'workspaces'}"],
            stdout=self.log, stderr=self.log, cwd=folder,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
                 "IPYTHONDIR": str(folder / "ipython"),
                 **{f"JUPYTER_{k}_DIR": str(folder / v) for k, v in places.items()}},
        )  # fmt: skip
        wait_until(self._answers, PATIENCE, "JupyterLab answers")

    def _answers(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()[-2000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(self.url("api"), timeout=5) as answer:
            return answer.status == 200
        return False

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}?token=a-token"

    def open(self, page) -> None:
        """Open the notebook, without a network but for this machine; wait for its kernel."""
        self.page, self.refused = page, []
        page.set_default_timeout(1000 * PATIENCE)

        def only_here(route) -> None:
            if route.request.url.startswith((f"http://127.0.0.1:{self.port}/", "data:", "blob:")):
                route.continue_()
            else:
                self.refused.append(route.request.url)
                route.abort()

        page.context.route("**/*", only_here)
        page.goto(self.url("lab/tree/widgets.ipynb"))
        page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'"
        )

    def run(self, index: int, code: str | None = None) -> str:
        """Run a cell, perhaps with other code; return what it printed."""
        said = f"(index) => ({TOLD})(index).trim() !== ''"
        until = time.monotonic() + PATIENCE
        while True:
            self.page.evaluate(RUN, [index, code, PATIENCE])
            if code is None or not code.startswith("print("):
                return self.page.evaluate(TOLD, index).strip()
            # What is printed while the kernel hears of something can be taken for an answer to that: ask again.
            with contextlib.suppress(TimeoutError):
                self.page.wait_for_function(said, arg=index, timeout=5000)
                return self.page.evaluate(TOLD, index).strip()
            assert time.monotonic() < until, f"nothing was printed by {code}"

    def python(self, code: str) -> str:
        """Run code in the last cell; return what it printed."""
        return self.run(len(CELLS), code)

    def output(self, index: int):
        """What a cell shows."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(index).locator(".jp-OutputArea")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.stop()


def test_each_widget_in_jupyterlab_hears_python_and_is_heard(lab, page, tmp_path):
    """One notebook, as a kernel takes long to start."""
    lab.open(page)
    assert lab.run(0) == ""

    # --- the form -----------------------------------------------------------------------------------
    assert lab.run(1) == ""
    topics = lab.output(1).locator(".option-num_topics input")
    topics.wait_for()
    assert not lab.output(1).locator(".mira-still").is_visible()  # the picture for where nothing runs
    topics.fill("9")
    topics.press("Tab")
    lab.output(1).get_by_text("num_topics=9").wait_for()  # in the Python that the kernel has written
    assert lab.python("print(form.given['num_topics'])") == "9"
    lab.python("form.given = {'num_topics': 7, 'num_epochs': 40, 'hidden': 16, 'batch_size': 32}")
    wait_until(lambda: topics.input_value() == "7", PATIENCE, "the browser hears of a value")
    topics.fill("1")
    topics.press("Tab")
    lab.output(1).get_by_text("num_topics must be an integer of at least 2; got 1").first.wait_for()
    assert lab.python("print('num_topics' in form.given, form.problem[:10])") == "False num_topics"
    lab.python("form.given = {'num_topics': 4, 'num_epochs': 40, 'hidden': 16, 'batch_size': 32}")
    shot(page, "notebook-form")

    # --- learning rates -----------------------------------------------------------------------------
    assert lab.run(2) == ""
    test = lab.output(2).get_by_role("button", name="Test learning rates")
    icon = test.get_by_text("speed", exact=True)
    assert "Material Icons" in icon.evaluate("e => getComputedStyle(e).fontFamily")
    wait_until(lambda: icon.bounding_box()["width"] < 40, PATIENCE, "the icon is drawn, and not its name")
    test.click()
    lab.output(2).get_by_role("button", name="Use these").wait_for()

    def dragged() -> bool:  # again where the last of the curve came at the same time
        page.evaluate(MODEL, ["BoxAnnotation", "if (model.editable) { model.right = 0.05; return true }"])  # as a hand
        with contextlib.suppress(TimeoutError):
            lab.output(2).get_by_text("to 0.05").wait_for(timeout=5000)
            return True
        return False

    wait_until(dragged, PATIENCE, "the kernel hears of a handle that was dragged")
    lab.output(2).get_by_role("button", name="Use these").click()
    lab.output(2).get_by_text("set on the model").wait_for()
    assert lab.python("print(rates.bounds[1], rates.model.max_learning_rate)") == "0.05 0.05"
    lab.python("rates.bounds = (0.002, 0.04)")
    right = ["BoxAnnotation", "if (model.editable) return model.right"]
    wait_until(lambda: page.evaluate(MODEL, right) == 0.04, PATIENCE, "the handle moves")
    shot(page, "notebook-rates")

    # --- a training ---------------------------------------------------------------------------------
    assert lab.run(3) == ""
    lab.output(3).get_by_text("Finished").wait_for()  # it was live: nobody has called anything since
    drawn = ["Figure", "if (model.title?.text === 'Loss') return model.renderers[0].data_source.data.step?.length"]
    assert page.evaluate(MODEL, drawn) == 160
    assert lab.python("print(*monitor.run.curves.source.data['step'].astype(int))").split() == [
        *map(str, range(1, 161))
    ]
    assert lab.python("print(monitor.state, len(model.history))") == "finished 40"
    lab.python("longer = model.set_params(num_epochs=50_000); monitor = mw.TrainingMonitor(model.fit_records(cells))")
    lab.run(3, "monitor")
    lab.output(3).get_by_role("button", name="Stop").click()
    lab.output(3).get_by_text("Stopped").wait_for()
    assert lab.python("print(monitor.state, model.set_params(num_epochs=40).num_epochs)") == "stopped 40"
    shot(page, "notebook-monitor")

    # --- a study ------------------------------------------------------------------------------------
    assert lab.run(4) == ""
    lab.output(4).get_by_text("Select a trial.").wait_for()
    front = "const n = model.data.number; if (n?.length >= 6 && model.selected) "
    wait_until(lambda: page.evaluate(MODEL, ["ColumnDataSource", front + "return true"]), PATIENCE, "trials are drawn")
    page.evaluate(MODEL, ["ColumnDataSource", front + "{ model.selected.indices = [2]; return true }"])  # a click
    lab.output(4).get_by_text("Trial 2", exact=True).wait_for()
    assert lab.python("print(trials.selected)") == "[2]"
    lab.python("trials.selected = [5]")
    lab.output(4).get_by_text("Trial 5", exact=True).wait_for()
    selected = ["ColumnDataSource", front + "return model.selected.indices"]
    wait_until(lambda: page.evaluate(MODEL, selected) == [5], PATIENCE, "the browser selects it")
    lab.python("study.optimize(lambda t: t.suggest_float('x', 0, 1) ** 2, n_trials=1)")
    more = ["ColumnDataSource", "if (model.data.number?.length === 7) return true"]
    wait_until(lambda: page.evaluate(MODEL, more), PATIENCE, "a new trial is drawn, as the storage is read again")
    shot(page, "notebook-study")

    # --- topics on cells ----------------------------------------------------------------------------
    assert lab.run(5) == ""
    lab.output(5).locator(".tabulator").get_by_text("topic_2").first.wait_for()
    points = "if (model.data.colour?.length === 150 && model.data.value) "
    wait_until(lambda: page.evaluate(MODEL, ["ColumnDataSource", points + "return true"]), PATIENCE, "cells are drawn")
    colours = ["ColumnDataSource", points + "return new Set(model.data.colour).size"]
    wait_until(lambda: page.evaluate(MODEL, colours) > 1, PATIENCE, "they are coloured by topics")
    lab.python("explorer.colour = 'batch'")
    wait_until(lambda: page.evaluate(MODEL, colours) == 1, PATIENCE, "the browser colours them")
    lab.output(5).locator(".bk-tool-icon-box-select").first.click()
    box = lab.output(5).locator(".bk-Figure").first.bounding_box()
    page.mouse.move(box["x"] + 0.02 * box["width"], box["y"] + 0.05 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"], steps=5)
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.95 * box["height"], steps=5)
    page.mouse.up()
    said = "print(0 < (0 if explorer.selected is None else explorer.selected.sum()) < 150)"
    wait_until(lambda: lab.python(said) == "True", PATIENCE, "Python hears which cells were drawn around")
    shot(page, "notebook-explorer")

    # Whatever they need came with them; Panel asks for its sheets again for parts that come later, and does without.
    assert [url for url in lab.refused if not url.split("?")[0].endswith(".css")] == []

    # --- the same without a kernel, and without a network ---------------------------------------------
    notebook = nbformat.from_dict(page.evaluate("window.jupyterapp.shell.currentWidget.content.model.toJSON()"))
    text, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
    (tmp_path / "widgets.html").write_text(text)
    for scripts in (True, False):
        context = page.context.browser.new_context(java_script_enabled=scripts, offline=True)
        still = context.new_page()
        still.set_default_timeout(1000 * PATIENCE)
        still.goto((tmp_path / "widgets.html").as_uri())
        if scripts:
            still.locator(".option-num_topics input").wait_for()
            assert not still.locator(".mira-still").first.is_visible()
        else:
            assert still.locator(".mira-still").count() == 5
            still.get_by_role("cell", name="num_topics", exact=True).first.wait_for()
            assert still.locator(".mira-still img").first.is_visible()
        shot(still, f"notebook-without-kernel-{'and' if scripts else 'nor'}-scripts")
        context.close()
