"""Small things that several tests use."""

from __future__ import annotations

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch

import mira_core as mira
from mira_core.data import anndata_io, statistics
from mira_core.data.counts import Cells
from mira_core.nn.encoders import DevianceResiduals, ExpressionEncoder
from mira_core.nn.network import TopicNetwork


def make_cells(n: int, g: int, seed: int = 0) -> ad.AnnData:
    """Random counts in X, int32 CSR, with at least one count in each row and column."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(1, 2, (n, g)))
    x[np.arange(n), np.arange(n) % g] += 1
    x[np.arange(g) % n, np.arange(g)] += 1
    adata = ad.AnnData(sp.csr_matrix(x.astype(np.int32)))
    adata.obs_names = [f"cell{i}" for i in range(n)]
    adata.var_names = [f"gene{j}" for j in range(g)]
    return adata


def make(adata: ad.AnnData, **options: object) -> mira.topics.TopicModel:
    """A small expression model."""
    small = {"num_topics": 4, "hidden": 16, "num_epochs": 3, "batch_size": 32, "seed": 0}
    return mira.topics.make_model(*adata.shape, feature_type="expression", **{**small, **options})


def read_cells(adata: ad.AnnData, **options: object) -> Cells:
    """The cells as a model would read them for training."""
    return anndata_io.training_cells(adata, make(adata, **options).get_params())


def make_network(
    cells: Cells, num_topics: int = 3, dropout: float = 0.0, logspace: bool = True, seed: int = 0
) -> TopicNetwork:
    """A small network in float64 with parameters moved away from their starting values."""
    learned = statistics.learn(cells)
    encoder = ExpressionEncoder(
        DevianceResiduals(cells.endogenous, learned), num_topics, 5, 2, None, dropout, 0, cells.extra.shape[1]
    )
    network = TopicNetwork(
        encoder,
        learned,
        num_topics=num_topics,
        initial_pseudocounts=10,
        decoder_dropout=dropout,
        nb_logspace=logspace,
    ).double()
    generator = torch.Generator().manual_seed(seed)
    network.initialise(generator)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return network


def arrays(model: mira.topics.TopicModel) -> dict[str, np.ndarray]:
    """All tensors of a fitted model."""
    return {k: v.cpu().numpy().copy() for k, v in model.network.state_dict().items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether two models are equal to the last bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
