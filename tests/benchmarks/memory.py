"""Peak memory of writing and of fitting a streamed data set, with few cells and with many.

    python -m tests.benchmarks.memory --cells 2000,200000 --genes 3000

Each step is a process of its own, whose peak resident memory the system tells (Linux, macOS).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd

BLOCK = 2000  # cells simulated; more are the same again, in another order


def write_h5ad(path: Path, n_cells: int, n_genes: int) -> None:
    """Write simulated counts as CSR, a block at a time."""
    from mira_core.data import simulate_expression

    block = simulate_expression(min(BLOCK, n_cells), n_genes, 10, n_batches=2, depth=2000, seed=0)
    n_blocks = -(-n_cells // BLOCK)
    obs = pd.DataFrame({"batch": np.tile(block.obs["batch"].astype(str), n_blocks)[:n_cells]})
    obs.index = [f"cell{i}" for i in range(n_cells)]
    ad.AnnData(obs=obs, var=block.var).write_h5ad(path)
    rng = np.random.default_rng(0)
    with h5py.File(path, "r+") as f:
        if "X" in f:
            del f["X"]
        x = f.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n_cells, n_genes)})
        data, indices = (x.create_dataset(k, (0,), "f4" if k == "data" else "i4", maxshape=(None,), chunks=(2**18,))
                         for k in ("data", "indices"))  # fmt: skip
        indptr = [0]
        for b in range(n_blocks):
            m = block.X[rng.permutation(block.n_obs)][: n_cells - b * BLOCK]
            start = len(data)
            for target, values in ((data, m.data), (indices, m.indices)):
                target.resize((start + m.nnz,))
                target[start:] = values
            indptr.extend((start + m.indptr[1:]).tolist())
        x["indptr"] = np.array(indptr)


def fit(folder: str, n_cells: int, n_genes: int, steps: int) -> None:
    """Fit to a data set on the disk for about so many steps."""
    import mira_core as mira

    epochs = max(1, steps // (n_cells // 128))
    model = mira.topics.make_model(
        n_cells, n_genes, feature_type="expression", num_topics=20, hidden=256, num_layers=3, batch_size=128,
        num_epochs=epochs, seed=0,
    )  # fmt: skip
    model.fit(folder, progress=False)


def write(h5ad: str, folder: str) -> None:
    """Write a data set to the disk from an .h5ad file."""
    import mira_core as mira

    with h5py.File(h5ad) as f:
        n_cells, n_genes = f["X"].attrs["shape"]
    model = mira.topics.make_model(int(n_cells), int(n_genes), feature_type="expression")
    model.write_ondisk_dataset(h5ad, folder)


def measured(call: str) -> dict[str, float]:
    """Run a call of this module in a process of its own; return its peak memory and time."""
    began = time.perf_counter()
    code = (
        f"import resource; from tests.benchmarks import memory; memory.{call}; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_mb": round(int(out) * unit / 2**20, 1), "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    """Measure and print, as one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", default="2000,200000")
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=300)
    a = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        for n in map(int, a.cells.split(",")):
            h5ad, folder = Path(name) / f"{n}.h5ad", Path(name) / str(n)
            write_h5ad(h5ad, n, a.genes)
            size = h5ad.stat().st_size / 2**20
            written = measured(f"write({str(h5ad)!r}, {str(folder)!r})")
            fitted = measured(f"fit({str(folder)!r}, {n}, {a.genes}, {a.steps})")
            peaks.append(fitted["peak_mb"])
            print(json.dumps({"cells": n, "h5ad_mb": round(size, 1), "write": written, "fit": fitted}), flush=True)
    print(json.dumps({"ratio": round(peaks[-1] / peaks[0], 3)}))


if __name__ == "__main__":
    main()
