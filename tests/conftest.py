"""What tests share: cells, a fitted model, and where the real data lie."""

from __future__ import annotations

# Networks this small lose by more threads than one, above all beside other work, and sums depend on their number.
# Numba resets OpenMP's when UMAP runs. Processes that tests start inherit both.
import os

os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")

from pathlib import Path

import anndata as ad
import pytest

import mira_core as mira

from .helpers import make, make_cells

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data of {SHARED} are not here")
    return SHARED


@pytest.fixture(scope="session")
def _simulated() -> ad.AnnData:
    return mira.data.simulate_expression(300, 120, 4, n_types=4, depth=600, seed=3)


@pytest.fixture
def cells(_simulated: ad.AnnData) -> ad.AnnData:
    """300 x 120 simulated counts; a copy for each test."""
    return _simulated.copy()


@pytest.fixture
def tiny() -> ad.AnnData:
    """12 x 7 counts with names, no empty cell and no empty feature."""
    return make_cells(12, 7)


@pytest.fixture(scope="session")
def fitted(_simulated: ad.AnnData) -> mira.topics.TopicModel:
    """A model of `cells`; do not change it."""
    return make(_simulated, num_epochs=8).fit(_simulated, progress=False)
