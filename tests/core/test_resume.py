"""A training that was interrupted goes on, and gives the model of one that was not."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import safetensors

from mira_core import jobs
from mira_core.errors import CheckpointError, DataError, JobError, NotFitted
from mira_core.records import EpochRecord, StepRecord, from_dict
from mira_core.reporting import Reporter
from mira_core.run import run_job
from mira_core.running import fit
from mira_core.topics import load_model
from tests.helpers import FAMILIES, arrays, make, read_cells, same, with_columns

EPOCHS = 6
TOLD = {"seconds", "cells_per_second", "waiting", "device_use"}  # of the clock


def numbers(record) -> dict:
    """What a record tells, but for the time it took."""
    return {k: v for k, v in dataclasses.asdict(record).items() if k not in TOLD}


def interrupted(model, cells, path: Path, after: int, test=None) -> list:
    """Train until some records have come, and leave a checkpoint; return the records."""
    records, training = [], model.fit_cells(cells, test, resumable=True)
    for record in training:
        records.append(record)
        if len(records) == after:
            break
    model.save_checkpoint(path)
    training.close()
    return records


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("after", [10, 25], ids=["at the end of an epoch", "in mid-epoch"])
def test_a_training_gone_on_with_gives_the_model_of_one_that_was_not_interrupted(cells, tmp_path, family, after):
    options = {**FAMILIES[family], "num_epochs": EPOCHS}
    with_columns(cells)
    whole = make(cells, **options).fit(cells, progress=False)
    records = interrupted(make(cells, **options), read_cells(cells, **options), tmp_path / "c", after)
    model = load_model(tmp_path / "c")
    assert model.resumable == len(model.history) == after // 10
    assert not same(arrays(model), arrays(whole))
    told = [*records[: 10 * model.resumable], *model.resume_cells(read_cells(cells, **options))]
    assert same(arrays(model), arrays(whole))
    assert [numbers(r) for r in model.history] == [numbers(r) for r in whole.history]
    steps = [r for r in told if isinstance(r, StepRecord)]
    assert [r.step for r in steps] == list(range(1, 9 * EPOCHS + 1))
    assert model.seed_used == whole.seed_used


def test_it_can_be_interrupted_again_and_again(cells, tmp_path):
    whole = make(cells, num_epochs=EPOCHS, seed=None)
    records = list(whole.fit_cells(read_cells(cells), resumable=True))
    model = make(cells, num_epochs=EPOCHS, seed=whole.seed_used)
    interrupted(model, read_cells(cells), tmp_path / "c", 13)
    for epoch in (2, 3, 4):
        model = load_model(tmp_path / "c")
        training = model.resume_cells(read_cells(cells))
        for record in training:
            if isinstance(record, EpochRecord) and record.epoch == epoch:
                break
        model.save_checkpoint(tmp_path / "c")
        training.close()
    model = load_model(tmp_path / "c").resume(cells, progress=False)
    assert same(arrays(model), arrays(whole))
    assert len(records) == 10 * EPOCHS


def test_keeping_what_one_can_go_on_from_changes_nothing(cells):
    plain, kept = make(cells), make(cells)
    plain.fit(cells, progress=False)
    list(kept.fit_cells(read_cells(cells), resumable=True))
    assert same(arrays(plain), arrays(kept))


def test_a_checkpoint_is_a_model_too_and_holds_numbers_and_json_only(cells, tmp_path):
    model = make(cells)
    interrupted(model, read_cells(cells), tmp_path / "c", 15)
    with safetensors.safe_open(tmp_path / "c", framework="pt") as f:
        header = json.loads(f.metadata()["mira"])
        names = set(f.keys())
    assert header["training"]["epoch"] == 1
    assert {"training.generator", "training.optimiser.steps", "training.optimiser.mean.0"} <= names
    theta = load_model(tmp_path / "c").predict(cells.copy()).obsm["X_topic_compositions"]
    assert np.allclose(theta.sum(1), 1)


def test_a_model_that_ended_or_never_began_has_nothing_to_go_on_with(cells, tmp_path):
    model = make(cells).fit(cells, progress=False)
    with pytest.raises(NotFitted, match="nothing to go on from"):
        model.save_checkpoint(tmp_path / "c")
    model.save(tmp_path / "m")
    with pytest.raises(NotFitted, match="holds no training to go on with; load a checkpoint, or call fit"):
        load_model(tmp_path / "m").resume(cells)
    with pytest.raises(NotFitted, match="nothing to go on from before a resumable training has ended an epoch"):
        interrupted(make(cells), read_cells(cells), tmp_path / "c", 3)


def test_other_cells_or_features_are_refused(cells, tmp_path):
    interrupted(make(cells), read_cells(cells), tmp_path / "c", 15)
    n, g = cells.shape
    for other in (cells[:-1].copy(), cells[:, ::-1].copy()):
        with pytest.raises(DataError, match=f"was begun on {n} cells and {g} features, which must be the same"):
            load_model(tmp_path / "c").resume(other)


@pytest.mark.parametrize("what", ["order", "step", "epoch"])
def test_a_damaged_checkpoint_is_refused(cells, tmp_path, what):
    interrupted(make(cells), read_cells(cells), tmp_path / "c", 15)
    with safetensors.safe_open(tmp_path / "c", framework="pt") as f:
        header, tensors = json.loads(f.metadata()["mira"]), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    header["training"][what] = {"bit_generator": "x"}
    safetensors.torch.save_file(tensors, tmp_path / "d", {"mira": json.dumps(header)})
    with pytest.raises(CheckpointError, match="d is damaged"):
        load_model(tmp_path / "d")


# --- jobs -----------------------------------------------------------------------------------------

SMALL = {"num_topics": 4, "hidden": 16, "num_epochs": EPOCHS, "batch_size": 32, "seed": 0}
KINDS = {
    "expression": {},
    "CODAL": {"categorical_covariates": ["batch"]},
    "fast": {"feature_type": "accessibility", "atac_encoder": "fast"},
}


@pytest.fixture
def data(cells, tmp_path) -> Path:
    with_columns(cells).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def often(monkeypatch) -> None:
    """Keep a checkpoint after every epoch."""
    monkeypatch.setattr(fit, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(fit, "KEEP_SHARE", 1e9)


def records_of(folder: Path) -> list:
    return [from_dict(r) for r in jobs.read_records(folder)[0]]


def whole_of(cells, options) -> dict[str, np.ndarray]:
    return arrays(make(with_columns(cells), **{**SMALL, **options}).fit(cells, progress=False))


def result(folder: Path) -> dict[str, np.ndarray]:
    return arrays(load_model(folder / "result" / "model.safetensors"))


def check_whole(folder: Path, cells, options) -> None:
    """Check that a job ended as if it had not been interrupted."""
    assert same(result(folder), whole_of(cells, options))
    told = records_of(folder)
    assert [r.step for r in told if isinstance(r, StepRecord)] == list(range(1, 9 * EPOCHS + 1))
    assert [r.epoch for r in told if isinstance(r, EpochRecord)] == list(range(1, EPOCHS + 1))
    assert [r for r in told if isinstance(r, EpochRecord)] == load_model(folder / "result/model.safetensors").history
    assert not (folder / "checkpoint.safetensors").exists()


# A job as the runner runs it, that is killed as power that fails would, after so many records.
KILLED = """
import os, signal, sys
from pathlib import Path
from mira_core import run
from mira_core.running import fit
fit.KEEP_EVERY, fit.KEEP_SHARE = 0.0, 1e9
seen = []
def listen(record):
    seen.append(record)
    if len(seen) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
run.run_job(Path(sys.argv[1]), listen)
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [4, 37])
def test_a_job_killed_by_the_system_goes_on_to_the_same_model(data, cells, tmp_path, kind, after):
    folder = tmp_path / "job"
    jobs.write_spec(folder, data=str(data), model={**SMALL, **KINDS[kind]}, embedding=False)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(after)], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert jobs.read_status(folder).state == "died"
    assert jobs.why_not_resume(folder) == ""
    jobs.resume(folder)
    assert jobs.read_status(folder).state == "waiting"
    command = [sys.executable, "-m", "mira_core.run", str(folder)]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status, kept = jobs.read_status(folder), after // 10
    assert (status.state, status.resumed, status.resumed_epoch, status.resumed_step) == ("finished", 1, kept, 9 * kept)
    check_whole(folder, cells, KINDS[kind])


def test_a_stopped_job_keeps_its_model_and_goes_on_to_the_same_one(data, cells, tmp_path):
    folder = tmp_path / "job"
    jobs.write_spec(folder, data=str(data), model=SMALL, embedding=False)
    for i, after in enumerate((25, 12)):  # no checkpoint is due so soon: it is written because of the stop
        seen = []

        def stop(record, seen=seen, after=after) -> None:
            seen.append(record)
            if len(seen) == after:
                jobs.request_stop(folder)

        status = run_job(folder, stop)
        assert (status.state, status.resumed) == ("stopped", i)
        assert (folder / "result" / "cells.h5ad").is_file()
        assert len(load_model(folder / "result" / "model.safetensors").history) == status.epoch - 1
        assert load_model(folder / "checkpoint.safetensors").resumable == status.epoch - 1
    assert status.resumed_epoch == 2
    assert run_job(folder).state == "finished"
    check_whole(folder, cells, {})


def test_a_job_stopped_in_its_first_epoch_begins_anew(data, cells, tmp_path):
    folder = tmp_path / "job"
    jobs.write_spec(folder, data=str(data), model=SMALL, embedding=False)
    assert run_job(folder, lambda _: jobs.request_stop(folder)).step == 1
    assert run_job(folder).resumed_epoch == 0
    check_whole(folder, cells, {})


def test_a_resumed_job_keeps_the_seed_that_was_drawn(data, cells, tmp_path, often):
    folder = tmp_path / "job"
    options = {k: v for k, v in SMALL.items() if k != "seed"}
    jobs.write_spec(folder, data=str(data), model=options, embedding=False)
    run_job(folder, lambda r: jobs.request_stop(folder) if r.step == 20 else None)
    seed = load_model(folder / "checkpoint.safetensors").seed_used
    assert run_job(folder).state == "finished"
    check_whole(folder, cells, {"seed": seed})


def test_a_finished_job_refuses(data, tmp_path):
    folder = tmp_path / "job"
    jobs.write_spec(folder, data=str(data), model={**SMALL, "num_epochs": 1}, embedding=False)
    run_job(folder)
    assert "has finished before; start a new one" in jobs.why_not_resume(folder)
    with pytest.raises(JobError, match="has finished before; start a new one in another folder"):
        jobs.resume(folder)


def test_a_diverged_job_refuses_and_says_what_is_wanted(data, tmp_path, often):
    folder = tmp_path / "job"
    jobs.write_spec(folder, data=str(data), model={**SMALL, "max_learning_rate": 1e9}, embedding=False)
    assert run_job(folder).error["type"] == "TrainingError"
    with pytest.raises(JobError, match="has failed before, and would fail again.*with safer settings"):
        jobs.resume(folder)
    assert not (folder / "checkpoint.safetensors").exists()


def test_a_waiting_and_a_running_job_refuse(data, tmp_path):
    folder = tmp_path / "job"
    jobs.write_spec(folder, data=str(data), model={**SMALL, "num_epochs": 1}, embedding=False)
    with pytest.raises(JobError, match="is waiting; there is nothing to go on with"):
        jobs.resume(folder)
    said = []
    run_job(folder, lambda _: said.append(jobs.why_not_resume(folder)))
    assert all("is running" in s for s in said)


def test_a_job_that_ran_out_of_memory_goes_on(data, cells, tmp_path, often):
    folder = tmp_path / "job"
    jobs.write_spec(folder, data=str(data), model=SMALL, embedding=False)

    def run_out(record) -> None:
        if record.step == 30:
            raise MemoryError("no room")

    assert run_job(folder, run_out).error["type"] == "MemoryError"
    assert run_job(folder).resumed_epoch == 3
    check_whole(folder, cells, {})


def test_a_job_that_is_gone_on_with_as_soon_as_it_has_ended_keeps_its_checkpoint(data, tmp_path, often, monkeypatch):
    folder, leave = tmp_path / "job", Reporter.__exit__
    jobs.write_spec(folder, data=str(data), model=SMALL, embedding=False)

    def leave_and_resume(*arguments) -> None:
        leave(*arguments)
        (folder / "process.json").unlink()  # as if it had gone
        jobs.resume(folder)

    monkeypatch.setattr(Reporter, "__exit__", leave_and_resume)
    assert run_job(folder, lambda r: jobs.request_stop(folder) if r.step == 20 else None).state == "stopped"
    assert jobs.read_status(folder).state == "waiting"
    assert (folder / "checkpoint.safetensors").exists()


def test_a_checkpoint_of_other_options_or_a_damaged_one_is_left_aside(data, cells, tmp_path, often, caplog):
    folder = tmp_path / "job"
    jobs.write_spec(folder, data=str(data), model=SMALL, embedding=False)
    run_job(folder, lambda r: jobs.request_stop(folder) if r.step == 20 else None)
    (folder / "checkpoint.safetensors").write_bytes(b"nothing")
    run_job(folder, lambda r: jobs.request_stop(folder) if r.step == 20 else None)
    assert "the training begins anew: checkpoint.safetensors is not a saved topic model" in caplog.text
    spec = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**spec, "model": {**SMALL, "num_topics": 5}}))
    assert run_job(folder).state == "finished"
    assert "its checkpoint is of other options or data" in caplog.text
    check_whole(folder, cells, {"num_topics": 5})


def test_records_lost_with_the_power_are_no_obstacle(data, cells, tmp_path, often):
    folder = tmp_path / "job"
    jobs.write_spec(folder, data=str(data), model=SMALL, embedding=False)
    run_job(folder, lambda r: jobs.request_stop(folder) if r.step == 30 else None)
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-2000])
    assert run_job(folder).state == "finished"
    assert same(result(folder), whole_of(cells, {}))


def test_a_full_disk_does_not_end_the_training(data, cells, tmp_path, often, monkeypatch, caplog):
    def full(*_) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("mira_core.estimators.checkpoint.replace_file", full)
    folder = tmp_path / "job"
    jobs.write_spec(folder, data=str(data), model=SMALL, embedding=False)
    status = run_job(folder)
    assert status.epoch == EPOCHS
    assert "no checkpoint can be written: no space left" in caplog.text


# --- held-out cells -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_held_out_cells_changes_nothing_in_the_training(cells, family):
    options = FAMILIES[family]
    with_columns(cells)
    model, plain = make(cells, **options), make(cells, **options)
    train, test = model.train_test_split(cells)
    model.fit(train, test=test, progress=False)
    plain.fit(train, progress=False)
    assert same(arrays(model), arrays(plain))
    for r, p in zip(model.history, plain.history, strict=True):
        assert r.held_out_loss == pytest.approx(r.held_out_distortion + r.held_out_rate)
        assert np.isfinite(r.held_out_loss)
        assert (p.held_out_loss, p.held_out_distortion, p.held_out_rate) == (None, None, None)
        assert from_dict(json.loads(json.dumps(r.to_dict()))) == r
        assert from_dict(json.loads(json.dumps(p.to_dict()))) == p
    held = model.history[-1].held_out_loss
    assert held == pytest.approx(model.score(test), rel=0.05)  # the same measure, by other draws


def test_a_job_holds_cells_out_and_still_tells_the_topics_of_all(data, cells, tmp_path, often):
    folder = tmp_path / "job"
    options = {**SMALL, "categorical_covariates": ["rare"]}
    cells.obs["rare"] = ["one"] * 1 + ["two"] * 2 + ["many"] * 297  # a category of one cell must be trained on
    cells.write_h5ad(data)
    jobs.write_spec(folder, data=str(data), model=options, embedding=False, test_size=0.1)
    run_job(folder, lambda r: jobs.request_stop(folder) if r.step == 20 else None)
    status = run_job(folder)
    assert status.state == "finished", status.error
    assert status.n_cells + status.n_held_out == 300
    assert 25 <= status.n_held_out <= 30
    told = [r for r in records_of(folder) if isinstance(r, EpochRecord)]
    assert [r.epoch for r in told] == list(range(1, EPOCHS + 1))
    assert all(np.isfinite(r.held_out_loss) for r in told)
    assert ad.read_h5ad(folder / "result" / "cells.h5ad").n_obs == 300


@pytest.mark.parametrize("size", [0, 1, -0.1, 1.5, "x", True, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path, size):
    with pytest.raises(JobError, match="test_size must be a share between 0 and 1"):
        jobs.write_spec(tmp_path / "job", data="demo:simulated", model={}, test_size=size)
    assert not (tmp_path / "job").exists()
