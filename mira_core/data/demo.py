"""Data to try things on: real cells that a dependency ships, and a simulated set with known topics."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import anndata as ad
import numpy as np

from ..errors import DataError
from .recover import recover_counts
from .simulate import simulate_expression

logger = logging.getLogger(__name__)

DEMO = "demo:"  # what a name of data begins with, where a path could stand
DEMOS = {
    "pbmc700": "700 blood cells with labels (10x Genomics PBMC 68k, as scanpy ships them)",
    "simulated": "1,500 simulated cells with 6 known topics in two batches",
}


def load_demo(name: str = "pbmc700") -> ad.AnnData:
    """Load one of `DEMOS`.

    Parameters
    ----------
    name
        ``"pbmc700"`` or ``"simulated"``.

    Returns
    -------
    anndata.AnnData
        ``X`` raw counts (CSR), labels in ``obs['cell_type']``, ``var['highly_variable']``.
    """
    if name == "pbmc700":
        try:
            return _pbmc700()
        except (DataError, OSError) as problem:
            logger.warning("%s; using the simulated cells instead", problem)
            name = "simulated"
    if name == "simulated":
        return simulate_expression(1500, 800, 6, n_batches=2, seed=7)
    raise DataError(f"there is no demo {name!r}; choose one of {', '.join(DEMOS)}")


def _pbmc700() -> ad.AnnData:
    # Read from where scanpy keeps it, since importing scanpy takes seconds.
    scanpy = importlib.util.find_spec("scanpy")
    if scanpy is None or scanpy.origin is None:
        raise DataError("scanpy, which ships the demonstration cells, is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is of an old anndata
        source = ad.read_h5ad(Path(scanpy.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad")
    counts = recover_counts(source.raw.X)
    names = source.raw.var_names
    obs = source.obs[["bulk_labels", "louvain", "phase"]].rename(columns={"bulk_labels": "cell_type"})
    out = ad.AnnData(counts, obs=obs.copy())
    out.var_names = names.astype(str)
    out.obs_names = source.obs_names.astype(str)
    out.var["highly_variable"] = np.isin(names, source.var_names[source.var["highly_variable"]])
    out.uns["source"] = DEMOS["pbmc700"]
    return out
