"""Widgets that stand alone, without a browser: what they do from Python, in a kernel, and where nothing runs."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

import mira_app.widgets as mw
import mira_core as mira
from mira_core import jobs
from mira_core.errors import DataError, JobError, OptionError

pytestmark = pytest.mark.filterwarnings("ignore:Both 'variant' and 'button_style'")


@pytest.fixture(scope="module")
def cells():
    return mira.data.simulate_expression(150, 40, 4, seed=0)


def make(cells, **options):
    options = {"hidden": 16, "num_epochs": 4, "batch_size": 32, "num_topics": 4, "seed": 0, **options}
    return mira.topics.make_model(*cells.shape, feature_type="expression", **options)


def png_of(widget) -> bytes:
    """The first picture of what is shown where no kernel runs."""
    bundle, about = widget._repr_mimebundle_()
    assert about == {}
    assert "<script" not in bundle["text/html"]
    picture = base64.b64decode(bundle["image/png"])
    assert picture[:4] == b"\x89PNG"
    assert bundle["image/png"] in bundle["text/html"]
    return picture


def test_importing_widgets_is_cheap_and_each_comes_when_it_is_asked_for():
    code = (
        "import sys, mira_app.widgets as mw; assert not {'panel', 'torch', 'bokeh'} & set(sys.modules); "
        "mw.StudyView; print(*sorted(mw.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "LearningRateTest", "ModelForm", "StudyView", "TopicExplorer", "TrainingMonitor", "load",
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="nonsense"):
        mw.nonsense  # noqa: B018


# --- the form -------------------------------------------------------------------------------------


def test_a_form_is_set_from_python_and_makes_the_model(cells):
    form = mw.ModelForm(cells, num_topics=5, topic_effect_scale=None)
    assert form.given == {"feature_type": "expression", "num_topics": 5, "topic_effect_scale": None}
    heard = []
    form.param.watch(lambda e: heard.append(e.new), "given")
    form.given = {"num_topics": 7, "seed": 3}
    assert form.fields["num_topics"].widget.value == "7"
    assert form.given == {"feature_type": "expression", "num_topics": 7, "seed": 3}
    assert form.given in heard
    model = form.model()
    assert (model.num_topics, model.given) == (7, form.given)
    assert "num_topics=7" in form.code._boxes["Python"].object
    assert "load_demo" not in form.code._boxes["Python"].object

    form.given = {"num_topics": 1}
    assert "num_topics must be an integer of at least 2; got 1" in form.problem
    assert form.fields["num_topics"].widget.error_state
    assert "num_topics" not in form.given
    assert "Correct the marked option" in form.code._boxes["Python"].object
    with pytest.raises(OptionError, match="num_topics must be"):
        form.model()
    assert "num_topics must be" in form._repr_mimebundle_()[0]["text/html"]

    form.given = {"num_topics": 6}
    with pytest.raises(OptionError, match="did you mean num_topics"):
        form.given = {"num_topic": 9}
    assert form.given == {"feature_type": "expression", "num_topics": 6}
    with pytest.raises(OptionError, match="did you mean num_topics"):
        mw.ModelForm(cells, num_topic=9)


def test_a_form_of_a_file_says_the_same_as_a_command(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    form = mw.ModelForm(path, num_topics=6)
    shown = {name: box.object for name, box in form.code._boxes.items()}
    assert f"open_data(&#x27;{path}&#x27;)" in shown["Python"]
    assert "--num-topics 6" in shown["Command"]
    assert json.loads(shown["JSON"][5:-6].replace("&quot;", '"'))["model"]["num_topics"] == 6
    with pytest.raises(DataError):
        mw.ModelForm(tmp_path / "none.h5ad")


def test_what_a_form_shows_without_scripts_is_what_the_model_would_be(cells):
    cells = cells.copy()
    cells.obs["<b>bold</b>"] = "x"
    form = mw.ModelForm(cells, num_topics=5, categorical_covariates=["<b>bold</b>"])
    html = form.words()
    assert "<td>num_topics</td>" in html
    assert "<td>yours</td>" in html
    assert "<b>bold" not in html


# --- learning rates -------------------------------------------------------------------------------


def test_learning_rates_are_tested_moved_and_set(cells):
    model = make(cells)
    rates = mw.LearningRateTest(model, cells, num_steps=30, eval_every=1)
    assert rates.bounds is None
    with pytest.raises(OptionError, match="no bounds yet"):
        rates.apply()
    with pytest.raises(OptionError, match="two learning rates"):
        rates.bounds = (1e-3, 1e-2)
    assert rates.bounds is None
    assert "image/png" not in rates._repr_mimebundle_()[0]
    before = model.get_params()
    rates.run().wait()
    assert not rates.live
    low, high = rates.bounds
    assert 0 < low < high
    assert model.get_params() == before  # until somebody says so

    rates.bounds = (0.002, 0.04)
    box = rates._rates.figure._box
    assert (box.left, box.right) == (0.002, 0.04)
    box.right = 0.05  # as a hand does
    assert rates.bounds == (0.002, 0.05)
    with pytest.raises(OptionError, match="the lower one first"):
        rates.bounds = (0.05, 0.002)
    assert rates.bounds == (0.002, 0.05)
    assert rates.apply() == (0.002, 0.05)
    assert (model.min_learning_rate, model.max_learning_rate) == (0.002, 0.05)
    np.testing.assert_allclose(model.learning_rate_curve.bounds, (0.002, 0.05))
    picture = png_of(rates)

    again = mw.LearningRateTest(model, cells)  # what the model was tested for is shown
    assert again.bounds == (0.002, 0.05)
    assert abs(len(png_of(again)) - len(picture)) < 0.1 * len(picture)


def test_the_same_seed_gives_the_same_learning_rates_as_the_library(cells):
    rates = mw.LearningRateTest(make(cells), cells, num_steps=30, eval_every=1).run().wait()
    low, high = make(cells).get_learning_rate_bounds(cells, num_steps=30, eval_every=1, progress=False)
    assert rates.bounds == (float(f"{low:.3g}"), float(f"{high:.3g}"))


def test_a_test_of_learning_rates_is_stopped_and_one_that_fails_says_why(cells):
    rates = mw.LearningRateTest(make(cells), cells, num_steps=100_000, eval_every=1)
    rates.run()
    rates.stop()
    rates.wait()
    assert not rates.live
    wrong = cells.copy()
    wrong.X = wrong.X.astype(float) / 3
    failed = mw.LearningRateTest(make(cells), wrong).run().wait()
    assert failed.bounds is None
    assert "raw counts" in failed._rates.message[0].object
    with pytest.raises(OptionError, match="num_steps"):
        mw.LearningRateTest(make(cells), cells, num_steps=1)


# --- trainings ------------------------------------------------------------------------------------


def test_records_are_consumed_in_a_thread_and_give_the_model_that_fit_gives(cells):
    model = make(cells)
    monitor = mw.TrainingMonitor(model.fit_records(cells), num_epochs=4)
    assert monitor.wait(120) is monitor
    assert monitor.state == "finished"
    assert "epoch 4 of 4, step 16 of 16" in monitor.run.line.object
    assert list(monitor.run.curves.source.data["step"]) == list(range(1, 17))
    assert list(monitor.run.curves.epochs.data["loss"]) == [e.loss for e in model.history]
    assert f"{model.history[-1].loss:,.1f}" in monitor.run.numbers.object
    np.testing.assert_array_equal(model.topic_feature_compositions(),
                                  make(cells).fit(cells, progress=False).topic_feature_compositions())  # fmt: skip
    png_of(monitor)


def test_a_training_is_stopped_and_leaves_a_model(cells):
    model = make(cells, num_epochs=100_000)
    monitor = mw.TrainingMonitor(model.fit_records(cells))
    monitor._run.wait(0.2)
    monitor.stop()
    monitor.wait(120)
    assert monitor.state == "stopped"
    assert "<b>Stopped</b>" in monitor.run.line.object
    assert model.predict(cells).obsm["X_topic_compositions"].shape == (150, 4)


def test_a_training_that_fails_says_why_and_one_that_takes_long_can_be_left():
    def records():
        yield {"kind": "step", "step": 1, "epoch": 1, "loss": 3.0}
        raise ValueError("it <b>broke</b>")

    monitor = mw.TrainingMonitor(records()).wait(60)
    assert monitor.state == "failed"
    assert "it &lt;b&gt;broke" in monitor._message[0].object
    assert list(monitor.run.curves.source.data["loss"]) == [3.0]

    go = threading.Event()
    slow = mw.TrainingMonitor(r for r in [{"kind": "step", "step": 1, "epoch": 1}] if go.wait(60))
    with pytest.raises(TimeoutError, match="it goes on"):
        slow.wait(0.05)
    assert slow.live
    go.set()
    assert slow.wait(60).state == "finished"


def test_a_writer_and_a_history_are_drawn(cells):
    writer = mira.topics.Writer()
    monitor = mw.TrainingMonitor(writer)
    assert not monitor.run.curves.root.visible
    model = make(cells).fit(cells, writer=writer, progress=False)
    monitor.refresh()
    assert len(monitor.run.curves.source.data["step"]) == 16
    assert monitor.state == "recorded"

    history = mw.TrainingMonitor(model.history)
    assert history.run.curves.root.visible
    assert list(history.run.curves.epochs.data["loss"]) == [e.loss for e in model.history]
    png_of(history)
    with pytest.raises(OptionError, match="run must be the folder of a run"):
        mw.TrainingMonitor(5)


def test_a_runs_folder_is_followed_to_its_end(cells, tmp_path):
    path, folder = tmp_path / "cells.h5ad", tmp_path / "run"
    cells.write_h5ad(path)
    given = {"feature_type": "expression", "hidden": 16, "num_epochs": 4, "batch_size": 32, "num_topics": 4}
    jobs.write_spec(folder, data=str(path), model=given, name="run")
    monitor = mw.TrainingMonitor(folder)
    assert (monitor.state, monitor.live) == ("waiting", True)
    writer = mira.topics.Writer()
    make(cells).fit(cells, writer=writer, progress=False)
    lines = [json.dumps(r.to_dict()) + "\n" for r in writer.records]

    def told(state: str, n: int) -> None:
        (folder / "records.jsonl").write_text("".join(lines[:n]))
        status = {"state": state, "stage": "training", "num_epochs": 4, "num_steps": 16, "device": "cpu"}
        (folder / "status.json").write_text(json.dumps(status))

    told("running", 7)
    monitor.refresh()
    assert "Running, training</b> · epoch 2 of 4, step 6 of 16" in monitor.run.line.object
    monitor.stop()
    assert (folder / "stop").exists()  # which the run obeys
    assert "Stopping" in monitor.run.line.object
    told("stopped", len(lines))
    assert monitor.wait(60).state == "stopped"
    assert list(monitor.run.curves.source.data["step"]) == list(range(1, 17))
    assert monitor.run.name == "run"
    with pytest.raises(JobError, match="is not a job"):
        mw.TrainingMonitor(tmp_path)


def test_what_stands_alone_can_be_sent_to_a_browser(cells):
    for widget in (
        mw.ModelForm(cells), mw.LearningRateTest(make(cells), cells), mw.TrainingMonitor(mira.topics.Writer())
    ):  # fmt: skip
        root = widget.__panel__().get_root()
        assert len(root.references()) > 20
        widget.push()  # nobody listens
