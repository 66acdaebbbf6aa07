"""Small things that several tests use."""

from __future__ import annotations

import random

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import mira_core as mira
from mira_core import options as opt
from mira_core.data import sources, statistics
from mira_core.data.counts import Cells
from mira_core.estimators import interpretation
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


# Options of every family of models, and of their combinations.
FAMILIES: dict[str, dict[str, object]] = {
    "expression": {},
    "probabilities": {"nb_parameterize_logspace": False},
    "skipDAN": {"feature_type": "accessibility", "atac_encoder": "skipDAN"},
    "DAN": {"feature_type": "accessibility", "atac_encoder": "DAN"},
    "fast": {"feature_type": "accessibility", "atac_encoder": "fast"},
    "CODAL": {"categorical_covariates": ["batch"], "continuous_covariates": ["quality"]},
    "process": {"topic_prior": "dirichlet_process"},
}
FAMILIES |= {
    f"{a}+{b}": {**FAMILIES[a], **FAMILIES[b]}
    for a, b in [("CODAL", "skipDAN"), ("CODAL", "DAN"), ("CODAL", "fast"), ("process", "skipDAN"), ("process", "DAN"),
                 ("process", "fast"), ("process", "CODAL")]
}  # fmt: skip
FAMILIES["process+CODAL+skipDAN"] = {**FAMILIES["process+CODAL"], **FAMILIES["skipDAN"]}


def with_columns(adata: ad.AnnData) -> ad.AnnData:
    """Add the columns of ``obs`` that `FAMILIES` name: two batches, and a measure of quality; and an extra feature."""
    rng = np.random.default_rng(5)
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 3, "a", "b")
    adata.obs["quality"] = rng.normal(3, 2, adata.n_obs)
    adata.obs["extra"] = np.linspace(-1, 1, adata.n_obs)
    return adata


def make(adata: ad.AnnData, **options: object) -> mira.topics.TopicModel:
    """A small model, of expression unless told otherwise."""
    small = {"feature_type": "expression", "num_topics": 4, "hidden": 16, "num_epochs": 3, "batch_size": 32, "seed": 0}
    if options.get("feature_type") == "accessibility" and options.get("atac_encoder") != "fast":
        small["dan_on_cpu"] = True
    return mira.topics.make_model(*adata.shape, **{**small, **options})


def make_tuner(adata: ad.AnnData, save_name: str = "a/study", **options: object) -> mira.topics.BayesianTuner:
    """A tuner of few and small models; ``model`` holds options of theirs."""
    model = make(adata, **{"num_epochs": 6, **options.pop("model", {})})
    small = {"min_topics": 2, "max_topics": 12, "max_trials": 6, "min_trials": 4, "stop_condition": 3, "seed": 1}
    return mira.topics.BayesianTuner(model=model, save_name=save_name, **{**small, **options})


def read_cells(adata: ad.AnnData, **options: object) -> Cells:
    """The cells as a model would read them for training."""
    return sources.training_cells(adata, make(adata, **options).get_params())


def make_network(cells: Cells, *, seed: int = 0, **options: object) -> TopicNetwork:
    """A small network in float64 with parameters moved away from their starting values; without dropout.

    `options` are those of `make_model`, such as an entry of `FAMILIES`, whatever applies to the family.
    """
    dropouts = {name: 0.0 for name in opt.names() if name.endswith("dropout")}
    small = {"num_topics": 3, "hidden": 5, "num_layers": 2, "initial_pseudocounts": 10, "dependence_hidden": 6,
             "covariates_hidden": 4, "marginal_estimation_size": 9}  # fmt: skip
    if options.get("feature_type") == "accessibility":
        small["num_layers"] = 3  # skipDAN takes no fewer
    chosen = {**{name: opt.default(name) for name in opt.names()}, **small, **dropouts, **options}
    learned = statistics.learn(cells, 4 if options.get("atac_encoder") == "fast" else 0)
    network = TopicNetwork(chosen, cells.endogenous, learned, cells.covariates.shape[1], cells.extra.shape[1]).double()
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


def global_states() -> tuple:
    """The states of the process's random generators."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return bytes(torch.get_rng_state().numpy()), name, bytes(keys), rest, random.getstate()


def predicted(theta: np.ndarray, activations: np.ndarray | None = None) -> ad.AnnData:
    """Cells without counts, as `predict` writes them, from shares N x K and activations K x G of named features."""
    K = theta.shape[1]
    if activations is None:
        activations = np.random.default_rng(0).normal(size=(K, 30))
    G = activations.shape[1]
    weight = np.exp(activations)
    out = ad.AnnData(
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(len(theta))]),
        var=pd.DataFrame(index=[f"GENE{j}" for j in range(G)]),
    )
    out.obsm["X_topic_compositions"] = theta.astype(np.float32)
    out.obsm["X_umap_features"] = interpretation.umap_features(theta, 0.25)
    out.varm["topic_feature_compositions"] = (weight / weight.sum(1, keepdims=True)).T.astype(np.float32)
    out.varm["topic_feature_activations"] = activations.T.astype(np.float32)
    return out
