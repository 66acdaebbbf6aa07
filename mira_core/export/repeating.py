"""A folder with a script that repeats a run headless, and tells whether the topics are the same, bit for bit.

====================  ============================================================================================
``repeat.py``         trains the same model on the same cells (of a prediction: predicts by the same model)
``requirements.txt``  versions of what the numbers come from
``data.h5ad``         what the training reads: counts of the modelled features, and the columns that it needs
``recipe.json``       how these cells came from the file, if not all as they were
``expected.json``     digests of the cells and of the topics, and what the run was computed with
====================  ============================================================================================
"""

from __future__ import annotations

import hashlib
import json
import pprint
import shutil
import textwrap
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from .. import environment
from ..data import sources
from ..data.anndata_io import obs_column
from ..data.counts import CountMatrix
from ..data.covariates import Coding
from ..data.digest import digest
from ..data.recipe import Recipe, prepare
from ..errors import DataError
from ..files import write_json
from ..options import COVARIATE_OPTIONS
from . import data as exported
from .run import FinishedRun

ORDER = "mira_training_order"  # column of obs: when a cell is trained on, -1 if it is held out
PINNED = ("mira-topics", "torch", "pyro-ppl", "numpy", "scipy", "pandas", "anndata", "h5py", "safetensors",
          "scikit-learn")  # fmt: skip
NO_COLUMNS = Coding({}, {}, (), ())
FEATURE_COLUMNS = ("highly_variable_key", "exogenous_key", "endogenous_key")


def write_repeat(run: FinishedRun, folder: Path) -> None:
    """Write the folder.

    Raises
    ------
    DataError
        If the cells are gone or have changed since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = run.open_cells_lightly()
    cells = run.model._cells(data)
    found = digest(cells.counts, run.cells.obs_names, run.model.features)
    run.check_digest(found)
    _write_data(run, data, cells.counts, folder / "data.h5ad")
    (folder / "repeat.py").write_text(script(run), encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements(run), encoding="utf-8")
    if run.recipe.steps:
        write_json(folder / "recipe.json", run.recipe.to_dict())
    if not run.is_fit:
        shutil.copyfile(run.folder / "result" / "model.safetensors", folder / "model.safetensors")
    write_json(
        folder / "expected.json",
        {
            "format": 1,
            "cells": found,
            "read": {key: run.model.get_params()[key] for key in ("feature_type", "counts_layer")},
            "topics": digest_of_topics(run.theta),
            "shape": list(run.theta.shape),
            "mean_shares": run.theta.mean(0, dtype=np.float64).tolist(),
            "computed_with": run.computed_with,
            "changed_on_the_way": run.changed_on_the_way,
        },
    )


def digest_of_topics(theta: np.ndarray) -> str:
    """Return the SHA-256 of compositions: rows and columns as uint64, then float32 row by row, little-endian."""
    out = hashlib.sha256(np.array(theta.shape, "<u8").tobytes())
    out.update(np.ascontiguousarray(theta, "<f4").tobytes())
    return out.hexdigest()


def _write_data(run: FinishedRun, data: ad.AnnData | sources.OnDiskDataset, counts: CountMatrix, path: Path) -> None:
    options = run.model.get_params()
    column = data.column if isinstance(data, sources.OnDiskDataset) else obs_column(data.obs)
    keys = [key for name in (*COVARIATE_OPTIONS, "extra_features_keys") for key in options[name] or []]
    obs = pd.DataFrame({key: _plain(column(key)) for key in keys}, index=pd.Index(run.cells.obs_names, name=None))
    if run.is_fit and run.spec.get("test_size") is not None:
        train, _ = run.rows(data)
        order = np.full(len(obs), -1)
        order[train] = np.arange(len(train))
        obs[ORDER] = order
    fit = run.model._fitted()
    var = pd.DataFrame(index=pd.Index(fit.features))
    for name in FEATURE_COLUMNS:
        if options[name]:
            var[options[name]] = fit.endogenous if name == "endogenous_key" else True
    try:
        ad.AnnData(obs=obs, var=var).write_h5ad(path)
    except OSError:
        raise
    except Exception as problem:
        raise DataError(f"the columns that the training reads cannot be written: {problem}") from problem
    exported.add_counts(path, counts, options["counts_layer"])


def _plain(values: pd.Series) -> Any:
    """Return a column's values as a file can hold them: numbers, or text."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_extension_array_dtype(values):
        return values.to_numpy()
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return values.to_numpy(float) if not pd.api.types.is_bool_dtype(values) else values.astype(str).to_numpy()
    return values.astype(object).astype(str).to_numpy()


def requirements(run: FinishedRun) -> str:
    """Return requirements.txt: the versions that the run was computed with, as far as they change its numbers."""
    known = run.computed_with["versions"]
    head = [f"# Python {known['python']}. mira-topics is installed first, from where you have it, if no index has it:"]
    head += ["# pip install mira_topics-*.whl (or the folder with its source)."]
    if "+" in known["torch"]:
        build = known["torch"].partition("+")[2]
        head.append(f"# torch was the build {known['torch']}; others of its version may round differently ({build}).")
    pins = [f"{name}=={known[name].partition('+')[0]}" for name in PINNED if name in known]
    return "\n".join([*head, *pins, ""])


# --- the script -----------------------------------------------------------------------------------

HEAD = '''"""Repeats a run of mira, and tells whether its topics are the same, bit for bit.

    python -m pip install -r requirements.txt
    python repeat.py

Run {name}, asked for on {created}. {what}
The cells are in data.h5ad: {n:,} cells, {g:,} features.{recipe}
The same bits can be expected with the versions of requirements.txt on a processor with the same instructions
({instructions}); others give the same topics but for rounding, which training makes larger.
"""

import os

# Sums depend on the number of threads; it has to be set before numpy and torch are loaded.
THREADS, BLAS_THREADS = {threads}, {blas}
os.environ.update(OMP_NUM_THREADS=str(THREADS), MKL_NUM_THREADS=str(THREADS), OPENBLAS_NUM_THREADS=str(BLAS_THREADS))
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads that wait do not hold up others

import sys
from pathlib import Path

import anndata
import torch

import mira_core as mira

HERE = Path(__file__).resolve().parent
torch.set_num_threads(THREADS)
'''
TAIL = """
model.predict(adata)
sys.exit(mira.export.check_repeat(HERE, adata, "{device}"))
"""


def script(run: FinishedRun) -> str:
    """Return repeat.py."""
    with_, model = run.computed_with, run.model
    device = str(with_.get("device") or "cpu").partition(":")[0]
    recipe = ""
    if run.recipe.steps:
        recipe = "\nThey came from the file by recipe.json; python repeat.py FILE checks that they do."
    what = "It trained a model." if run.is_fit else "It predicted by model.safetensors, which was trained before."
    head = HEAD.format(
        name=_in_words(run.name), created=run.created, what=what, n=run.cells.n_obs, g=len(model.features),
        recipe=recipe, instructions=f"torch: {with_['processor']['torch']}, BLAS: {with_['processor']['blas']}",
        threads=int(with_["threads"]["torch"]), blas=int(with_["threads"]["blas"]),
    )  # fmt: skip
    lines = ["", "if len(sys.argv) > 1:", "    sys.exit(mira.export.check_source(HERE, sys.argv[1]))", ""]
    lines += ['adata = anndata.read_h5ad(HERE / "data.h5ad")']
    if run.is_fit:
        lines += _training(run, device)
    else:
        lines += ['model = mira.topics.load_model(HERE / "model.safetensors")', f'model.set_device("{device}")']
    return head + "\n".join(lines) + TAIL.format(device=device)


def _training(run: FinishedRun, device: str) -> list[str]:
    lines = ["model = mira.topics.make_model("]
    lines += [f"    {run.model.n_samples}, {run.model.n_features},  # cells and features of the run"]
    options = run.model.options
    for source, words in (("yours", "given"), ("recommended", "recommended then"), ("documented", "documented")):
        of_it = {name: o.value for name, o in options.items() if o.source == source}
        if of_it:
            lines.append(f"    # {words}")
        for name, value in of_it.items():
            if name != "seed":
                lines.append(f"    {name}={pprint.pformat(value, width=100, compact=True)},")
    drawn = "" if options["seed"].value is not None else "  # drawn, as none was given"
    lines += [f"    seed={run.model.seed_used},{drawn}", ")", f'model.set_device("{device}")']
    if run.spec.get("test_size") is not None:
        lines += [
            f'order = adata.obs["{ORDER}"].to_numpy()  # of the training; -1: held out',
            'train = adata[order.argsort(kind="stable")[(order < 0).sum() :]]',
        ]  # fmt: skip
    else:
        lines += ["train = adata"]
    if run.status.state == "finished":
        return [*lines, "model.fit(train)"]
    stop = f"{run.status.step}  # the run was stopped after this step"
    loop = f"""
        LAST = {stop}
        training = model.fit_records(train)
        for record in training:
            if record.step == LAST:
                training.close()
    """
    return [*lines, *textwrap.dedent(loop).strip().splitlines()]


def _in_words(text: str) -> str:
    """Return text from people so that it can stand in a docstring."""
    return "".join(c if c.isprintable() and c not in '"\\' else " " for c in text).strip() or "without a name"


# --- what the script asks -------------------------------------------------------------------------


def check_repeat(folder: str | Path, adata: ad.AnnData, device: str = "cpu") -> int:
    """Print whether topics that were predicted anew are those of the run, else what may have changed them.

    Parameters
    ----------
    folder
        That `write_repeat` wrote.
    adata
        Cells with topics.
    device
        Where they were computed.

    Returns
    -------
    int
        0 if they are the same, bit for bit; 1 if not.
    """
    told = json.loads((Path(folder) / "expected.json").read_bytes())
    theta = np.asarray(adata.obsm["X_topic_compositions"])
    if digest_of_topics(theta) == told["topics"]:
        print(f"the same topics, bit for bit ({theta.shape[0]:,} cells, {theta.shape[1]} topics)")
        return 0
    print("the topics are NOT the same bits as those of the run")
    if list(theta.shape) != told["shape"]:
        print(f"- there are {theta.shape[0]} cells and {theta.shape[1]} topics; the run had {told['shape']}")
    else:
        off = np.abs(theta.mean(0, dtype=np.float64) - told["mean_shares"]).max()
        print(f"- mean shares of the topics differ by up to {off:.2g}")
    reasons = environment.differences(told["computed_with"], environment.describe(device))
    reasons += [f"the run itself went on under other conditions: {line}" for line in told["changed_on_the_way"]]
    if told["computed_with"].get("device", "cpu") != "cpu":
        reasons.append("a GPU computed the run: it promises no bits, even to itself")
    for line in reasons:
        print(f"- {line}")
    if not reasons:
        print("- nothing that is known to matter differs; was data.h5ad or repeat.py changed?")
    return 1


def check_source(folder: str | Path, source: str | Path) -> int:
    """Print whether the file that a run was trained on gives, by its recipe, the cells of `folder`; 0 if it does.

    Raises
    ------
    DataError
        If the file cannot be opened, or the recipe cannot be done.
    """
    folder = Path(folder)
    told = json.loads((folder / "expected.json").read_bytes())
    path = folder / "recipe.json"
    if path.is_file():
        data: Any = prepare(str(source), Recipe.from_json(path.read_text(encoding="utf-8")))
    else:
        data = sources.open_named(str(source))
    features = ad.read_h5ad(folder / "data.h5ad", backed="r").var_names.to_numpy(str)
    names = (data.table() if isinstance(data, sources.OnDiskDataset) else data).obs_names
    cells = sources.cells_of_model(data, told["read"], features, np.ones(len(features), bool), NO_COLUMNS)
    same = digest(cells.counts, names, features) == told["cells"]
    print("the file gives the cells of the run" if same else "the file does NOT give the cells of the run")
    return 0 if same else 1
