"""Whatever is done to a file or a job, it is read or refused in words; below, what was found to break that."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pytest
import safetensors.torch

import mira_core as mira
from mira_core import jobs, notation, processes
from mira_core.data import Recipe, on_disk, sources
from mira_core.data.anndata_io import open_data
from mira_core.data.describe import describe
from mira_core.data.look import look
from mira_core.errors import CheckpointError, DataError, JobError, MiraError, OptionError

from ..fuzzing import targets
from ..fuzzing.child import Child
from ..fuzzing.damage import DEEP, Damage
from ..fuzzing.explore import explore
from ..fuzzing.targets import SPECS, TARGETS

EXAMPLES = 30
TOO_LARGE = 10**400  # for a float


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    child = Child(tmp_path_factory.mktemp("fuzz"))
    yield child
    child.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_damaged_is_read_or_refused_in_words(child, name):
    explore(child, name, round(EXAMPLES * TARGETS[name].weight))


def test_a_pickle_that_runs_is_seen_and_one_in_a_file_does_not(child, monkeypatch, tmp_path):
    """So that the tests above would tell."""
    for name in ("cells.h5ad", "cells.zarr.zip", "model.safetensors", "job fit"):
        assert child.read(name, [Damage("pickle")]).kind == "refused"
    monkeypatch.setattr(Child, "_ask", lambda self, name, path: (path.parent / "harm").mkdir())
    assert child.read("job fit", [Damage("pickle")]).kind == "failed"


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["X", "layers/by column", "obsp/near"])
@pytest.mark.parametrize("backed", [False, True])
def test_index_pointers_that_run_backwards_are_refused(tmp_path, where, backed):
    """scipy passes over them where the last is 0, and its compiled code follows them out of the array."""
    targets.cells().copy().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        f[where]["indptr"][-1] = 0
    with pytest.raises(DataError, match="its indices are wrong"):
        open_data(tmp_path / "a.h5ad", backed=backed)


def test_a_column_of_nothing_is_named(tmp_path):
    targets.cells().copy().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        encoding = dict(f["obs/quality"].attrs)
        del f["obs/quality"]
        f["obs/quality"] = h5py.Empty("f4")
        f["obs/quality"].attrs.update(encoding)
    with pytest.raises(DataError, match=r"obs\['quality'\] must hold numbers or texts|cannot be read"):
        open_data(tmp_path / "a.h5ad")


def test_a_matrix_of_texts_is_described_as_one_that_cannot_be_read(tmp_path):
    targets.cells().copy().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        n = len(f["X/data"])
        del f["X/data"]
        f["X/data"] = np.full(n, b"text")
    with pytest.raises(DataError):
        open_data(tmp_path / "a.h5ad")
    told = describe(open_data(tmp_path / "a.h5ad", backed=True))
    assert "damaged" in next(x for x in told.layers if x.name is None).problem


@pytest.mark.parametrize("backed", [False, True])
def test_an_old_file_of_other_names_than_values_is_refused(tmp_path, backed):
    targets.write_of_old_anndata(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as f:
        del f["obs"]
        f["obs"] = f["var"][()]
    with pytest.raises(DataError):
        open_data(tmp_path / "a.h5ad", backed=backed)


def test_complex_counts_are_looked_at_and_refused_in_words(tmp_path):
    targets.TARGETS["cells.loom"].write(tmp_path / "a.loom")
    with h5py.File(tmp_path / "a.loom", "r+") as f:
        x = f["matrix"][()].astype("c8")
        del f["matrix"]
        f["matrix"] = x
    assert look(str(tmp_path / "a.loom")).findings
    with pytest.raises(DataError, match="must hold numbers; got complex64"):
        mira.data.qc(open_data(tmp_path / "a.loom"))


@pytest.fixture
def ondisk(tmp_path):
    """A data set on the disk."""
    targets.write_ondisk(tmp_path / "a")
    return tmp_path / "a"


def overwrite(path, dtype, at, value):
    values = np.fromfile(path, dtype)
    values[at] = value
    values.tofile(path)


@pytest.mark.parametrize("value", [-1, 7, 2**31 - 1])
def test_features_out_of_bounds_on_the_disk_are_refused(ondisk, value):
    overwrite(ondisk / "indices.i32", np.int32, 3, value)
    with pytest.raises(DataError, match="counts of features that it does not name"):
        sources.training_cells(ondisk, targets._options()).counts.feature_totals()


@pytest.mark.parametrize(("at", "value"), [(0, 1), (5, -1), (5, 10**6), (-1, 0)])
def test_cells_that_do_not_follow_each_other_on_the_disk_are_refused(ondisk, at, value):
    overwrite(ondisk / "starts.i64", np.int64, at, value)
    with pytest.raises(DataError, match="starts.i64 does not divide the counts"):
        sources.training_cells(ondisk, targets._options())


def test_sizes_on_the_disk_below_zero_or_of_other_tables_are_refused(ondisk):
    whole = json.loads((ondisk / "dataset.json").read_bytes())
    for changed in ({"n_cells": -1}, {"n_features": -1}, {"n_features": 8}):
        (ondisk / "dataset.json").write_text(json.dumps({**whole, **changed}))
        with pytest.raises(DataError, match="damaged|not whole"):
            on_disk.OnDiskDataset(ondisk)


def test_a_link_in_the_tables_on_the_disk_is_not_followed(ondisk):
    with h5py.File(ondisk / "cells.h5ad", "r+") as f:
        f["obs/stolen"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(DataError, match="holds a link"):
        on_disk.OnDiskDataset(ondisk)


# --- jobs -----------------------------------------------------------------------------------------


def write(folder, spec):
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(spec))
    return folder


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("fit", {"name": 3}),
        ("fit", {"created": "today"}),
        ("fit", {"created": float("nan")}),
        ("fit", {"created": TOO_LARGE}),
        ("fit", {"embedding": "no"}),
        ("fit", {"test_size": TOO_LARGE}),
        ("fit", {"learning_rate_curve": {**targets.CURVE, "losses": [1.0, float("nan"), 2.0]}}),
        ("fit", {"learning_rate_curve": {**targets.CURVE, "falling": [-1, 2]}}),
        ("fit", {"learning_rate_curve": {**targets.CURVE, "rates": [TOO_LARGE, 1, 2]}}),
        ("fit", {"recipe": [{"step": "filter_cells", "min_counts": TOO_LARGE}]}),
        ("range_test", {"range_test": {"upper_bound_lr": TOO_LARGE}}),
        ("range_test", {"range_test": {"upper_bound_trim": TOO_LARGE}}),
    ],
)
def test_a_specification_of_such_a_kind_is_refused(tmp_path, kind, changes):
    with pytest.raises((JobError, OptionError)):
        jobs.read_spec(write(tmp_path / "a", {**SPECS[kind], **changes}))


@pytest.mark.parametrize("text", [DEEP, b'{"a":' * 50_000])
def test_json_nested_without_end_is_refused(tmp_path, text):
    folder = write(tmp_path / "a", {})
    for name in ("job.json", "status.json", "process.json", "records.jsonl"):
        (folder / name).write_bytes(text + b"\n")
    with pytest.raises(JobError, match="nested too deeply"):
        jobs.read_spec(folder)
    assert jobs.read_status(folder).state == "waiting"
    assert jobs.read_records(folder)[0] == []
    with pytest.raises(OptionError, match="nested too deeply"):
        Recipe.from_json(text.decode())
    with pytest.raises(OptionError):
        notation.read(text.decode())


@pytest.mark.parametrize("path", ["\0", "x" * 5000, "\ud800"])
def test_what_can_be_no_path_is_no_file(tmp_path, path):
    with pytest.raises(JobError, match="there is no file"):
        jobs.write_spec(tmp_path / "a", data=path, model={})
    with pytest.raises(JobError, match="there is no model"):
        jobs.write_spec(tmp_path / "a", data="demo:pbmc700", model={}, kind="predict", predict={"model": path})


def test_a_status_of_other_types_is_as_if_it_were_not_told(tmp_path):
    folder = write(tmp_path / "a", {})
    wrong = {"state": ["running"], "step": "7", "num_steps": -1, "error": [], "heartbeat": 1e308, "kind": None}
    (folder / "status.json").write_text(json.dumps({**wrong, "epoch": 2}))
    assert jobs.read_status(folder) == jobs.Status(epoch=2)
    assert jobs.why_not_resume(folder)


def test_records_that_are_no_objects_are_passed_over(tmp_path):
    (tmp_path / "records.jsonl").write_text('3\n[]\n{"kind": "epoch", "epoch": "x"}\n{"kind": "step"}\n')
    assert [r["kind"] for r in jobs.read_records(tmp_path)[0]] == ["epoch", "step"]
    jobs.cut_records(tmp_path, 1)
    assert not (tmp_path / "records.jsonl").read_text()


@pytest.mark.parametrize("pid", [float("inf"), 2**70, -(2**70)])
def test_a_process_of_a_number_that_none_has_is_not_alive(pid):
    assert not processes.is_alive({"pid": pid, "process_started": 1})


# --- models ---------------------------------------------------------------------------------------


def reheaded(path, change):
    """Rewrite the header of a saved model."""
    data = path.read_bytes()
    tensors, n = safetensors.torch.load(data), int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + n])["__metadata__"]["mira"])
    change(header, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {"mira": json.dumps(header)}))
    return path


@pytest.mark.parametrize(("name", "value"), [("hidden", 10**8), ("num_topics", 10**10), ("num_layers", 10**9)])
def test_a_model_takes_no_memory_that_its_weights_do_not_fill(tmp_path, name, value):
    targets.write_model(tmp_path / "m.safetensors")
    reheaded(tmp_path / "m.safetensors", lambda h, _: h["resolved"].update({name: value}))
    with pytest.raises(CheckpointError, match=r"its options ask for|num_layers=1000000000 asks for"):
        mira.topics.load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda h, t: h["training"].update(epoch=0),
        lambda h, t: h["training"].update(epoch=9),
        lambda h, t: h["training"].update(step=10**9),
        lambda h, t: t.pop("training.optimiser.mean.0"),
        lambda h, t: t.update({"training.optimiser.mean.0": t["training.optimiser.mean.1"][:1].clone()}),
        lambda h, t: t.update({"training.generator": t["training.generator"] * 0}),
    ],
)
def test_a_checkpoint_that_cannot_be_gone_on_with_says_so(tmp_path, change):
    targets.write_checkpoint(tmp_path / "m.safetensors")
    reheaded(tmp_path / "m.safetensors", change)
    with pytest.raises(MiraError, match=re.compile("checkpoint|damaged")):
        mira.topics.load_model(tmp_path / "m.safetensors").resume(targets.cells(), progress=False)
