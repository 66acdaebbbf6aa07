"""Data to try things on: real cells that a dependency ships, and a simulated set with known topics."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp

from ..errors import DataError
from .simulate import simulate_expression

logger = logging.getLogger(__name__)

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
    counts = counts_from_log(sp.csr_array(source.raw.X))
    names = source.raw.var_names
    obs = source.obs[["bulk_labels", "louvain", "phase"]].rename(columns={"bulk_labels": "cell_type"})
    out = ad.AnnData(sp.csr_matrix(counts), obs=obs.copy())
    out.var_names = names.astype(str)
    out.obs_names = source.obs_names.astype(str)
    out.var["highly_variable"] = np.isin(names, source.var_names[source.var["highly_variable"]])
    out.uns["source"] = DEMOS["pbmc700"]
    return out


def counts_from_log(logged: sp.csr_array, tolerance: float = 0.2) -> sp.csr_array:
    """Recover whole counts from log1p(count x scale of the cell).

    The smallest non-zero value of a cell is taken for a count of one, which gives the cell's scale.

    Raises
    ------
    DataError
        If a recovered value is further than `tolerance` from a whole number.
    """
    x = sp.csr_array(logged, dtype=np.float64, copy=True)
    x.eliminate_zeros()
    if (np.diff(x.indptr) == 0).any():
        raise DataError("counts cannot be recovered: a cell has no value above zero")
    x.data = np.expm1(x.data)
    x.data /= np.repeat(np.minimum.reduceat(x.data, x.indptr[:-1]), np.diff(x.indptr))
    whole = np.rint(x.data)
    if (off := np.abs(x.data - whole).max()) > tolerance:
        raise DataError(f"counts cannot be recovered: a value is {off:.2f} from a whole number")
    x.data = whole
    return x.astype(np.int32)
