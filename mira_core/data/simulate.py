"""Counts from known topics, for tests, demonstrations and the judgement of models."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp


def simulate_expression(
    n_cells: int = 1000,
    n_genes: int = 600,
    n_topics: int = 6,
    *,
    n_types: int | None = None,
    n_batches: int = 1,
    batch_strength: float = 0.5,
    depth: float = 1500.0,
    dispersion: float = 5.0,
    seed: int = 0,
) -> ad.AnnData:
    """Simulate RNA counts as a topic model generates them.

    Each type of cell leans on a few topics; each cell's composition varies around its type's. Half of a topic's
    weight lies on genes of its own, the rest on a profile that all topics share. Counts are negative binomial.

    Parameters
    ----------
    n_cells, n_genes, n_topics
        Sizes.
    n_types
        Types of cells; None: 8, or as many as topics, so that every topic leads some type and can be found.
    n_batches
        Batches, drawn independently of the types. In each but the first, a third of the genes is shifted.
    batch_strength
        Standard deviation of these shifts, in natural-log units.
    depth
        Median counts of a cell; depths are log-normal with standard deviation 0.3.
    dispersion
        Inverse dispersion of the negative binomial.
    seed
        The same seed gives the same counts.

    Returns
    -------
    anndata.AnnData
        ``X`` counts (CSR, int32); ``obs['cell_type']``, ``obs['batch']``; ``obsm['true_topics']`` N x K;
        ``varm['true_topics']`` G x K, each topic's distribution over genes; ``var['highly_variable']``, all true.
    """
    rng = np.random.default_rng(seed)
    theta, types = _compositions(rng, n_cells, n_topics, max(8, n_topics) if n_types is None else n_types)
    topics = _topics(rng, n_topics, n_genes)
    batch = rng.integers(0, n_batches, n_cells)
    shift = np.where(rng.random((n_batches, n_genes)) < 1 / 3, rng.normal(0, batch_strength, (n_batches, n_genes)), 0)
    shift[0] = 0
    rho = (theta @ topics) * np.exp(shift[batch])
    rho /= rho.sum(1, keepdims=True)
    depths = depth * np.exp(rng.normal(0, 0.3, n_cells))
    mean = rho * depths[:, None]
    counts = rng.poisson(mean * rng.gamma(dispersion, 1 / dispersion, mean.shape))
    return ad.AnnData(
        sp.csr_matrix(counts.astype(np.int32)),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical([f"type {t + 1}" for t in types]),
                "batch": pd.Categorical([f"batch {b + 1}" for b in batch]),
            },
            index=[f"cell{i + 1}" for i in range(n_cells)],
        ),
        var=pd.DataFrame({"highly_variable": True}, index=[f"gene{j + 1}" for j in range(n_genes)]),
        obsm={"true_topics": theta},
        varm={"true_topics": topics.T},
        uns={"source": f"simulated by mira_core.data.simulate, seed {seed}"},
    )


def _compositions(rng: np.random.Generator, n_cells: int, n_topics: int, n_types: int) -> tuple[np.ndarray, np.ndarray]:
    types = rng.integers(0, n_types, n_cells)
    centre = np.full((n_types, n_topics), 0.02)
    for t in range(n_types):
        centre[t, t % n_topics] += 0.65
        centre[t, rng.integers(n_topics)] += 0.3
    centre /= centre.sum(1, keepdims=True)
    theta = rng.gamma(np.maximum(20 * centre[types], 1e-3))
    theta = np.maximum(theta, 1e-9)
    return theta / theta.sum(1, keepdims=True), types


def _topics(rng: np.random.Generator, n_topics: int, n_genes: int) -> np.ndarray:
    shared = np.exp(rng.normal(0, 1.2, n_genes))
    own = shared * rng.gamma(0.2, 5.0, (n_topics, n_genes))
    topics = 0.5 * own / own.sum(1, keepdims=True) + 0.5 * shared / shared.sum()
    return topics / topics.sum(1, keepdims=True)
