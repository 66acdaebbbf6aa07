"""The exported script trains, from the exported data alone, a model that gives the same topics, bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import mira_core as mira
from mira_core import jobs
from mira_core.export.repeating import digest_of_topics, script, write_repeat
from mira_core.export.run import FinishedRun
from mira_core.run import run_job
from tests.helpers import make, with_columns

SMALL = {"feature_type": "expression", "num_topics": 3, "hidden": 8, "num_epochs": 2, "batch_size": 32}
RECIPE = [{"step": "filter_cells", "min_counts": 350}, {"step": "filter_features", "min_cells": 5},
          {"step": "drop_empty_cells"}]  # fmt: skip
RUN_ALL = """
import contextlib, io, json, runpy, sys
for path in sys.argv[1:]:
    told, sys.argv = io.StringIO(), [path]
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        print(json.dumps([path.split("/")[-2], end.code, told.getvalue()]))
"""


def stop_at(folder: Path, step: int):
    """A listener that asks the job to stop after a step, once."""

    def listen(record):
        if record.step == step and not (folder / "asked").exists():
            (folder / "asked").touch()
            jobs.request_stop(folder)

    return listen


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run of every way to come by a model; the files they were trained on."""
    root = tmp_path_factory.mktemp("runs")
    cells = with_columns(mira.data.simulate_expression(300, 120, 4, n_types=4, depth=600, seed=3))
    cells.obs["batch"] = np.where(np.arange(300) % 3, 1, 2)  # numbers for categories
    cells.layers["raw counts"] = cells.X.toarray()[:, ::-1].astype(np.int64)  # other counts than X's
    cells.var["hv"] = np.arange(120) % 4 > 0
    cells.var["seen"] = np.arange(120) % 4 > 1
    cells.write_h5ad(root / "cells.h5ad")
    codal = {"categorical_covariates": ["batch"], "continuous_covariates": ["quality"]}
    make(cells, **SMALL, **codal).write_ondisk_dataset(cells, root / "on_disk")
    told = {
        "demo": {"data": "demo:simulated", "model": {**SMALL, "num_epochs": 1}},
        "codal": {"model": {**SMALL, **codal, "counts_layer": "raw counts", "seed": 4}, "test_size": 0.2},
        "fast": {"model": {**SMALL, "feature_type": "accessibility", "atac_encoder": "fast"}},
        "recipe": {
            "model": {**SMALL, "highly_variable_key": "hv", "endogenous_key": "seen", "extra_features_keys": ["extra"]},
            "recipe": RECIPE, "test_size": 0.1,
        },
        "resumed": {"model": SMALL},
        "stopped": {"model": SMALL},
        "on disk": {"data": str(root / "on_disk"), "model": {**SMALL, **codal}, "test_size": 0.1},
    }  # fmt: skip
    out = {}
    for name, spec in told.items():
        folder = out[name] = root / "jobs" / name.replace(" ", "-")
        jobs.write_spec(folder, **{"data": str(root / "cells.h5ad"), "embedding": False, **spec})
        stops = {"resumed": 12, "stopped": 13}.get(name)
        status = run_job(folder, stop_at(folder, stops) if stops else None)
        assert status.state == ("stopped" if stops else "finished"), status.error
    assert run_job(out["resumed"]).state == "finished"
    out["predicted"] = root / "jobs" / "predicted"
    asked = {"model": str(out["fast"] / "result" / "model.safetensors")}
    jobs.write_spec(
        out["predicted"], data=str(root / "cells.h5ad"), model={}, kind="predict", predict=asked, embedding=False
    )
    assert run_job(out["predicted"]).state == "finished"
    return out


@pytest.fixture(scope="module")
def bundles(runs, tmp_path_factory) -> dict[str, Path]:
    """The scripts' folders, of which each knows nothing of the runs."""
    root = tmp_path_factory.mktemp("bundles")
    out = {}
    for name, folder in runs.items():
        out[name] = root / name.replace(" ", "-")
        write_repeat(FinishedRun(folder), out[name])
    return out


def altered(bundle: Path, folder: Path) -> Path:
    """Another seed than the run's, which says that it had other versions and threads."""
    shutil.copytree(bundle, folder)
    (folder / "repeat.py").write_text((folder / "repeat.py").read_text().replace("seed=4,", "seed=5,"))
    told = json.loads((folder / "expected.json").read_text())
    told["computed_with"]["versions"]["torch"] = "1.0"
    told["computed_with"]["threads"]["torch"] = 64
    (folder / "expected.json").write_text(json.dumps(told))
    return folder


def test_scripts_repeat_runs_of_every_kind_in_a_process_that_knows_nothing_of_them(runs, bundles, tmp_path):
    other = altered(bundles["codal"], tmp_path / "altered")
    home = runs["demo"].parents[1]
    home.rename(away := home.with_name("away"))
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", RUN_ALL, *(str(b / "repeat.py") for b in (*bundles.values(), other))],
            cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
    finally:
        away.rename(home)
    assert done.returncode == 0, done.stderr
    told = {name: (code, text) for name, code, text in map(json.loads, done.stdout.splitlines())}
    code, text = told.pop("altered")
    assert code == 1
    assert text.startswith("the topics are NOT the same bits as those of the run")
    assert f"torch was 1.0 and is {torch.__version__}" in text
    assert "threads of torch: 64 then, 1 now" in text
    assert "mean shares of the topics differ by up to 0." in text
    assert len(told) == len(bundles) == 8
    for name, (code, text) in told.items():
        assert code == 0, (name, text)
        assert text.startswith("the same topics, bit for bit"), (name, text)


def test_a_script_run_by_itself_says_so(bundles, tmp_path):
    command = [sys.executable, "-I", str(bundles["codal"] / "repeat.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "the same topics, bit for bit (300 cells, 3 topics)\n"), done.stderr


def test_the_data_of_a_script_are_what_the_training_reads_and_no_more(runs, bundles):
    whole = ad.read_h5ad(runs["codal"].parents[1] / "cells.h5ad")
    data = ad.read_h5ad(bundles["codal"] / "data.h5ad")
    assert list(data.layers) == ["raw counts"]
    assert data.X is None
    assert sorted(data.obs) == ["batch", "mira_training_order", "quality"]
    assert (data.layers["raw counts"].toarray() == whole.layers["raw counts"]).all()
    order = data.obs["mira_training_order"].to_numpy()
    assert sorted(order) == [-1] * 60 + list(range(240))

    data = ad.read_h5ad(bundles["recipe"] / "data.h5ad")
    assert 100 < data.n_obs < 300
    assert data.var["hv"].all()
    assert not data.var["seen"].all()
    assert list(data.obs) == ["extra", "mira_training_order"]
    kept = whole[data.obs_names, data.var_names].X
    assert (kept != data.X).nnz == 0
    assert sorted(p.name for p in bundles["recipe"].iterdir()) == [
        "data.h5ad", "expected.json", "recipe.json", "repeat.py", "requirements.txt",
    ]  # fmt: skip

    data = ad.read_h5ad(bundles["fast"] / "data.h5ad")
    assert set(data.X.data) == {1}


def test_the_file_that_a_run_came_from_gives_its_cells_and_another_does_not(runs, bundles, tmp_path, capsys):
    source = runs["recipe"].parents[1] / "cells.h5ad"
    for name in ("recipe", "codal", "fast"):
        assert mira.export.check_source(bundles[name], source) == 0, name
    other = ad.read_h5ad(source)
    other.X.data *= 2
    other.write_h5ad(tmp_path / "other.h5ad")
    assert mira.export.check_source(bundles["recipe"], tmp_path / "other.h5ad") == 1
    assert "does NOT give" in capsys.readouterr().out


def test_a_drawn_seed_is_written_out_and_options_are_all_there(runs):
    run = FinishedRun(runs["recipe"])
    text = script(run)
    assert run.model.given.get("seed") is None
    assert f"seed={run.model.seed_used},  # drawn, as none was given" in text
    for name in run.model.get_params():
        assert f"    {name}=" in text
    assert "LAST = 13" in script(FinishedRun(runs["stopped"]))
    compile(text, "repeat.py", "exec")


def test_names_from_people_stay_text_in_the_script(runs):
    run = FinishedRun(runs["demo"])
    run.spec["name"] = 'a """\nimport os; os.abort() # \\'
    assert compile(script(run), "repeat.py", "exec").co_consts[0].count("import os; os.abort()") == 1
    assert "\nimport os; os.abort()" not in script(run)


def test_versions_are_pinned_without_the_names_of_builds(bundles):
    pins = [
        line for line in (bundles["demo"] / "requirements.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert pins[0] == f"mira-topics=={mira.__version__}"
    assert all(line.count("==") == 1 and "+" not in line for line in pins)
    assert {line.split("==")[0] for line in pins} >= {"torch", "numpy", "scipy", "anndata", "pyro-ppl"}


def test_the_digest_of_topics_tells_bits_and_shape_apart():
    theta = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert digest_of_topics(theta) == digest_of_topics(np.asfortranarray(theta).astype(np.float64))
    assert digest_of_topics(theta) != digest_of_topics(theta.reshape(3, 4))
    other = theta.copy()
    other[0, 0] = np.nextafter(other[0, 0], 1, dtype=np.float32)
    assert digest_of_topics(theta) != digest_of_topics(other)
