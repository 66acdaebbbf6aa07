"""Tuning in many processes, on real servers, with processes and servers killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import anndata as ad
import optuna
import psutil
import pytest
from optuna.trial import TrialState

import mira_core as mira
from mira_core.errors import TuningError
from mira_core.tuning import table, workers
from tests.helpers import make_tuner, same
from tests.servers import RedisServer, postgres_server, wait_until

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the best model has")]


@pytest.fixture
def redis_server(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def postgres(tmp_path_factory):
    """URL of an empty database on a PostgreSQL of its own."""
    with postgres_server(tmp_path_factory.mktemp("postgres")) as url:
        yield url


def tuner_of(cells, **options):
    return make_tuner(cells, **{"max_trials": 8, "min_trials": 8, "stop_condition": 8, **options})


def check_account(tuner, at_least: int) -> Counter:
    """Every trial that began has ended, and every completed one has its model."""
    trials = tuner.study.get_trials(deepcopy=False)
    count = Counter(t.state for t in trials)
    assert len(trials) >= at_least
    assert count[TrialState.COMPLETE] + count[TrialState.PRUNED] + count[TrialState.FAIL] == len(trials)
    assert count[TrialState.COMPLETE] > 0
    for t in trials:
        if t.state == TrialState.COMPLETE:
            assert tuner.fetch_weights(t.number).num_topics == t.params["num_topics"]
        if t.state == TrialState.FAIL:
            assert t.user_attrs["failure"]["message"]
    return count


# --- storages and jobs ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [2, 5])
def test_processes_share_a_study_on_sqlite(folder, cells, n_jobs, capfd):
    tuner = tuner_of(cells, n_jobs=n_jobs)
    tuner.fit(cells)
    count = check_account(tuner, 8)
    assert count[TrialState.FAIL] == 0
    assert len(tuner.study.trials) <= 8 + n_jobs - 1
    assert len({t.user_attrs["process"]["pid"] for t in tuner.study.trials}) > 1
    assert "locked" not in capfd.readouterr().err


def test_many_processes_share_a_study_on_redis(folder, cells, redis_server):
    tuner = tuner_of(cells, n_jobs=8, storage=mira.topics.Redis(redis_server.url), max_trials=12, min_trials=12)
    tuner.fit(cells)
    assert check_account(tuner, 12)[TrialState.FAIL] == 0


def test_a_study_on_postgresql(folder, cells, postgres):
    tuner = tuner_of(cells, n_jobs=2, storage=postgres)
    best = tuner.fit(cells)
    check_account(tuner, 8)
    again = mira.topics.BayesianTuner.load(model=tuner.model, save_name="a/study", storage=postgres)
    assert same(again.fetch_best_weights().network.state_dict(), best.network.state_dict())


def test_the_first_trials_are_the_same_in_one_process_and_in_many(folder, cells):
    one = tuner_of(cells, max_trials=4, min_trials=4, pruner=optuna.pruners.NopPruner())
    one.fit(cells)
    many = tuner_of(cells, max_trials=4, min_trials=4, pruner=optuna.pruners.NopPruner(), n_jobs=2,
                    storage="sqlite:///other.db", model_dir="others")  # fmt: skip
    many.fit(cells)
    for a, b in zip(one.study.trials, many.study.trials, strict=False):
        assert a.params == b.params
        assert a.value == pytest.approx(b.value, rel=1e-5)


def test_dask_runs_the_trials_and_loses_a_worker(folder, cells, monkeypatch):
    from distributed import Client, LocalCluster

    tuner = tuner_of(cells, n_jobs=2, max_trials=10, min_trials=10, model={"num_epochs": 30})
    killed = []

    def kill_one() -> None:
        begun = running(tuner)
        if not killed and begun and begun[-1].number >= 2:
            killed.append(begun[-1].number)
            os.kill(begun[-1].user_attrs["process"]["pid"], signal.SIGKILL)

    honest = table.Table._draw
    monkeypatch.setattr(table.Table, "_draw", lambda self: (honest(self), kill_one()))
    monkeypatch.setattr(table, "EVERY", 0.2)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        tuner.fit(cells, executor=client.get_executor())
    assert killed
    count = check_account(tuner, 10)
    assert count[TrialState.FAIL] == 1
    assert "is gone" in tuner.study.trials[killed[0]].user_attrs["failure"]["message"]


@pytest.mark.parametrize("kind", ["sqlite", "redis", "postgresql"])
def test_the_documented_example_runs_as_written_on_real_cells(kind, folder, shared_data, request):
    storage: dict[str, object] = {}
    if kind == "redis":
        storage = {"storage": mira.topics.Redis(request.getfixturevalue("redis_server").url)}
    if kind == "postgresql":
        storage = {"storage": request.getfixturevalue("postgres")}
    small = {**storage, "max_trials": 3, "min_trials": 3}
    data = ad.read_h5ad(shared_data / "pbmc3k_hvg2000.h5ad")
    model = mira.topics.make_model(*data.shape, feature_type="expression", num_epochs=6)
    model.get_learning_rate_bounds(data)
    tuner = mira.topics.BayesianTuner(
        model=model,
        min_topics=5,
        max_topics=55,
        n_jobs=1,
        save_name="tuning/rna/0",
        **small,
    )
    tuner.fit(data)
    model = tuner.fetch_best_weights()
    assert check_account(tuner, 3)[TrialState.COMPLETE]
    assert model.num_topics == tuner.study.best_params["num_topics"]
    again = mira.topics.BayesianTuner.load(model=model, save_name="tuning/rna/0", **storage)
    assert [t["value"] for t in again.trial_attrs] == [t["value"] for t in tuner.trial_attrs]


# --- kills ----------------------------------------------------------------------------------------

SCRIPT = """
import sys, mira_core as mira
from mira_core.data import simulate_expression
from tests.helpers import make
cells = simulate_expression(150, 40, 4, seed=0)
model = make(cells, num_epochs=60)
mira.topics.BayesianTuner(
    model=model, save_name="a/study", min_topics=2, max_topics=12, max_trials=8, min_trials=8, stop_condition=8,
    seed=1, n_jobs=int(sys.argv[1]), storage=sys.argv[2],
).fit(cells)
"""


def tune_apart(n_jobs: int, storage: str) -> subprocess.Popen[bytes]:
    """Tune as a script of a user would, without a guard around it."""
    Path("tune.py").write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    log = open("log.txt", "ab")  # noqa: SIM115 - the process keeps it
    return subprocess.Popen(
        [sys.executable, "tune.py", str(n_jobs), storage],
        stdout=log,
        stderr=log,
        env={**os.environ, "PYTHONPATH": path},
    )


def running(tuner) -> list[optuna.trial.FrozenTrial]:
    with contextlib.suppress(Exception):  # not there yet
        found = tuner.study.get_trials(deepcopy=False)
        return [t for t in found if t.state == TrialState.RUNNING and "process" in t.user_attrs]
    return []


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_killed_tuning_goes_on_where_it_was(folder, cells, n_jobs):
    storage = "sqlite:///mira-tuning.db"
    tuner = tuner_of(cells, model={"num_epochs": 60}, storage=storage, n_jobs=n_jobs)
    first = tune_apart(n_jobs, storage)
    wait_until(lambda: any(t.number >= 2 for t in running(tuner)), 60, "third trial")
    pids = {t.user_attrs["process"]["pid"] for t in running(tuner)}
    first.kill()
    first.wait()
    completed = {t.number: t.value for t in tuner.study.trials if t.state == TrialState.COMPLETE}
    before = {n: tuner._plan.weights(n).read_bytes() for n in completed}
    # workers notice that their tuner is gone
    wait_until(lambda: not any(psutil.pid_exists(p) for p in pids - {first.pid}), 30, "end of the workers")
    second = tune_apart(n_jobs, storage)
    assert second.wait(timeout=180) == 0
    check_account(tuner, 8)
    assert {n: tuner._plan.weights(n).read_bytes() for n in completed} == before
    assert {n: tuner.study.trials[n].value for n in completed} == completed


def test_a_killed_worker_is_replaced_and_its_trial_recognised_at_once(folder, cells):
    storage = "sqlite:///mira-tuning.db"
    tuner = tuner_of(cells, model={"num_epochs": 60}, storage=storage, n_jobs=2)
    process = tune_apart(2, storage)
    wait_until(lambda: any(t.number >= 1 for t in running(tuner)), 60, "second trial")
    victim = running(tuner)[-1]
    os.kill(victim.user_attrs["process"]["pid"], signal.SIGKILL)
    wait_until(lambda: tuner.study.trials[victim.number].state == TrialState.FAIL, 60, "note of the death")
    assert process.wait(timeout=180) == 0
    assert check_account(tuner, 8)[TrialState.FAIL] == 1
    pids = {t.user_attrs["process"]["pid"] for t in tuner.study.trials}
    assert len(pids) == 3


def test_a_tuning_waits_for_a_redis_that_was_killed(folder, cells, redis_server):
    tuner = tuner_of(cells, model={"num_epochs": 60}, storage=mira.topics.Redis(redis_server.url), n_jobs=2)
    process = tune_apart(2, redis_server.url)
    wait_until(lambda: any(t.number >= 1 for t in running(tuner)), 60, "second trial")
    completed = {t.number: t.value for t in tuner.study.trials if t.state == TrialState.COMPLETE}
    redis_server.kill()
    time.sleep(10)
    redis_server.start()
    assert process.wait(timeout=180) == 0, Path("log.txt").read_text()[-3000:]
    after = tuner_of(cells, model={"num_epochs": 60}, storage=mira.topics.Redis(redis_server.url), n_jobs=2)
    check_account(after, 8)
    assert {n: after.study.trials[n].value for n in completed} == completed


# --- the command line -----------------------------------------------------------------------------


def test_the_command_line_tunes_and_a_worker_joins(folder, cells):
    cells.write_h5ad("cells.h5ad")
    mira_command = [sys.executable, "-m", "mira_core.cli"]
    small = ["--max-trials", "6", "--min-trials", "6", "--min-topics", "2", "--max-topics", "9", "--num-epochs", "60"]
    model = ["--feature-type", "expression", "--hidden", "16", "--batch-size", "32"]
    study = ["--study", "x/y", "--storage", "sqlite:///s.db"]
    tuning = subprocess.Popen([*mira_command, "tune", "cells.h5ad", *study, *small, *model, "--n-jobs", "2",
                               "-o", "best.safetensors"], stderr=subprocess.PIPE, text=True)  # fmt: skip
    opened = None

    def begun() -> bool:
        nonlocal opened
        with contextlib.suppress(Exception):
            opened = optuna.load_study(study_name="x/y", storage="sqlite:///s.db")
            return len(opened.trials) > 0
        return False

    wait_until(begun, 60, "first trial")
    by_hand = subprocess.run([*mira_command, "worker", *study], capture_output=True, text=True, timeout=120)
    assert by_hand.returncode == 0, by_hand.stderr
    assert "ended, as" in by_hand.stdout
    assert tuning.wait(timeout=120) == 0, tuning.stderr.read()
    best = mira.topics.load_model("best.safetensors")
    assert best.num_topics == opened.best_trial.params["num_topics"]


def test_a_worker_of_a_study_whose_data_are_in_memory_says_what_to_do(folder, cells):
    tuner_of(cells, max_trials=1, min_trials=1).fit(cells)
    with pytest.raises(TuningError, match="n_jobs above 1"):
        workers.run_worker({"storage": "sqlite:///mira-tuning.db", "study": "a/study"})
