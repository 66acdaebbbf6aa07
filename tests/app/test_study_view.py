"""A study in a notebook: what is drawn, selected and read again, without the app's workspace or a server."""

from __future__ import annotations

import optuna
import pytest

import mira_core as mira
from mira_app.widgets.study import StudyView
from mira_app.widgets.trials import frame_of
from tests.helpers import make_tuner

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore:the best model has")


@pytest.fixture
def tuner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = mira.data.simulate_expression(150, 40, 4, seed=0)
    tuner = make_tuner(cells, "lab/rna/1", max_trials=4, min_trials=4)
    tuner.fit(cells)
    return tuner


def test_a_study_is_drawn_selected_and_read_again(tuner):
    view = StudyView(tuner, every=None)
    source = view._trials.figures.source
    assert list(source.data["number"]) == [0, 1, 2, 3]
    assert "lab/rna/1: finished" in view._line.object
    assert "Select a trial" in view._head.object

    source.selected.indices = [2]  # as a click in the browser does
    assert view.selected == [2]
    assert view._trials.table.table.selection == [2]
    assert "<b>Trial 2</b>" in view._head.object
    assert "num_topics" in view._story.object

    view._trials.table.table.selection = [1]
    assert view.selected == [1]
    assert source.selected.indices == [1]

    view.selected = [3, 99]
    assert view.selected == [3]
    assert (source.selected.indices, view._trials.table.table.selection) == ([3], [3])

    before = view.reading
    view.refresh()
    assert view.reading is before
    study = tuner.study
    study.add_trial(optuna.create_trial(
        params=study.trials[0].params, distributions=study.trials[0].distributions, value=150.0
    ))  # fmt: skip
    view.refresh()
    assert list(source.data["number"]) == [0, 1, 2, 3, 4]
    assert len(view._trials.table.table.value) == 5
    assert view.selected == [3]
    assert source in view.__panel__().get_root().references()  # all of it can be sent to a browser


def test_a_study_of_others_is_drawn_and_one_that_is_gone_is_told():
    study = optuna.create_study(study_name="not ours")
    study.optimize(lambda t: t.suggest_float("x", 0, 1) ** 2, n_trials=3)
    view = StudyView(study, every=None)
    view.selected = [0, 1]
    assert "2 trials are selected" in view._head.object
    assert view._trials.figures.names["x"]
    optuna.delete_study(study_name="not ours", storage=study._storage)
    view.refresh()
    assert "was deleted" in view._line.object


def test_small_numbers_are_told_by_their_first_digits():
    trials = [
        {"number": i, "weight_decay": v} for i, v in enumerate((2.3456789e-5, 7e-7, -174.16374, 0.0, float("nan")))
    ]
    told = frame_of(trials)["weight_decay"].tolist()
    assert told[:4] == [2.34568e-5, 7e-7, -174.164, 0.0]
    assert told[4] != told[4]
    assert frame_of(trials, None)["weight_decay"][0] == 2.3456789e-5
