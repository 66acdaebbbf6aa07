"""What a model may be given as its data, and how it becomes cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import anndata as ad
import numpy as np

from ..errors import DataError, OptionError
from . import anndata_io, formats
from .anndata_io import obs_column
from .counts import Cells
from .covariates import Coding, strata
from .demo import DEMO, load_demo
from .on_disk import OnDiskDataset

Data: TypeAlias = ad.AnnData | OnDiskDataset | str | Path


def open_source(data: Data) -> ad.AnnData | OnDiskDataset:
    """Return the data, opened if a path is given: a folder of `write_ondisk_dataset`, or whatever `open_data` reads."""
    if isinstance(data, OnDiskDataset):
        return data
    return OnDiskDataset(data) if is_ondisk(data) else anndata_io.open_data(data)


def open_named(data: str) -> ad.AnnData | OnDiskDataset:
    """Open what a job names as its data: a path as `fit` takes it, or ``demo:NAME``."""
    return load_demo(data.removeprefix(DEMO)) if data.startswith(DEMO) else open_source(data)


def open_backed(data: str) -> ad.AnnData:
    """Open cells to look at: a path, whose large matrices stay on the disk, or ``demo:NAME``.

    Raises
    ------
    DataError
        If they cannot be opened, or `write_ondisk_dataset` wrote them.
    """
    if data.startswith(DEMO):
        return load_demo(data.removeprefix(DEMO))
    if is_ondisk(data):
        raise DataError(f"{data} was written by write_ondisk_dataset, which checked it; take the file it came from")
    return anndata_io.open_data(data, backed=True)


def is_ondisk(data: Data) -> TypeGuard[str | Path]:
    """Whether this is the path of a folder that is read as `write_ondisk_dataset` wrote it."""
    return isinstance(data, str | Path) and Path(data).is_dir() and not formats.is_data(Path(data))


def training_cells(data: Data, options: Mapping[str, Any]) -> Cells:
    """Read what a model is fitted to, as its options say.

    Raises
    ------
    DataError
    """
    source = open_source(data)
    if len(source) < 2:
        raise DataError(f"at least 2 cells are needed to train; got {len(source)}")
    if isinstance(source, OnDiskDataset):
        cells = source.training_cells(options)
    else:
        cells = anndata_io.training_cells(source, options)
    anndata_io.check_encoder_features(cells, options)
    return cells


def cells_of_model(
    source: ad.AnnData | OnDiskDataset,
    options: Mapping[str, Any],
    features: np.ndarray,
    endogenous: np.ndarray,
    coding: Coding,
) -> Cells:
    """Read the cells for a fitted model.

    Raises
    ------
    DataError
    """
    if not len(source):
        raise DataError("the data has no cells")
    if isinstance(source, OnDiskDataset):
        return source.cells_of_model(options, features, endogenous, coding)
    return anndata_io.cells_of_model(source, options, features, endogenous, coding)


def split(
    source: ad.AnnData | OnDiskDataset, options: Mapping[str, Any], train_size: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows for training and for testing, in random order, in proportion within each stratum of covariates.

    Raises
    ------
    OptionError
        If a part would be empty.
    """
    n = len(source)
    n_train = round(train_size * n) if 0 < train_size < 1 else 0
    if not 0 < n_train < n:
        raise OptionError(f"train_size must be between 0 and 1 and leave cells on both sides; got {train_size} of {n}")
    rng = np.random.default_rng(seed)
    column = source.column if isinstance(source, OnDiskDataset) else obs_column(source.obs)
    shuffled = rng.permutation(n)
    by_stratum = shuffled[np.argsort(strata(column, options, n)[shuffled], kind="stable")]
    chosen = np.diff(np.arange(n + 1) * n_train // n) > 0  # evenly along the sorted cells
    train, test = by_stratum[chosen], by_stratum[~chosen]
    return rng.permutation(train), rng.permutation(test)
