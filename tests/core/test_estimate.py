"""Estimates of time and memory, against trainings that were really run."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import mira_core as mira
from mira_core import estimate, jobs
from mira_core.data import simulate_expression
from mira_core.errors import DataError, OptionError
from tests.helpers import FAMILIES, arrays, global_states, make, same, with_columns

# What a training takes in a process of its own: seconds of it, and the most memory that was ever resident.
MEASURED = """
import json, re, resource, sys, time
from pathlib import Path
import mira_core as mira
path, options = sys.argv[1], json.loads(sys.argv[2])
shape = tuple(options.pop("shape"))
model = mira.topics.make_model(*shape, **options)
began = time.perf_counter()
model.fit(path, progress=False)
seconds = time.perf_counter() - began
if sys.platform == "linux":  # where ru_maxrss would know the peak of the parent, too
    peak = int(re.search("VmHWM:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([seconds, peak]))
"""


def measured(path: Path, shape: tuple[int, int], options: dict) -> tuple[float, float]:
    command = [sys.executable, "-c", MEASURED, str(path), json.dumps({"shape": shape, **options})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return tuple(json.loads(done.stdout))


def told(spec: dict, folder: Path) -> dict:
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "mira_core.estimate", str(folder / "spec.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def peaks(n: int, g: int) -> ad.AnnData:
    adata = simulate_expression(n, g, 5, depth=400, seed=0)
    adata.X.data[:] = 1
    return adata


@pytest.mark.parametrize(
    ("make_data", "options"),
    [
        (lambda: simulate_expression(2000, 1500, 5, seed=0), {"feature_type": "expression", "num_epochs": 12}),
        (lambda: simulate_expression(8000, 1000, 5, n_batches=2, seed=0),
         {"feature_type": "expression", "num_epochs": 4, "categorical_covariates": ["batch"]}),
        (lambda: peaks(4000, 6000), {"feature_type": "accessibility", "atac_encoder": "fast", "num_epochs": 4}),
    ],
    ids=["expression", "CODAL", "fast"],
)  # fmt: skip
def test_the_estimate_is_within_a_factor_of_two_of_a_real_fit(make_data, options, tmp_path):
    adata = make_data()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for _ in range(3):  # others may use the machine in one of the two, and not in the other
        guess = told({"data": str(tmp_path / "cells.h5ad"), "model": options}, tmp_path)
        seconds, memory = measured(tmp_path / "cells.h5ad", adata.shape, options)
        print(guess, seconds, memory)
        assert memory / 2 < guess["memory"] < 2 * memory
        if seconds / 2 < guess["seconds"] < 2 * seconds:
            return
    raise AssertionError(f"{guess['seconds']:.1f} s were told, and {seconds:.1f} taken")


def test_two_thousand_cells_are_estimated_in_the_time_of_an_import(tmp_path):
    """In time of the processor, which others that use the machine do not lengthen: about three seconds."""

    def used() -> float:
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        return now.ru_utime + now.ru_stime

    simulate_expression(2000, 2000, 5, seed=0).write_h5ad(tmp_path / "cells.h5ad")
    spec = {"data": str(tmp_path / "cells.h5ad"), "model": {"feature_type": "expression"}, "test_size": 0.1}
    before = used()
    subprocess.run([sys.executable, "-c", "import mira_core.run"], check=True)
    imported = used() - before
    told(spec, tmp_path)
    assert used() - before - imported < 2 * imported * torch.get_num_threads()


@pytest.mark.parametrize("family", FAMILIES)
def test_estimating_changes_neither_model_nor_generators(cells, family):
    with_columns(cells)
    model = make(cells, **FAMILIES[family]).fit(cells, progress=False)
    before, states = arrays(model), global_states()
    x = cells.X.copy()
    guess = model.estimate(cells, test_size=0.2)
    assert same(arrays(model), before)
    assert global_states() == states
    assert (x != cells.X).nnz == 0
    assert guess.num_steps == 3 * (240 // 32)
    assert (guess.n_cells, guess.n_features, guess.device) == (240, cells.n_vars, "cpu")
    assert guess.device_memory is None
    assert guess.seconds > guess.num_steps * guess.seconds_per_step > 0
    assert guess.memory > 50 * 2**20
    assert str(guess).startswith("about ")


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_enough(family):
    few = {"num_topics": 4, "hidden": 16, "num_epochs": 2, "batch_size": 32}
    if FAMILIES[family].get("atac_encoder") in ("DAN", "skipDAN"):
        few["dan_on_cpu"] = True
    kind = {"feature_type": "expression", **FAMILIES[family], "counts_layer": "raw", "highly_variable_key": "hv"}
    guess = mira.topics.make_model(5000, 300, **{**kind, **few}).estimate((5000, 300))
    assert guess.num_steps == 2 * (5000 // 32)
    assert (guess.n_cells, guess.n_features) == (5000, 300)


def test_data_of_every_form_give_the_same_sizes(tmp_path):
    adata = simulate_expression(3000, 200, 4, seed=0)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    model = make(adata)
    model.write_ondisk_dataset(adata, tmp_path / "disk")
    sizes = {"AnnData": adata, "path": tmp_path / "cells.h5ad", "folder": tmp_path / "disk"}
    guesses = {name: model.estimate(data) for name, data in sizes.items()}
    assert {(g.n_cells, g.n_features, g.num_steps) for g in guesses.values()} == {(3000, 200, 3 * (3000 // 32))}


def test_more_cells_take_longer_and_more_memory():
    model = make(simulate_expression(100, 500, 4, seed=0), num_epochs=2)
    small, large = model.estimate((20_000, 500)), model.estimate((2_000_000, 500))
    assert 50 < large.num_steps / small.num_steps < 150
    assert large.seconds > 20 * small.seconds
    assert large.memory > small.memory + 500 * 2**20


def test_wrong_data_and_options_are_told(cells, tmp_path, capsys, monkeypatch):
    with pytest.raises(DataError, match="no layer 'raw'"):
        make(cells, counts_layer="raw").estimate(cells)
    with pytest.raises(OptionError, match="at least 2 cells and 2 features; got 1 and 5"):
        make(cells).estimate((1, 5))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"data": "demo:simulated", "model": {"num_topic": 3}})))
    assert estimate.main(["-"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "OptionError"
    assert "did you mean num_topics" in error["message"]
    assert estimate.main([str(tmp_path / "nothing")]) == 2
    assert "no specification can be read" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert estimate.main([]) == 2


def test_a_jobs_folder_is_a_specification(tmp_path, capsys):
    jobs.write_spec(tmp_path / "job", data="demo:simulated", model={"feature_type": "expression"}, test_size=0.1)
    assert estimate.main([str(tmp_path / "job")]) == 0
    guess = json.loads(capsys.readouterr().out)
    assert guess["n_cells"] == pytest.approx(0.9 * mira.data.load_demo("simulated").n_obs, abs=1)
    assert np.isfinite(guess["seconds"])
