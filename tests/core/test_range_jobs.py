"""The learning-rate range test as a job, and the curve that it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mira_core import cli, jobs
from mira_core.errors import JobError, OptionError
from mira_core.records import RangeRecord, from_dict
from mira_core.run import run_job
from mira_core.topics import load_model
from mira_core.training.range_test import LearningRateCurve, describe
from tests.core.test_range_test import TRIM, points
from tests.helpers import make

SMALL = {"num_topics": 4, "hidden": 16, "num_epochs": 2, "batch_size": 32, "seed": 0}
QUICK = {"num_steps": 40, "eval_every": 2}


@pytest.fixture
def data(cells, tmp_path) -> Path:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "job"


def curve(folder: Path) -> dict:
    return json.loads((folder / "result" / "curve.json").read_bytes())


def test_a_job_gives_the_numbers_of_the_library_call(data, folder, cells):
    jobs.write_spec(folder, data=str(data), model=SMALL, kind="range_test", range_test=QUICK)
    assert jobs.read_spec(folder)["kind"] == "range_test"
    command = [sys.executable, "-m", "mira_core.run", str(folder)]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = make(cells, num_epochs=2)
    bounds = model.get_learning_rate_bounds(cells, **QUICK, progress=False)
    told = curve(folder)
    assert tuple(told["bounds"]) == bounds
    assert LearningRateCurve.from_dict(told) == model.learning_rate_curve
    assert (told["num_steps"], told["lower_bound_lr"], told["stopped"]) == (40, 1e-6, False)
    status = jobs.read_status(folder)
    n = len(told["rates"])
    assert (status.state, status.kind, status.step, status.num_steps) == ("finished", "range_test", n, 40)
    records = [from_dict(r) for r in jobs.read_records(folder)[0]]
    assert records == [RangeRecord(i + 1, told["rates"][i], told["losses"][i]) for i in range(n)]
    assert len(told["spline"]["rates"]) == len(told["spline"]["losses"]) == 200
    assert np.allclose(told["spline"]["losses"], model.learning_rate_curve.smoothed(np.array(told["spline"]["rates"])))


def test_the_curve_of_a_test_is_saved_with_the_model_of_a_fit(data, folder, tmp_path):
    jobs.write_spec(folder, data=str(data), model=SMALL, kind="range_test", range_test=QUICK)
    run_job(folder)
    fit = tmp_path / "fit"
    jobs.write_spec(fit, data=str(data), model=SMALL, embedding=False, learning_rate_curve=curve(folder))
    assert run_job(fit).state == "finished"
    model = load_model(fit / "result" / "model.safetensors")
    assert model.learning_rate_curve == LearningRateCurve.from_dict(curve(folder))


@pytest.mark.parametrize(("after", "found"), [(5, False), (30, True)])
def test_a_stopped_test_keeps_what_it_measured(data, folder, after, found):
    jobs.write_spec(folder, data=str(data), model=SMALL, kind="range_test", range_test=QUICK)
    status = run_job(folder, lambda r: jobs.request_stop(folder) if r.step == after else None)
    told = curve(folder)
    assert status.state == "stopped"
    assert len(told["rates"]) == after == len(jobs.read_records(folder)[0])
    assert told["stopped"]
    assert not told["diverged"]
    assert (told["spline"] is not None) == found
    assert any(f"stopped after {after} of 40" in w for w in told["warnings"])
    with pytest.raises(JobError, match="range test in .* was stopped before; start a new one"):
        jobs.resume(folder)


def test_a_test_that_fails_says_why(data, folder):
    jobs.write_spec(folder, data=str(data), model={**SMALL, "counts_layer": "raw"}, kind="range_test")
    status = run_job(folder)
    assert (status.state, status.error["type"]) == ("failed", "DataError")
    assert not (folder / "result").exists()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"kind": "train"}, JobError, "kind must be one of fit, range_test, tune, gradient_tune, predict; got 'train'"),
        ({"range_test": {}}, JobError, "range_test goes with jobs of kind 'range_test' only"),
        ({"kind": "range_test", "test_size": 0.1}, JobError, "test_size goes with jobs of kind 'fit' only"),
        (
            {"kind": "range_test", "range_test": {"num_step": 3}},
            OptionError,
            "no option 'num_step'; did you mean num_st",
        ),
        ({"kind": "range_test", "range_test": {"num_steps": 3}}, OptionError, "num_steps must be at least 12"),
        ({"kind": "range_test", "range_test": {"eval_every": 1.5}}, OptionError, "eval_every must be an integer"),
        ({"kind": "range_test", "range_test": 3}, JobError, "range_test must hold options by name"),
        ({"learning_rate_curve": {"rates": []}}, JobError, "learning_rate_curve must be the result of a range test"),
    ],
)
def test_what_does_not_go_together_is_refused(folder, given, error, message):
    with pytest.raises(error, match=message):
        jobs.write_spec(folder, data="demo:simulated", model={}, **given)
    assert not folder.exists()


# --- what is said of a curve ----------------------------------------------------------------------


def test_a_curve_that_falls_has_bounds_and_no_warnings():
    told = describe(points(), 100, TRIM)
    assert told["warnings"] == []
    assert told["bounds"][0] < told["bounds"][1] < told["falling"][1]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_a_loss_that_never_fell_is_told_not_raised():
    told = describe([(r, 3 + 0.01 * i) for i, (r, _) in enumerate(points())], 100, TRIM)
    assert told["bounds"] is told["falling"] is None
    assert told["warnings"][0].startswith("The loss falls at none of the learning rates tried.")
    assert told["spline"] is not None


def test_where_it_diverged_is_told():
    told = describe(points()[:80], 100, TRIM)
    assert told["diverged"]
    assert told["warnings"][0].startswith("The loss ran away above a learning rate of ")
    few = describe(points()[:3], 100, TRIM)
    assert few["bounds"] is few["spline"] is None
    assert "ran away after 3 of 100 learning rates" in few["warnings"][0]


def test_trims_that_leave_nothing_are_told():
    assert any("trim less" in w for w in describe(points(), 100, (20.0, 20.0))["warnings"])


# --- command line ---------------------------------------------------------------------------------


def test_the_command_line_tells_the_bounds_as_options(data, folder, cells, capsys):
    words = ["--feature-type", "expression", "--num-topics", "4", "--hidden", "16", "--batch-size", "32", "--seed", "0"]
    steps = ["--num-steps", "40", "--eval-every", "2"]
    assert cli.main(["lr-test", str(data), "-o", str(folder), *words, *steps]) == 0
    low, high = make(cells).get_learning_rate_bounds(cells, **QUICK, progress=False)
    assert f"--min-learning-rate {low:.3g} --max-learning-rate {high:.3g}" in capsys.readouterr().out


def test_the_command_line_goes_on_and_estimates(data, folder, capsys):
    jobs.write_spec(folder, data=str(data), model=SMALL, embedding=False)
    run_job(folder, lambda r: jobs.request_stop(folder) if r.step == 12 else None)
    assert cli.main(["resume", str(folder)]) == 0
    assert "finished" in capsys.readouterr().out
    assert cli.main(["resume", str(folder)]) == 2
    assert "has finished before" in capsys.readouterr().err
    assert cli.main(["estimate", str(data), "--feature-type", "expression", "--test-size", "0.1"]) == 0
    assert "about" in capsys.readouterr().out
