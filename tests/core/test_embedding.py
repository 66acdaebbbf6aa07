"""The map of cells: its neighbours, many cells, and what is not compiled twice."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from mira_core.analysis import embedding
from mira_core.analysis.embedding import NearestCells, embed
from mira_core.estimators.interpretation import umap_features


def features(n: int, topics: int = 8, seed: int = 0) -> np.ndarray:
    return umap_features(np.random.default_rng(seed).dirichlet(np.full(topics, 0.2), n))


def test_neighbours_are_the_nearest_also_where_cells_are_alike(monkeypatch):
    x = features(400).astype(np.float32)
    x[:20] = x[20:40]  # cells that are the same
    monkeypatch.setattr(embedding, "AT_ONCE", 7 * len(x))  # in pieces, the last of them smaller
    found = NearestCells(15).fit_transform(x)
    expected, _ = NearestNeighbors(n_neighbors=14, metric="manhattan").fit(x).kneighbors()
    np.testing.assert_allclose(found.data.reshape(400, 14), expected, atol=1e-4)
    assert found.diagonal().sum() == 0
    assert (found.indices.reshape(400, 14) != np.arange(400)[:, None]).all()
    np.testing.assert_allclose(
        found.data, np.abs(x[np.repeat(np.arange(400), 14)] - x[found.indices]).sum(1), atol=1e-4
    )


@pytest.mark.parametrize("n", [1, 4, 5, 20])
def test_few_cells_have_a_map(n):
    xy = embed(features(n))
    assert (xy.shape, xy.dtype) == ((n, 2), np.float32)
    assert np.isfinite(xy).all()


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False])
def test_five_thousand_cells_lie_beside_their_neighbours(monkeypatch, exact):
    """Of which scanpy leaves the neighbours to pynndescent, some versions of which it does not understand."""
    if not exact:
        monkeypatch.setattr(embedding, "EXACT", 1000)
    rng, kind, told = np.random.default_rng(0), np.arange(5000) % 6, []
    x = umap_features(np.stack([rng.dirichlet(np.where(np.arange(8) == k, 8.0, 0.4)) for k in kind]))
    xy = embed(x, told.append)
    assert told[-1] == 1
    _, nearest = NearestNeighbors(n_neighbors=15).fit(xy).kneighbors()
    assert np.mean(kind[nearest] == kind[:, None]) > 0.95
    np.testing.assert_array_equal(embed(x), xy)


SECOND = """
import numpy as np
from mira_core.analysis.embedding import embed
embed(np.random.default_rng(0).normal(size=(100, 4)))
from umap.umap_ import smooth_knn_dist
print(sum(smooth_knn_dist.stats.cache_hits.values()), sum(smooth_knn_dist.stats.cache_misses.values()))
"""


def test_what_was_compiled_is_there_for_the_next_process():
    embed(features(100))
    second = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, check=True)
    assert second.stdout.split() == ["1", "0"]
