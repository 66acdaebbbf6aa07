"""What tests share: cells, a fitted model, and where the real data lie."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import pytest
import torch

import mira_core as mira

from .helpers import make, make_cells

torch.set_num_threads(1)  # networks this small lose by more, above all beside other work

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
