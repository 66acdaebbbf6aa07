"""What a fitted network says of one feature in all cells, without the table of all features in all cells.

log rho is a linear map of theta, less its log-sum-exp over the features; the latter is the same for all features, so
that it has to be found once. The technical signal of a feature is a linear map of the hidden layer.

Shapes: N cells, G modelled features, K topics, C covariate columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..nn.network import TopicNetwork
from ..training.evaluation import evaluating

CHUNK = 2**25  # numbers that are in memory at once
Progress = Callable[[float], None]


def _tell(_: float) -> None:
    pass


def log_normalisers(network: TopicNetwork, theta: np.ndarray, progress: Progress = _tell) -> np.ndarray:
    """Return the log of what the exponentials of the features' signals sum to, N; the long part of `frequency`.

    Parameters
    ----------
    network, theta
        A fitted network, and compositions, N x K.
    progress
        Called with the share that is done, after each chunk of cells; may raise to end it.
    """
    out = np.empty(len(theta), np.float32)
    size = max(1, CHUNK // len(network.decoder.base_G))
    for start in range(0, len(theta), size):
        with evaluating(network):
            signal = network.decoder.linear(_tensor(network, theta[start : start + size])).dense()
            out[start : start + size] = torch.logsumexp(signal + network.decoder.base_G, dim=1).cpu().numpy()
        progress(min(1.0, (start + size) / len(theta)))
    return out


def frequency(network: TopicNetwork, theta: np.ndarray, normalisers: np.ndarray, feature: int) -> np.ndarray:
    """Return the relative frequency of one feature without technical effects, N, as `impute` gives it of all.

    Parameters
    ----------
    network, theta
        A fitted network, and compositions, N x K.
    normalisers
        From `log_normalisers`, of the same network and compositions.
    feature
        Its position among the modelled ones.
    """
    with evaluating(network):
        linear = network.decoder.linear(_tensor(network, theta[:1]))
        weight = linear.weight_JG[:, feature].cpu().numpy()
        bias = float(linear.bias_G[feature] + network.decoder.base_G[feature])
    return np.asarray(np.exp(theta @ weight + bias - normalisers), np.float32)


def technical_effect(
    network: TopicNetwork, theta: np.ndarray, covariates: np.ndarray, feature: int, progress: Progress = _tell
) -> np.ndarray:
    """Return the technical effect on one feature, N, in natural-log units, as `get_batch_effect` gives it of all.

    Parameters
    ----------
    network, theta, covariates
        A fitted network of a CODAL model, compositions, N x K, and coded covariates, N x C.
    feature
        Its position among the modelled ones.
    progress
        As in `log_normalisers`.
    """
    assert network.technical is not None
    out = np.empty(len(theta), np.float32)
    size = 16_384
    for start in range(0, len(theta), size):
        with evaluating(network):
            x = (_tensor(network, a[start : start + size]) for a in (theta, covariates))
            linear = network.technical.linear(*x)
            effect = linear.x_BJ @ linear.weight_JG[:, feature] + linear.bias_G[feature]
        out[start : start + size] = effect.cpu().numpy()
        progress(min(1.0, (start + size) / len(theta)))
    return out


def _tensor(network: TopicNetwork, values: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=network.device)
