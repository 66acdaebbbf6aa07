"""The Tune page: real studies, begun there or elsewhere, looked at by one or two people, steered and purged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time

import optuna
import pytest
from optuna.trial import TrialState

import mira_core as mira
from mira_core import jobs
from mira_core.processes import this_process
from mira_core.tuning import control, storage

from ..servers import PATIENCE
from .conftest import MIRA, shot, wait_until
from .test_path import _found, fill

pytestmark = [pytest.mark.browser, pytest.mark.slow]
optuna.logging.set_verbosity(optuna.logging.WARNING)

IS_SOURCE = "model.type === 'ColumnDataSource' && 'curve_hue' in model.data"
NUMBERS = _found(IS_SOURCE, "Array.from(model.data.number)")
SELECTED = _found(IS_SOURCE, "model.selected.indices.map((i) => model.data.number[i])")
IS_TRIALS = "model.type === 'Figure' && model.title.text === 'Trials' && Bokeh.index.find_one(model)"
ZOOM = _found(IS_TRIALS, "[model.x_range.start, model.x_range.end]")


def act(condition: str, code: str) -> str:
    """Return JavaScript that does something with the first Bokeh model of which a condition holds."""
    return f"""(given) => {{
  for (const document of Bokeh.documents)
    for (const model of document._all_models.values())
      if ({condition}) {{ {code}; return true }}
  return false
}}"""


SELECT = act(IS_SOURCE, "model.selected.indices = given.map((n) => Array.from(model.data.number).indexOf(n))")
# as the tools do that zoom
SET_ZOOM = act(IS_TRIALS, "Bokeh.index.find_one(model).update_range("
               "{xrs: new Map([[model.x_range, {start: given[0], end: given[1]}]]), yrs: new Map()}, {})")  # fmt: skip


def url_of(server) -> str:
    return f"sqlite:///{server.workspace / 'studies.db'}"


def tuner_for(server, name: str, num_epochs: int = 6, **more):
    """A tuner of the server's storage, and its study with a plan, as `fit` leaves it."""
    adata = mira.data.load_demo()
    model = mira.topics.make_model(*adata.shape, feature_type="expression", num_epochs=num_epochs)
    folder = server.workspace / "elsewhere"
    tuner = mira.topics.BayesianTuner(
        model=model, save_name=name, min_topics=2, max_topics=12, storage=url_of(server), max_trials=60, min_trials=40,
        model_dir=folder / "models", tensorboard_logdir=folder / "logs", **more,
    )  # fmt: skip
    tuner.study.set_user_attr("plan", tuner._plan.to_dict())
    return tuner


def add_trial(study, topics: int, value: float, state=TrialState.COMPLETE, **attributes):
    study.enqueue_trial({"num_topics": topics})
    trial = study.ask()
    trial.suggest_int("num_topics", 2, 12)
    for epoch in range(1, 7):
        trial.report(value + 60 / epoch, epoch)
    losses = [value + 60 / e for e in range(1, 7)]
    held_out = {"score": losses, "distortion": [y - 10 for y in losses], "rate": [10.0] * 6}
    trial.set_user_attr("held_out", held_out)
    for key, told in {"process": this_process(), "distortion": value - 10 - topics / 10, "rate": 10.0 + topics,
                      **attributes}.items():  # fmt: skip
        trial.set_user_attr(key, told)
    if state is not TrialState.RUNNING:
        study.tell(trial, value if state is TrialState.COMPLETE else None, state=state)
    return trial


def open_study(page, server, name: str) -> None:
    page.goto(server.url(f"?page=tune&study={name}"))
    page.get_by_role("heading", name=name).wait_for()


def test_a_study_from_its_beginning_to_the_topics_of_its_best_model(page, server):
    """Begun from the form of the Model page; stopped, gone on with; its best weights are the library's."""
    page.goto(server.url("?page=model"))
    page.get_by_text("The same in Python").wait_for()
    fill(page, "num_epochs", "8")
    page.get_by_text("num_epochs=8").wait_for()
    page.get_by_role("tab", name="Tune").click()
    page.get_by_text("No study yet").wait_for()
    page.get_by_role("button", name="New study").click()
    page.get_by_text("Options: num_epochs 8").wait_for()
    for name, value in {"min_topics": "9", "max_topics": "4"}.items():
        fill(page, name, value)
    page.get_by_role("button", name="Begin", exact=True).click()
    page.get_by_text("min_topics must be at least 2 and less than max_topics").wait_for()
    for name, value in {"min_topics": "3", "max_topics": "9", "max_trials": "6", "n_jobs": "x"}.items():
        fill(page, name, value)
    page.get_by_role("button", name="Begin", exact=True).click()
    page.get_by_text("n_jobs must be a number; got 'x'").wait_for()
    fill(page, "n_jobs", "2")
    shot(page, "tune-begin")
    page.get_by_role("button", name="Begin", exact=True).click()
    page.get_by_role("heading", name="pbmc700/expression/1").wait_for()
    wait_until(lambda: len(page.evaluate(NUMBERS)) > 0, 90, "trials are drawn while it runs")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Stopped", exact=True).wait_for(timeout=180_000)
    shot(page, "tune-stopped")
    n = len(page.evaluate(NUMBERS))
    page.get_by_role("button", name="Go on", exact=True).click()
    page.get_by_text("Finished: 6 trials have begun").wait_for(timeout=120_000)
    wait_until(lambda: len(page.evaluate(NUMBERS)) == 6, 10, "all trials are drawn")
    assert n <= 6

    best = optuna.load_study(study_name="pbmc700/expression/1", storage=url_of(server)).best_trial
    page.get_by_role("button", name=f"Best trial: {best.number}").click()
    page.get_by_text(f"Trial {best.number}", exact=True).wait_for()
    page.get_by_text("the best one").wait_for()
    shot(page, "tune-finished")
    with page.expect_download() as download:
        page.get_by_role("button", name="Model", exact=True).click()
    weights = mira.topics.load_model(download.value.path())
    model = mira.topics.make_model(*mira.data.load_demo().shape, feature_type="expression", num_epochs=8)
    tuner = mira.topics.BayesianTuner.load(model=model, save_name="pbmc700/expression/1", storage=url_of(server))
    assert weights.num_topics == tuner.fetch_best_weights().num_topics == best.params["num_topics"]
    page.get_by_role("button", name="Topics on the cells").click()
    page.get_by_role("heading", name="Explore", exact=True).wait_for()
    page.get_by_text(f"topic {best.params['num_topics'] - 1}", exact=True).wait_for(timeout=120_000)
    (folder,) = [f for f in (server.workspace / "jobs").iterdir() if jobs.read_spec(f)["kind"] == "predict"]
    assert jobs.read_spec(folder)["predict"]["trial"] == best.number

    page.get_by_role("tab", name="Tune").click()
    page.get_by_role("tab", name="How many topics?").click()
    page.get_by_text("The trial with the least loss has").or_(page.get_by_text("Take ")).first.wait_for(timeout=180_000)
    shot(page, "tune-topics")
    page.get_by_role("button", name="All studies").click()
    page.get_by_text("finished", exact=True).wait_for()
    shot(page, "tune-list")


def test_an_estimate_by_gradients_is_handed_to_a_new_study_as_its_range(page, shared):
    page.goto(shared.url("?page=tune"))
    page.get_by_role("button", name="New study").click()
    page.get_by_role("button", name="Estimate the number of topics").click()
    page.get_by_text("of 3,").first.wait_for(timeout=180_000)  # steps
    page.get_by_role("button", name="Search: ").wait_for(timeout=180_000)
    (folder,) = [f for f in (shared.workspace / "jobs").iterdir() if jobs.read_spec(f)["kind"] == "gradient_tune"]
    n = json.loads((folder / "result" / "contributions.json").read_text())["num_topics"]
    low, high = max(2, n // 2), max(2 * n, max(2, n // 2) + 4)
    page.get_by_role("button", name=f"Search: {low} to {high}").click()
    wait_until(lambda: page.get_by_label("min_topics", exact=True).input_value() == str(low), 10, "the least")
    wait_until(lambda: page.get_by_label("max_topics", exact=True).input_value() == str(high), 10, "the most")
    shot(page, "tune-estimate")
    page.reload()  # it is kept with the data
    page.get_by_role("button", name="New study").click()
    page.get_by_text(f"About {n} topics").wait_for()


def test_a_killed_worker_is_purged_while_a_live_one_goes_on(page, server, tmp_path):
    """A study that was begun elsewhere, and two workers that somebody started by hand."""
    data = tmp_path / "cells.h5ad"
    mira.data.load_demo().write_h5ad(data)
    name, url = "by/hand", url_of(server)
    tune = [*MIRA, "tune", str(data), "--study", name, "--storage", url, "--min-topics", "3", "--max-topics", "8",
            "--n-jobs", "2", "--feature-type", "expression", "--num-epochs", "20000"]  # fmt: skip
    log = open(tmp_path / "workers.log", "wb")  # noqa: SIM115 - closed below
    quiet = {"cwd": tmp_path, "stdout": log, "stderr": log, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    page.goto(server.url("?page=tune"))
    page.get_by_text("No study yet").wait_for()
    first = subprocess.Popen(tune, **quiet)
    workers = []
    try:
        page.get_by_text(name).wait_for(timeout=270_000)  # it appears by itself
        page.get_by_text(name).click()
        page.get_by_role("heading", name=name).wait_for()
        page.get_by_text("Running", exact=True).first.wait_for(timeout=180_000)
        first.send_signal(signal.SIGINT)
        first.wait(60 * PATIENCE)
        study = optuna.load_study(study_name=name, storage=url)
        study.set_user_attr("stop", False)
        workers = [subprocess.Popen([*MIRA, "worker", "--study", name, "--storage", url], **quiet) for _ in range(2)]

        def running():
            told = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
            return {t.user_attrs["process"]["pid"]: t.number for t in told if "process" in t.user_attrs}

        wait_until(lambda: {w.pid for w in workers} <= running().keys(), 90, "both workers run a trial")
        page.get_by_role("tab", name="Running (2)").click()
        page.get_by_text("alive", exact=True).nth(1).wait_for()
        dead, alive = workers
        number, other = running()[dead.pid], running()[alive.pid]
        dead.kill()
        dead.wait()
        page.get_by_text("dead: its process is gone").wait_for(timeout=20_000)
        shot(page, "tune-dead")
        page.get_by_role("button", name="Purge the dead (1)").click()
        page.get_by_text(f"Purged: {number}.").wait_for()
        wait_until(lambda: study.trials[number].state == TrialState.FAIL, 5, "the trial is failed")
        assert study.trials[number].user_attrs["failure"]["message"] == "purged while its process was dead"
        before = len(study.trials[other].intermediate_values)
        wait_until(lambda: len(study.trials[other].intermediate_values) > before, 20, "the live one goes on")

        page.get_by_role("button", name="Purge all").click()
        page.get_by_text("A worker that lives loses the trial").wait_for()
        page.get_by_role("button", name="No", exact=True).click()
        assert study.trials[other].state == TrialState.RUNNING
        page.get_by_role("button", name="Purge all").click()
        page.get_by_role("button", name="Yes, purge").click()
        wait_until(lambda: study.trials[other].state == TrialState.FAIL, 10, "it is failed after the warning")
    finally:
        for process in [first, *workers]:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        subprocess.run(["pkill", "-f", f"mira_core.tuning.process.*{tmp_path}"], check=False)
        log.close()


def test_selection_and_zoom_stay_over_twenty_updates(page, shared):
    tuner = tuner_for(shared, "live")
    for i in range(8):
        add_trial(tuner.study, 3 + i, 500 + (i - 4) ** 2)
    open_study(page, shared, "live")
    wait_until(lambda: len(page.evaluate(NUMBERS)) == 8, 30, "the trials are drawn")
    page.get_by_text("Select a trial, in a figure or in the table").wait_for()
    wait_until(lambda: page.locator(".tabulator-row").count() > 0, 30, "the table is there")
    assert page.evaluate(SELECT, [3, 5])
    page.get_by_text("2 trials are selected").wait_for()
    assert page.evaluate(SELECT, [5])
    page.get_by_text("Trial 5", exact=True).wait_for()
    assert page.evaluate(SET_ZOOM, [2.5, 11.5])
    wait_until(lambda: page.locator(".tabulator-row.tabulator-selected").count() == 1, 10, "the table shows it")
    for i in range(20):
        add_trial(tuner.study, 2 + i % 10, 505 + i % 7, TrialState.PRUNED if i % 3 == 0 else TrialState.COMPLETE)
        wait_until(lambda n=9 + i: len(page.evaluate(NUMBERS)) == n, 10, f"update {i} arrived")
        assert page.evaluate(SELECTED) == [5]
        assert page.evaluate(ZOOM) == [2.5, 11.5]
    page.get_by_text("Trial 5", exact=True).wait_for()
    wait_until(lambda: page.locator(".tabulator-row.tabulator-selected").count() == 1, 10, "the table still shows it")
    row = page.locator(".tabulator-row").nth(0)
    assert row.locator(".tabulator-col-resize-handle").count() == 0  # it would take the click
    cell, at = row.locator(".tabulator-cell").nth(2).bounding_box(), row.bounding_box()
    between = {"x": cell["x"] + cell["width"] - at["x"], "y": at["height"] / 2}
    row.click(position=between)  # in the table, where two cells meet too: selected in the figures
    wait_until(lambda: page.evaluate(SELECTED) == [0], 10, "selected from the table")

    # a press during which rows, or their cells, are drawn anew is a click all the same
    page.evaluate("addEventListener('mousedown', (e) => { document.pressedOn = e.composedPath()[0] }, true)")
    for number, draw in (
        (2, lambda: add_trial(tuner.study, 4, 510)),
        (3, lambda: page.set_viewport_size({"width": 1400, "height": 900})),
    ):
        page.locator(".tabulator-row").nth(number).hover()
        page.mouse.down()
        draw()
        wait_until(lambda: page.evaluate("document.pressedOn.isConnected") is False, 10, "the rows are drawn anew")
        page.mouse.up()
        wait_until(lambda n=number: page.evaluate(SELECTED) == [n], 10, "selected by a long press")
    page.set_viewport_size({"width": 1440, "height": 900})

    # later trials are on further pages
    page.locator(".tabulator-page", has_text="3").click()
    page.locator(".tabulator-row").get_by_text("28", exact=True).first.wait_for()

    # hidden trials are not drawn, and come back
    assert page.evaluate(SELECT, [2, 3])
    page.get_by_text("2 trials are selected").wait_for()
    page.get_by_role("button", name="Hide the selected").click()
    wait_until(lambda: not {2, 3} & set(page.evaluate(NUMBERS)), 10, "they are hidden")
    page.get_by_role("button", name="Show hidden (2)").click()
    wait_until(lambda: {2, 3} <= set(page.evaluate(NUMBERS)), 10, "they are back")
    for which in ("Loss by number of topics", "Parallel coordinates", "What matters"):
        page.get_by_role("button", name=which).click()
        page.wait_for_timeout(700)
        shot(page, f"tune-{which.split()[0].lower()}")
    page.get_by_label("log y").click()
    wait_until(lambda: page.evaluate(_found(IS_TRIALS, "[model.y_scale.type]")) == ["LogScale"], 10, "the axis is log")


def test_a_trial_in_the_url_is_selected_once_it_has_been_read(page, shared):
    tuner = tuner_for(shared, "link")
    add_trial(tuner.study, 3, 500)
    page.goto(shared.url("?page=tune&study=link&trials=2"))
    wait_until(lambda: len(page.evaluate(NUMBERS)) == 1, 30, "the trials are drawn")
    for i in (1, 2):
        add_trial(tuner.study, 3 + i, 500 + i)
    page.get_by_text("Trial 2", exact=True).wait_for()
    wait_until(lambda: page.evaluate(SELECTED) == [2], 10, "it is selected in the figures")
    assert "trials=2" in page.evaluate("location.search")


def test_two_people_on_one_study(page, shared):
    """What one selects moves nothing for the other; what one purges, queues or narrows both see."""
    tuner = tuner_for(shared, "two")
    study = tuner.study
    for i in range(4):
        add_trial(study, 3 + i, 500 + i)
    failed = add_trial(study, 5, 600, TrialState.FAIL,
                       failure={"type": "TrainingError", "message": "the loss is <b>nan</b>"})  # fmt: skip
    gone = add_trial(study, 6, 550, TrialState.RUNNING, process={**this_process(), "pid": 2**22 + 1})
    other = page.context.new_page()
    for each in (page, other):
        open_study(each, shared, "two")
        wait_until(lambda each=each: len(each.evaluate(NUMBERS)) == 6, 30, "the trials are drawn")
        each.wait_for_timeout(1500)
    assert page.evaluate(SELECT, [1])
    page.get_by_text("Trial 1", exact=True).wait_for()
    assert other.evaluate(SELECT, [failed.number])
    other.get_by_text("TrainingError: the loss is <b>nan</b>").wait_for()  # as text
    assert page.evaluate(SELECTED) == [1]
    page.get_by_text("Trial 1", exact=True).wait_for()

    other.get_by_text("Interrupted: the processes of its running trials are dead").wait_for()
    page.get_by_role("tab", name="Running (1)").click()
    page.get_by_role("button", name="Purge the dead (1)").click()
    began = time.monotonic()
    other.get_by_text("Nobody runs it").wait_for(timeout=10_000)
    assert time.monotonic() - began < 2.0
    assert study.trials[gone.number].state == TrialState.FAIL

    other.get_by_role("button", name="Try again").click()
    other.get_by_text("Queued once more, with a third of the learning rate").wait_for()
    page.get_by_text("1 queued").wait_for()
    page.get_by_role("tab", name="Steer").click()
    page.get_by_label("num_topics", exact=True).fill("30")
    page.get_by_role("button", name="Queue a trial").click()
    page.get_by_text("num_topics must lie within what the study searches, 2 to 12; got 30").wait_for()
    page.get_by_label("num_topics", exact=True).fill("7")
    page.get_by_role("button", name="Queue a trial").click()
    other.get_by_text("2 queued").wait_for()
    fill(page, "num_topics, to", "9")
    page.get_by_role("button", name="Set the ranges").click()
    other.get_by_text("narrowed: num_topics 2 to 9").wait_for()
    assert study.user_attrs["narrowed"] == {"num_topics": [2, 9]}
    shot(page, "tune-steer")
    other.close()


def test_a_pinned_trial_is_compared_topic_by_topic(page, shared):
    tuner = tuner_for(shared, "pins", num_epochs=10)
    adata = mira.data.load_demo()
    for i, topics in enumerate((5, 4)):
        path = tuner._plan.weights(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"feature_type": "expression", "num_epochs": 10, "num_topics": topics, "seed": 1}
        mira.topics.make_model(*adata.shape, **options).fit(adata).save(path)
        add_trial(tuner.study, topics, 500 + i, weights=str(path))
    add_trial(tuner.study, 6, 490)  # whose weights are nowhere
    open_study(page, shared, "pins")
    wait_until(lambda: len(page.evaluate(NUMBERS)) == 3, 30, "the trials are drawn")
    page.wait_for_timeout(1500)
    page.evaluate(SELECT, [0])
    page.get_by_text("Trial 0", exact=True).wait_for()
    page.get_by_role("button", name="Pin to compare").click()
    page.evaluate(SELECT, [1])
    page.get_by_text("Topics, matched").wait_for(timeout=270_000)
    page.get_by_text("Trial 0 (pinned) and trial 1").wait_for()
    wait_until(lambda: "pin=0" in page.evaluate("location.search"), 5, "the pin is in the URL")
    shot(page, "tune-pinned")
    link = page.evaluate("location.search")
    page.evaluate(SELECT, [2])
    page.get_by_text("Topics are not compared").wait_for()
    page.get_by_role("button", name="Topics on the cells").click()
    page.get_by_text("the model of trial 2 is not here").first.wait_for()
    page.goto(shared.url(link))  # the same link shows a colleague the same view
    page.get_by_text("Topics, matched").wait_for(timeout=270_000)
    assert page.evaluate(SELECTED) == [1]
    control.hide(tuner.study, [0])
    wait_until(lambda: page.evaluate(NUMBERS) == [1, 2], 10, "what another hides is gone")
    page.goto(shared.url("?page=tune&study=nope"))
    page.get_by_text("there is no study 'nope' in the storage").wait_for()


def test_what_a_storage_cannot_give_is_told(page, tmp_path):
    with pytest.raises(mira.errors.TuningError, match="cannot be opened"):
        storage.open_storage("redis://localhost:1")
