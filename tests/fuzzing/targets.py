"""Which files are damaged, and who reads them.

A reader is given a path and yields what is to be tried in turn, each of which works or raises a `MiraError`. If the
first does not work, the file was refused.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from hypothesis import strategies as st

import mira_core as mira
from mira_core import jobs, kinds, notation
from mira_core import options as opt
from mira_core.analysis.gene_sets import read_gmt
from mira_core.analysis.peaks import read_bed
from mira_core.data import Recipe, anndata_io, on_disk, sources
from mira_core.data.anndata_io import open_data
from mira_core.data.describe import describe
from mira_core.data.formats import contents
from mira_core.data.look import Look, look
from mira_core.errors import MiraError
from mira_core.estimators.topic_model import TopicModel
from mira_core.files import write_json
from mira_core.running.parts import read_provenance
from tests.core.test_formats import WRITERS
from tests.helpers import make, make_cells, with_columns

from .damage import OF_BYTES, OF_HDF5, OF_HEADER, OF_JSON, OF_WORDS, Damage

Reader = Callable[[Path], Iterator[Callable[[], Any]]]


@dataclass(frozen=True)
class Target:
    """A file or folder, what is done to it, and who reads it.

    Attributes
    ----------
    name
        Of the file or folder.
    write
        Writes it whole.
    damages
        What may be done.
    read
        Its reader.
    weight
        How often it is tried in the short test, against others.
    """

    name: str
    write: Callable[[Path], Any]
    damages: tuple[st.SearchStrategy[Damage], ...]
    read: Reader
    weight: float = 1.0

    def strategy(self) -> st.SearchStrategy[list[Damage]]:
        """Return what draws a few damages."""
        return st.lists(st.one_of(*self.damages), min_size=1, max_size=3)


# --- data -----------------------------------------------------------------------------------------


@cache
def cells() -> ad.AnnData:
    """12 x 7 counts with something of all that an AnnData may hold."""
    out = with_columns(make_cells(12, 7))
    out.obs["group"] = pd.Categorical(["a", "b", "c"] * 4)
    out.obs["some"] = pd.array([1, None] * 6, dtype="Int64")
    out.obs["flag"] = np.arange(12) % 2 == 0
    out.var["highly_variable"] = np.arange(7) != 3
    out.var["symbol"] = [f"MT-{j}" for j in range(7)]
    out.layers["by column"] = sp.csc_matrix(out.X)
    out.layers["dense"] = np.log1p(out.X.toarray())
    out.obsm["X_pca"] = np.zeros((12, 2), np.float32)
    out.obsp["near"] = sp.identity(12, format="csr")
    out.uns["source"], out.uns["nested"] = "a test", {"a": np.arange(3), "b": {"c": 1.5}}
    out.raw = out.copy()
    return out


def _write_as(name: str, adata: ad.AnnData, path: Path) -> None:
    WRITERS[name](path, adata.copy())


def write_of_old_anndata(path: Path) -> None:
    """As anndata before 0.7: tables are arrays of records."""
    with h5py.File(path, "w") as f:
        f["X"] = cells().X.toarray().astype(np.float32)
        f["obs"] = np.array([(b"cell%d" % i, i) for i in range(12)], [("index", "S8"), ("batch", "i4")])
        f["var"] = np.array([(b"gene%d" % i, 0.5) for i in range(7)], [("index", "S8"), ("score", "f8")])


@cache
def _options() -> dict[str, Any]:
    return make(cells(), categorical_covariates=["batch"], extra_features_keys=["extra"]).get_params()


def read_cells(path: Path) -> Iterator[Callable[[], Any]]:
    """All that is done with a file of cells before a training."""
    where = str(path)
    try:
        if names := contents(path).names():
            where += f"#{names[0]}"
    except MiraError:
        pass
    yield lambda: describe(open_data(where))
    yield lambda: describe(open_data(where, backed=True))
    yield lambda: _look(where)
    yield lambda: sources.training_cells(where, _options())
    yield lambda: _stream(where)


def _look(where: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        look(where).write(Path(folder))
        Look.read(Path(folder))


def _stream(where: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        on_disk.write(where, Path(folder) / "x", _options(), lambda table: anndata_io.select(table, _options()))


def write_ondisk(path: Path) -> None:
    """A data set that `write_ondisk_dataset` writes."""
    on_disk.write(cells(), path, _options(), lambda table: anndata_io.select(table, _options()))


def read_ondisk(path: Path) -> Iterator[Callable[[], Any]]:
    """All that is done with a data set on the disk."""
    yield lambda: sources.training_cells(path, _options()).counts.feature_totals()
    yield lambda: sources.open_source(path)
    yield lambda: sources.open_source(path).table()
    yield lambda: sources.split(sources.open_source(path), _options(), 0.5, 0)
    yield lambda: sources.open_source(path).take(np.arange(3)).counts().depths()


# --- jobs -----------------------------------------------------------------------------------------


def _spec(kind: str, **more: Any) -> dict[str, Any]:
    model = {"feature_type": "expression", "categorical_covariates": ["batch"], "hidden": 16, "min_learning_rate": 1e-3}
    steps = [{"step": "filter_cells", "min_counts": 5}, {"step": "drop_rare_categories", "column": "a", "min_cells": 3}]
    head = {"format": 1, "kind": kind, "name": "a job", "created": 1e9, "data": "demo:pbmc", "embedding": True}
    return {**head, "model": model, "recipe": {"format": 1, "steps": steps}, **more}


CURVE = {"rates": [1e-3, 1e-2, 1e-1], "losses": [3.0, 2.0, 1.0], "falling": [1e-3, 1e-1], "trim": [0.0, 0.5],
         "diverged": False}  # fmt: skip
SPECS = {
    "fit": _spec("fit", test_size=0.2, learning_rate_curve=CURVE),
    "range_test": _spec("range_test", range_test={"num_steps": 20, "eval_every": 2, "upper_bound_lr": 1.0}),
    "tune": _spec(
        "tune",
        tune={"study": "a/b", "min_topics": 3, "max_topics": 9, "storage": "sqlite:///a.db", "n_jobs": 2,
              "search": {"encoder_dropout": [0.1, 0.2]}, "train_size": 0.7, "max_trials": 10, "min_trials": 4},
    ),
    "gradient_tune": _spec("gradient_tune", gradient_tune={"max_attempts": 2, "max_topics": 20}),
    "predict": _spec("predict", predict={"model": "/dev/null", "study": "a", "trial": 3}),
}  # fmt: skip


def write_spec(kind: str, path: Path) -> None:
    """A job's folder."""
    path.mkdir()
    write_json(path / "job.json", SPECS[kind])


def read_spec(path: Path) -> Iterator[Callable[[], Any]]:
    """Read a job; write another of what was read, and check its parts alone."""
    yield lambda: _checked_spec(path)
    yield lambda: _copy_spec(path)
    try:
        told = json.loads((path / "job.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(told, dict):
        yield lambda: Recipe.from_dict(told)
        return
    yield lambda: Recipe.from_json(json.dumps(told.get("recipe")))
    model = told.get("model")
    model = model if isinstance(model, dict) else {}
    yield lambda: opt.validate_all(model)
    yield lambda: kinds.check(told.get("kind"), {k: told[k] for k in kinds.EXTRAS if k in told}, {})  # type: ignore[arg-type]


def _checked_spec(path: Path) -> dict[str, Any]:
    spec = jobs.read_spec(path)
    _is(spec["name"], str), _is(spec["created"], int | float), _is(spec.get("embedding", True), bool)
    return spec


def _is(value: Any, kind: Any) -> None:
    assert isinstance(value, kind), f"{value!r:.80} is no {kind}"


def _copy_spec(path: Path) -> None:
    spec = jobs.read_spec(path)
    given = {k: spec[k] for k in ("kind", "name", "embedding", "data", "model", *kinds.EXTRAS) if k in spec}
    jobs.write_spec(path / "another", **given)
    jobs.read_spec(path / "another")


def write_run(path: Path) -> None:
    """The folder of a job that runs on another host."""
    write_spec("fit", path)
    write_json(path / "status.json", dataclasses.asdict(jobs.Status("running", "training", 1, 4, 7, 28, heartbeat=2e9)))
    write_json(path / "process.json", {"host": "elsewhere", "pid": 1, "process_started": 1e9})
    write_json(path / "provenance.json", {"processes": [{"host": "elsewhere"}], "data": {"digest": "a"}})
    records = [{"kind": "step", "step": 1, "epoch": 1, "loss": 3.5}, {"kind": "epoch", "epoch": 1, "loss": None}]
    (path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def read_run(path: Path) -> Iterator[Callable[[], Any]]:
    """Read all that a job left, go on with it, and claim it."""
    yield lambda: _check_status(jobs.read_status(path))
    yield lambda: _check_records(path)
    yield lambda: jobs.why_not_resume(path)
    yield lambda: read_provenance(path).get("processes")
    yield lambda: jobs.cut_records(path, 0)
    yield lambda: jobs.resume(path)
    yield lambda: jobs.claim(path)


def _check_status(status: jobs.Status) -> None:
    assert status.state in jobs.STATES, status.state
    usual = jobs.Status()
    for f in dataclasses.fields(status):
        default = getattr(usual, f.name)
        _is(getattr(status, f.name), int | float | None if default is None else type(default))
    assert all(isinstance(text, str) for item in status.error.items() for text in item)
    left = status.seconds_left()
    assert left is None or 0 <= left < float("inf")


def _check_records(path: Path) -> None:
    for record in jobs.read_records(path)[0]:
        _is(record, dict)


# --- models, sets, regions ------------------------------------------------------------------------


def write_model(path: Path, **options: Any) -> None:
    """A saved model."""
    _trained(**options).save(path)


@cache
def _trained(**options: Any) -> TopicModel:
    return make(cells(), num_topics=3, hidden=8, num_epochs=1, batch_size=4, **options).fit(cells(), progress=False)


def write_checkpoint(path: Path) -> None:
    """A training that can be gone on with."""
    model = make(cells(), num_topics=3, hidden=8, num_epochs=2, batch_size=4)
    training = model.fit_cells(sources.training_cells(cells(), model.get_params()), resumable=True)
    while not model.resumable:
        next(training)
    model.save_checkpoint(path)
    training.close()


def read_model(path: Path) -> Iterator[Callable[[], Any]]:
    """Load a model, ask it, and go on with its training."""
    model = None
    try:
        model = mira.topics.load_model(path)
    except MiraError:
        yield lambda: mira.topics.load_model(path)
        return
    yield lambda: (model.get_params(), model.history, model.topic_cols, model.seed_used, model.enrichments, str(model))
    yield lambda: (model.rank_genes(0), model.cluster_topics())
    yield lambda: model.predict(cells().copy())
    yield lambda: model.save(path.with_name("again.safetensors"))
    if model.resumable:
        yield lambda: model.resume(cells(), progress=False)


def write_pasted(form: Callable[..., str], path: Path) -> None:
    """A model as people may paste it."""
    given = {"feature_type": "expression", "num_topics": 7, "categorical_covariates": ["batch"], "seed": 3}
    path.write_text(form("cells.h5ad", given, test_size=0.2))


def read_pasted(path: Path) -> Iterator[Callable[[], Any]]:
    """Read it as the form of a model does."""
    yield lambda: notation.read(path.read_text(errors="replace"))


GMT = "SET_A\tabout\tGENE1\tGENE2\nSET_B\t\tGENE3,1.0\tGENE4\n"
BED = "track name=a\nchr1\t100\t200\tx\nchr1\t150\t300\nchrX\t5\t7\n# end\n"


def _once(read: Callable[[Path], Any]) -> Reader:
    return lambda path: iter([lambda: read(path)])


TARGETS = {
    t.name: t
    for t in [
        *(
            Target(name, partial(_write_as, name, make_cells(12, 7)), damages, read_cells)
            for name, damages in {
                "cells.h5": (OF_BYTES, OF_HDF5, OF_HDF5),
                "old.h5": (OF_BYTES, OF_HDF5, OF_HDF5),
                "cells.loom": (OF_BYTES, OF_HDF5, OF_HDF5),
                "folder": (OF_BYTES, OF_WORDS, OF_WORDS),
            }.items()
        ),
        *(
            Target(name, partial(_write_as, name, cells()), damages, read_cells, 0.6)
            for name, damages in {
                "cells.h5ad": (OF_BYTES, OF_HDF5, OF_HDF5),
                "cells.h5mu": (OF_BYTES, OF_HDF5, OF_HDF5),
                "cells.zarr": (OF_BYTES, OF_JSON, OF_JSON),
                "cells.zarr.zip": (OF_BYTES, OF_JSON),
            }.items()
        ),
        Target("old.h5ad", write_of_old_anndata, (OF_BYTES, OF_HDF5, OF_HDF5), read_cells),
        Target("ondisk", write_ondisk, (OF_BYTES, OF_JSON, OF_HDF5), read_ondisk),
        *(Target(f"job {k}", partial(write_spec, k), (OF_JSON, OF_JSON, OF_BYTES), read_spec, 4) for k in SPECS),
        Target("run", write_run, (OF_JSON, OF_JSON, OF_BYTES), read_run, 4),
        Target("model.safetensors", write_model, (OF_HEADER, OF_HEADER, OF_BYTES), read_model),
        Target(
            "codal.safetensors", partial(write_model, categorical_covariates="batch", continuous_covariates="quality"),
            (OF_HEADER, OF_HEADER, OF_BYTES), read_model,
        ),
        Target("checkpoint.safetensors", write_checkpoint, (OF_HEADER, OF_HEADER, OF_BYTES), read_model),
        Target("pasted.json", partial(write_pasted, notation.to_json), (OF_JSON, OF_BYTES), read_pasted, 2),
        Target("pasted.sh", partial(write_pasted, notation.to_command), (OF_WORDS, OF_BYTES), read_pasted, 2),
        Target("pasted.py", partial(write_pasted, notation.to_python), (OF_WORDS, OF_BYTES), read_pasted, 2),
        Target("sets.gmt", lambda path: path.write_text(GMT), (OF_WORDS, OF_BYTES), _once(read_gmt), 4),
        Target("regions.bed", lambda path: path.write_text(BED), (OF_WORDS, OF_BYTES), _once(read_bed), 4),
    ]
}  # fmt: skip


def copy(whole: Path, to: Path) -> None:
    """Copy a file or folder."""
    (shutil.copytree if whole.is_dir() else shutil.copyfile)(whole, to)
