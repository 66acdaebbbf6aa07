"""A job's folder: specification, claim, records, status, and its life in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import numpy as np
import psutil
import pytest

from mira_core import jobs, processes
from mira_core.errors import JobError, MiraError, OptionError
from mira_core.records import EpochRecord, StepRecord, from_dict
from mira_core.run import main, run_job
from mira_core.topics import load_model
from tests.helpers import arrays, make, same, with_columns

SMALL = {"num_topics": 4, "hidden": 16, "num_epochs": 3, "batch_size": 32, "seed": 0}
ENDLESS = {**SMALL, "num_epochs": 1_000_000}
OTHER_HOST = {"host": "elsewhere", "pid": 1, "process_started": 0.0}


@pytest.fixture
def data(cells, tmp_path) -> Path:
    with_columns(cells).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "job"


def until(true: Callable[[], object], what: str, seconds: float = 90) -> None:
    """Wait until something holds, with a deadline."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def start() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Start jobs as processes, which end with the test."""
    started = []

    def popen(folder: Path) -> subprocess.Popen[str]:
        log = open(folder / "log.txt", "a")  # noqa: SIM115
        command = [sys.executable, "-m", "mira_core.run", str(folder)]
        started.append(subprocess.Popen(command, stdout=log, stderr=log, text=True))
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        process.wait()


def n_steps(folder: Path) -> int:
    return sum(r["kind"] == "step" for r in jobs.read_records(folder)[0])


def dead_process() -> dict:
    """The name of a process of this host that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    named = {
        "host": socket.gethostname(),
        "pid": process.pid,
        "process_started": psutil.Process(process.pid).create_time(),
    }
    process.communicate(b"\n")
    return named


def say(folder: Path, process: dict | None = None, **status: object) -> None:
    """Write a folder's process.json and status.json by hand."""
    folder.mkdir(exist_ok=True)
    if process is not None:
        (folder / "process.json").write_text(json.dumps(process))
    if status:
        (folder / "status.json").write_text(json.dumps(status))


# --- specification --------------------------------------------------------------------------------


def test_a_spec_is_written_and_read(data, folder, monkeypatch):
    monkeypatch.chdir(data.parent)
    jobs.write_spec(
        folder, data="cells.h5ad", model={"num_topics": np.int64(4), "extra_features_keys": "a"}, name="First"
    )
    spec = jobs.read_spec(folder)
    assert spec["data"] == str(data)  # wherever it is run from
    assert spec["model"] == {"num_topics": 4, "extra_features_keys": ["a"]}
    assert (spec["name"], spec["kind"], spec["format"], spec["embedding"]) == ("First", "fit", 1, True)
    assert abs(spec["created"] - time.time()) < 60
    assert jobs.read_status(folder).state == "waiting"


def test_the_name_is_the_folders_unless_given(data, folder):
    jobs.write_spec(folder, data=str(data), model={}, embedding=False)
    assert jobs.read_spec(folder)["name"] == "job"
    assert jobs.read_spec(folder)["embedding"] is False


def test_demos_are_data_too(folder):
    jobs.write_spec(folder, data="demo:simulated", model={})
    assert jobs.read_spec(folder)["data"] == "demo:simulated"


def test_a_folder_in_use_is_refused_and_left_alone(data, folder):
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    with pytest.raises(JobError, match="job must not exist or be empty; choose another folder"):
        jobs.write_spec(folder, data=str(data), model={})
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]


def test_an_empty_folder_may_be_used(data, folder):
    folder.mkdir()
    jobs.write_spec(folder, data=str(data), model={})
    assert jobs.read_spec(folder)


def test_a_file_in_the_place_of_the_folder_is_a_job_error(data, folder):
    folder.write_text("a file")
    with pytest.raises(JobError, match="job must not exist or be empty"):
        jobs.write_spec(folder, data=str(data), model={})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"data": "/nothing.h5ad"}, JobError, r"there is no file /nothing.h5ad"),
        (
            {"data": "demo:nothing"},
            JobError,
            "no demo 'demo:nothing'; choose one of demo:pbmc700, demo:simulated",
        ),
        ({"model": {"num_topic": 4}}, OptionError, "did you mean num_topics"),
        ({"model": {"num_topics": 0}}, OptionError, "num_topics must be an integer"),
        ({"model": {"mask_dropout": 0.1}}, OptionError, r"mask_dropout applies to models with covariates \(CODAL\)"),
    ],
)
def test_a_wrong_spec_is_refused_before_anything_is_written(folder, given, error, message):
    with pytest.raises(error, match=message):
        jobs.write_spec(folder, **{"data": "demo:simulated", "model": {}, **given})
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has format 99, kind 'fit'; this version knows 'fit', 'range_test', 'tune', .* of 1"),
        ({"format": "x"}, "has format x"),
        ({"kind": "train"}, "kind 'train'"),
        ({"data": 3}, "is damaged: data must be text and model an object"),
        ({"model": []}, "is damaged: data must be text and model an object"),
        ({"model": None}, "is damaged: data must be text and model an object"),
    ],
)
def test_a_spec_of_wrong_content_is_a_job_error(folder, change, message):
    jobs.write_spec(folder, data="demo:simulated", model={})
    spec = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**spec, **change}))
    with pytest.raises(JobError, match=message):
        jobs.read_spec(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"format": 1}', "\xff"])
def test_a_damaged_spec_is_a_job_error(folder, text):
    folder.mkdir()
    (folder / "job.json").write_text(text, encoding="latin-1")
    with pytest.raises(JobError, match="job.json is damaged"):
        jobs.read_spec(folder)


def test_wrong_options_in_a_spec_are_option_errors(folder):
    jobs.write_spec(folder, data="demo:simulated", model={})
    spec = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**spec, "model": {"num_topic": 3}}))
    with pytest.raises(OptionError, match="did you mean num_topics"):
        jobs.read_spec(folder)


def test_a_folder_without_a_spec_is_no_job(tmp_path):
    with pytest.raises(JobError, match="is not a job: it has no job.json"):
        jobs.read_spec(tmp_path)
    with pytest.raises(JobError, match="is not a job: it has no job.json"):
        jobs.read_spec(tmp_path / "nothing")


# --- records --------------------------------------------------------------------------------------


def test_records_are_read_on_from_where_one_stopped(folder):
    folder.mkdir()
    assert jobs.read_records(folder) == ([], 0)
    path = folder / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n')
    records, offset = jobs.read_records(folder)
    assert records == [{"a": 1}, {"a": 2}]
    assert jobs.read_records(folder, offset) == ([], offset)
    with open(path, "ab") as f:
        f.write('{"ä": "3"}\n'.encode())
    assert jobs.read_records(folder, offset)[0] == [{"ä": "3"}]


def test_a_line_still_being_written_is_left_for_later(folder):
    folder.mkdir()
    path = folder / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": ')
    records, offset = jobs.read_records(folder)
    assert records == [{"a": 1}]
    with open(path, "ab") as f:
        f.write(b"2}\n")
    assert jobs.read_records(folder, offset)[0] == [{"a": 2}]


def test_a_line_torn_by_a_kill_is_passed_over(folder):
    folder.mkdir()
    (folder / "records.jsonl").write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n')
    assert jobs.read_records(folder)[0] == [{"a": 1}, {"a": 3}]


# --- status and proof of life ---------------------------------------------------------------------


def test_a_running_job_is_running_as_long_as_its_process_lives(folder):
    say(folder, processes.this_process(), state="running", heartbeat=0)
    assert jobs.read_status(folder).state == "running"
    say(folder, dead_process())
    assert jobs.read_status(folder).state == "died"


def test_another_process_with_the_same_pid_is_not_the_job(folder):
    told = processes.this_process()
    say(folder, {**told, "ticks": (told["ticks"] or 0) + 1, "process_started": 12345.0}, state="running")
    assert jobs.read_status(folder).state == "died"


def test_a_job_of_another_host_is_told_by_its_heartbeat(folder):
    say(folder, OTHER_HOST, state="running", heartbeat=time.time())
    assert jobs.read_status(folder).state == "running"
    say(folder, OTHER_HOST, state="running", heartbeat=time.time() - 2 * jobs.SILENT_AFTER)
    assert jobs.read_status(folder).state == "silent"


@pytest.mark.parametrize("process", [None, "", "{"])
@pytest.mark.parametrize("told", ["heartbeat", "started", None])
def test_a_job_of_which_nobody_knows_who_runs_it_has_died_once_its_heart_is_still(folder, process, told):
    def say_at(when: float) -> None:
        say(folder, state="running", **({} if told is None else {told: when}))
        os.utime(folder / "status.json", (when, when))

    say_at(time.time())
    if process is not None:
        (folder / "process.json").write_text(process)
    assert jobs.read_status(folder).state == "running"
    say_at(time.time() - 2 * jobs.SILENT_AFTER)
    assert jobs.read_status(folder).state == "died"
    jobs.resume(folder)
    assert jobs.read_status(folder).state == "waiting"


def test_a_job_that_cannot_be_gone_on_with_for_now_stays_as_it_was(folder, monkeypatch):
    def full(*_) -> None:
        raise OSError("no space left on device")

    say(folder, dead_process(), state="running", heartbeat=time.time(), step=7)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr("mira_core.jobs.write_json", full)
        with pytest.raises(OSError, match="no space"):
            jobs.resume(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert jobs.read_status(folder).state == "died"
    jobs.resume(folder)
    assert {p.name for p in folder.iterdir()} == {"status.json"}


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_an_ended_job_stays_ended_whoever_lives(folder, state):
    say(folder, dead_process(), state=state)
    assert jobs.read_status(folder).state == state
    assert jobs.read_status(folder).ended_already


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unknown": 1}', '{"state": "finished", "of a later version": 1}'])
def test_a_status_that_cannot_be_read_is_no_crash(folder, text):
    folder.mkdir()
    (folder / "status.json").write_text(text)
    assert jobs.read_status(folder).state in ("waiting", "finished")


@pytest.mark.parametrize(
    "process",
    [{}, {"pid": "x"}, {"pid": 1}, {"pid": -5, "process_started": 0}, {"pid": None, "process_started": 1}],
)
def test_a_process_that_is_not_named_well_is_not_alive(process):
    assert not processes.is_alive(process)


def test_this_process_is_alive():
    assert processes.is_alive(processes.this_process())
    assert processes.this_process()["pid"] == os.getpid()


def test_time_left_is_estimated_from_the_steps_done():
    s = jobs.Status(state="running", stage="training", training_started=100.0, heartbeat=110.0, step=20, num_steps=100)
    assert s.seconds_left() == pytest.approx(40.0)
    assert jobs.Status(state="running", stage="training").seconds_left() is None
    assert jobs.Status(state="finished", stage="done", step=3, num_steps=3, training_started=1.0).seconds_left() is None


# --- claim ----------------------------------------------------------------------------------------


def test_a_waiting_job_is_claimed_by_this_process(folder):
    folder.mkdir()
    jobs.claim(folder)
    assert json.loads((folder / "process.json").read_text()) == processes.this_process()


def test_who_has_a_job_is_named_whole_or_not_at_all(folder, monkeypatch):
    def full(*_) -> None:
        raise OSError("no space left on device")

    folder.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            jobs.claim(folder)
    assert not list(folder.iterdir())
    monkeypatch.setattr("os.link", full)  # as where there are none
    jobs.claim(folder)
    assert [p.name for p in folder.iterdir()] == ["process.json"]
    with pytest.raises(JobError, match="is run by process"):
        jobs.claim(folder)


def test_one_of_many_that_want_a_job_has_it(folder):
    folder.mkdir()

    def claim(_) -> bool:
        try:
            return bool(jobs.claim(folder))
        except JobError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(40))) == 1
    assert [p.name for p in folder.iterdir()] == ["process.json"]


def test_a_job_whose_process_lives_cannot_be_claimed(folder):
    folder.mkdir()
    jobs.claim(folder)
    with pytest.raises(JobError, match=f"is run by process {os.getpid()} on {socket.gethostname()}"):
        jobs.claim(folder)


def test_a_job_of_another_host_cannot_be_claimed(folder):
    say(folder, OTHER_HOST, state="running", heartbeat=0)
    with pytest.raises(JobError, match="is run by process 1 on elsewhere"):
        jobs.claim(folder)


@pytest.mark.parametrize(
    ("state", "said"),
    [("finished", "before; start a new one"), ("failed", "before, and would fail again.*start a new one")],
)
def test_an_ended_job_cannot_be_claimed(folder, state, said):
    say(folder, state=state)
    with pytest.raises(JobError, match=f"(?i)has {state} {said} in another folder"):
        jobs.claim(folder)


def test_a_job_that_died_can_be_claimed(folder):
    say(folder, dead_process(), state="running")
    jobs.claim(folder)
    assert json.loads((folder / "process.json").read_text())["pid"] == os.getpid()


# --- running in this process ----------------------------------------------------------------------


def test_a_job_gives_the_model_and_the_topics_of_the_library_call(data, folder, cells):
    jobs.write_spec(folder, data=str(data), model=SMALL, embedding=False)
    heard = []
    status = run_job(folder, heard.append)
    assert (status.state, status.epoch, status.step, status.num_steps) == ("finished", 3, 27, 27)
    assert status.n_cells == 300
    assert status.ended >= status.training_started >= status.started
    assert jobs.read_status(folder) == status
    model = make(cells).fit(cells, progress=False)
    loaded = load_model(folder / "result" / "model.safetensors")
    assert same(arrays(loaded), arrays(model))
    out = ad.read_h5ad(folder / "result" / "cells.h5ad")
    assert np.array_equal(out.obsm["X_topic_compositions"], model.predict(cells).obsm["X_topic_compositions"])
    assert list(out.obs_names) == list(cells.obs_names)
    assert "X_umap" not in out.obsm
    assert out.X is None
    told = [from_dict(r) for r in jobs.read_records(folder)[0]]
    assert told == heard
    assert [r for r in told if isinstance(r, EpochRecord)] == loaded.history
    assert sum(isinstance(r, StepRecord) for r in told) == 27


@pytest.mark.parametrize(
    "options",
    [
        {"categorical_covariates": ["batch"]},
        {"feature_type": "accessibility", "atac_encoder": "fast"},
        {"feature_type": "accessibility", "atac_encoder": "skipDAN", "dan_on_cpu": True},
        {"topic_prior": "dirichlet_process"},
    ],
    ids=["CODAL", "fast", "skipDAN", "process"],
)
def test_jobs_of_every_family_give_the_model_of_the_library_call(data, folder, cells, options):
    jobs.write_spec(folder, data=str(data), model={**SMALL, **options, "num_epochs": 1}, embedding=False)
    assert run_job(folder).state == "finished"
    told = [from_dict(r) for r in jobs.read_records(folder)[0]]
    model = make(cells, **options, num_epochs=1).fit(cells, progress=False)
    assert same(arrays(load_model(folder / "result" / "model.safetensors")), arrays(model))
    assert [r.dependence != 0 for r in told if isinstance(r, EpochRecord)] == ["categorical_covariates" in options]


def test_signal_handlers_are_put_back_after_a_run(data, folder):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    jobs.write_spec(folder, data=str(data), model=SMALL, embedding=False)
    run_job(folder)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_stop_file_stops_at_the_next_step_and_keeps_what_is_there(data, folder):
    jobs.write_spec(folder, data=str(data), model=ENDLESS)
    seen = []

    def stop_later(record) -> None:
        seen.append(record)
        if len(seen) == 12:
            jobs.request_stop(folder)

    status = run_job(folder, stop_later)
    assert status.state == "stopped"
    assert len(seen) == 12
    assert len(jobs.read_records(folder)[0]) == 12
    assert load_model(folder / "result" / "model.safetensors").history == seen[9:10]
    assert ad.read_h5ad(folder / "result" / "cells.h5ad").obsm["X_topic_compositions"].shape == (300, 4)


def break_options(folder: Path, data: Path) -> str:
    spec = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**spec, "model": {"num_topic": 3}}))
    return "OptionError: there is no option 'num_topic'; did you mean num_topics?"


def break_layer(folder: Path, data: Path) -> str:
    spec = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**spec, "model": {"counts_layer": "raw"}}))
    return "DataError: there is no layer 'raw'. There are: none"


def remove_data(folder: Path, data: Path) -> str:
    data.unlink()
    return f"DataError: there is no file {data}"


def make_diverge(folder: Path, data: Path) -> str:
    spec = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**spec, "model": {**SMALL, "max_learning_rate": 1e9}}))
    return "TrainingError: the loss is no longer finite at step "


def ask_for_a_gpu(folder: Path, data: Path) -> str:
    spec = json.loads((folder / "job.json").read_text())
    accessible = {"feature_type": "accessibility", "use_cuda": False}
    (folder / "job.json").write_text(json.dumps({**spec, "model": accessible}))
    return "OptionError: the skipDAN encoder needs a GPU to train, and use_cuda is off. Set atac_encoder='fast'"


@pytest.mark.parametrize("broken", [break_options, break_layer, remove_data, make_diverge, ask_for_a_gpu])
def test_a_job_that_fails_says_why_and_leaves_no_half_results(data, folder, broken):
    jobs.write_spec(folder, data=str(data), model=SMALL)
    said = broken(folder, data)
    status = run_job(folder)
    assert status.state == "failed"
    assert status == jobs.read_status(folder)
    assert f"{status.error['type']}: {status.error['message']}".startswith(said)
    assert status.error["type"] in status.error["traceback"]
    assert status.ended
    assert not (folder / "result").exists()
    with pytest.raises(JobError, match="has failed before"):
        run_job(folder)


def test_a_folder_that_is_no_job_is_refused_and_left_alone(tmp_path, capsys):
    with pytest.raises(JobError, match="is not a job"):
        run_job(tmp_path / "nothing")
    other = tmp_path / "holidays"
    other.mkdir()
    (other / "photo.jpg").write_text("")
    with pytest.raises(JobError, match="is not a job"):
        run_job(other)
    assert [p.name for p in other.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_the_runner_takes_one_folder(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: python -m mira_core.run FOLDER" in capsys.readouterr().err


def test_a_job_computes_an_embedding_unless_told_otherwise(data, folder):
    jobs.write_spec(folder, data=str(data), model={**SMALL, "num_epochs": 1})
    assert run_job(folder).state == "finished"
    embedding = ad.read_h5ad(folder / "result" / "cells.h5ad").obsm["X_umap"]
    assert embedding.shape == (300, 2)
    assert np.isfinite(embedding).all()


# --- life in a process of its own -----------------------------------------------------------------


def test_a_job_runs_to_its_end_in_a_process(data, folder, start, cells):
    jobs.write_spec(folder, data=str(data), model=SMALL, embedding=False)
    process = start(folder)
    assert process.wait(120) == 0, (folder / "log.txt").read_text()
    status = jobs.read_status(folder)
    assert status.state == "finished"
    assert json.loads((folder / "process.json").read_text())["pid"] == process.pid
    assert same(
        arrays(load_model(folder / "result" / "model.safetensors")),
        arrays(make(cells).fit(cells, progress=False)),
    )
    again = start(folder)
    assert again.wait(60) == 2
    assert "has finished before" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_signal_in_mid_training_stops_and_keeps_model_and_records(data, folder, start, number):
    jobs.write_spec(folder, data=str(data), model=ENDLESS)
    process = start(folder)
    until(lambda: n_steps(folder) >= 12, "twelve steps")
    assert jobs.read_status(folder).state == "running"
    with pytest.raises(JobError, match=f"is run by process {process.pid} on "):
        run_job(folder)
    process.send_signal(number)
    assert process.wait(60) == 0
    status = jobs.read_status(folder)
    assert status.state == "stopped"
    records = [from_dict(r) for r in jobs.read_records(folder)[0]]
    model = load_model(folder / "result" / "model.safetensors")
    assert model.history == [r for r in records if isinstance(r, EpochRecord)]
    assert len(model.history) >= 1
    assert status.step == max(r.step for r in records)
    assert (folder / "result" / "cells.h5ad").is_file()


def test_a_killed_job_died_its_records_are_readable_and_it_can_be_run_again(data, folder, start):
    jobs.write_spec(folder, data=str(data), model=ENDLESS)
    process = start(folder)
    until(lambda: n_steps(folder) >= 12, "twelve steps")
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert jobs.read_status(folder).state == "died"
    assert jobs.read_status(folder).ended_already
    records = [from_dict(r) for r in jobs.read_records(folder)[0]]
    assert [r.step for r in records if isinstance(r, StepRecord)] == list(range(1, n_steps(folder) + 1))
    assert not (folder / "result").exists()
    with open(folder / "records.jsonl", "ab") as f:
        f.write(b'{"kind": "step", "step": 9')  # as a kill in the middle of a line leaves it
    spec = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**spec, "model": SMALL, "embedding": False}))
    assert run_job(folder).state == "finished"
    told = [from_dict(r) for r in jobs.read_records(folder)[0]]
    assert [r.step for r in told if isinstance(r, StepRecord)] == list(range(1, 28)), "records of one run only"
    assert [r for r in told if isinstance(r, EpochRecord)] == load_model(
        folder / "result" / "model.safetensors"
    ).history


def test_the_heart_beats_while_a_job_runs(data, folder, start):
    jobs.write_spec(folder, data=str(data), model=ENDLESS)
    start(folder)
    until(lambda: n_steps(folder) >= 1, "the first step")
    first = jobs.read_status(folder).heartbeat
    until(
        lambda: jobs.read_status(folder).heartbeat > first and jobs.read_status(folder).step > 0,
        "a heartbeat",
        20,
    )
    status = jobs.read_status(folder)
    assert (status.state, status.stage) == ("running", "training")
    assert status.seconds_left() > 0
    jobs.request_stop(folder)
    until(lambda: jobs.read_status(folder).ended_already, "the stop", 60)
    assert jobs.read_status(folder).state == "stopped"


def test_job_errors_are_errors_of_mira():
    assert issubclass(JobError, MiraError)
    assert issubclass(JobError, RuntimeError)
