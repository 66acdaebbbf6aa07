"""What a fitted network says, as arrays: compositions, their coordinates, topics' relations.

Shapes: N cells, G features, K topics.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.cluster.hierarchy as hierarchy
import scipy.linalg
import torch

from ..data import loaders
from ..data.counts import Cells
from ..nn.network import TopicNetwork
from ..nn.prior import quasi_normal
from ..training.evaluation import evaluating

POSTERIOR_POINTS = 128
POINTS_AT_ONCE = 16


def compositions(network: TopicNetwork, cells: Cells, batch_size: int = 512) -> np.ndarray:
    """Posterior mean of the topics of each cell, N x K.

    The mean of theta(loc + scale * eps) over fixed points eps that all cells share, so that the result does
    not depend on the order of the cells nor on any generator.
    """
    K = network.num_topics
    eps_SK = quasi_normal(POSTERIOR_POINTS, K).to(network.device, torch.float32)
    out = np.empty((len(cells), K), np.float32)
    done = 0
    for batch in loaders.in_order(cells, batch_size):
        with evaluating(network):
            q = network.encoder(batch.to(network.device))
            theta = torch.zeros_like(q.theta_loc_BK)
            for eps in eps_SK.split(POINTS_AT_ONCE):
                theta += network.prior.theta(q.theta_loc_BK + q.theta_scale_BK * eps[:, None]).sum(0)
        out[done : done + len(theta)] = (theta / theta.sum(1, keepdim=True)).cpu().numpy()
        done += len(theta)
    return out


def frequencies(network: TopicNetwork, theta: np.ndarray, batch_size: int = 512) -> Iterator[np.ndarray]:
    """Yield the relative frequencies of features, rho, for rows of compositions, a chunk at a time."""
    for start in range(0, len(theta), batch_size):
        chunk = torch.as_tensor(theta[start : start + batch_size], dtype=torch.float32, device=network.device)
        with evaluating(network):
            rho = network.decoder(chunk).exp()
        yield rho.cpu().numpy()


def technical_effects(
    network: TopicNetwork, theta: np.ndarray, covariates: np.ndarray, batch_size: int = 512
) -> Iterator[np.ndarray]:
    """Yield the technical signal for rows of compositions and covariates, a chunk at a time."""
    assert network.technical is not None
    for start in range(0, len(theta), batch_size):
        theta_BK, covariates_BC = (
            torch.as_tensor(x[start : start + batch_size], dtype=torch.float32, device=network.device)
            for x in (theta, covariates)
        )
        with evaluating(network):
            effect = network.technical.signal(theta_BK, covariates_BC)
        yield effect.cpu().numpy()


def umap_features(theta: np.ndarray, box_cox: float = 0.25, basis: np.ndarray | None = None) -> np.ndarray:
    """Coordinates of compositions for neighbours with the manhattan metric, N x (K - 1).

    Box-Cox transform with power `box_cox` of the compositions divided by their mean (the log of the ratio to the
    geometric mean as the power goes to zero), then an orthonormal basis of contrasts (isometric log-ratio).
    """
    K = theta.shape[1]
    if box_cox == 0:
        log = np.log(np.maximum(theta, 1e-12))
        centred = log - log.mean(1, keepdims=True)
    else:
        power = np.maximum(theta, 0).astype(float) ** box_cox
        centred = (power / power.mean(1, keepdims=True) - 1) / box_cox
    contrasts = scipy.linalg.helmert(K) if basis is None else basis  # rows orthonormal and orthogonal to ones
    return (centred @ contrasts.T).astype(np.float32)


def balances(linkage: np.ndarray) -> np.ndarray:
    """Orthonormal contrasts of a dendrogram, (K - 1) x K: at each join, the topics of one side against the other's."""
    K = len(linkage) + 1
    members = {k: [k] for k in range(K)}
    basis = np.zeros((K - 1, K))
    for i, (a, b) in enumerate(linkage[:, :2].astype(int)):
        left, right = members[a], members[b]
        n, m = len(left), len(right)
        basis[i, left] = np.sqrt(m / (n * (n + m)))
        basis[i, right] = -np.sqrt(n / (m * (n + m)))
        members[K + i] = left + right
    return basis


def dendrogram(topic_distributions: np.ndarray) -> np.ndarray:
    """Ward linkage of topics by the Hellinger distance of their distributions over features, (K - 1) x 4."""
    return hierarchy.linkage(np.sqrt(topic_distributions) / np.sqrt(2), method="ward")
