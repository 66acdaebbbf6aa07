"""A training that was interrupted goes on, and gives the model of one that was not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors

from mira_core.errors import CheckpointError, DataError, NotFitted
from mira_core.records import EpochRecord, StepRecord
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
