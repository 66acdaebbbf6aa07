"""What can be asked of a fitted model: topics of cells, features of topics.

Shapes: N cells, G modelled features, K topics, C covariate columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import torch

from ..data import anndata_io, sources
from ..data.counts import Cells
from ..data.covariates import Coding
from ..data.sources import Data
from ..data.statistics import Statistics
from ..errors import DataError, NotFitted, OptionError
from ..nn.network import TopicNetwork
from ..records import EpochRecord
from ..training.evaluation import mean_loss
from . import interpretation
from .parameters import Parameters


@dataclass
class Fitted:
    """What a fit leaves behind.

    Attributes
    ----------
    network
        The parameters.
    features, endogenous, coding, statistics
        Of the training cells.
    given, options
        The options of this fit: those set explicitly, and the values of all.
    seed
        The one given, or the one drawn in its place.
    history
        One record for each epoch trained.
    """

    network: TopicNetwork
    features: np.ndarray
    endogenous: np.ndarray
    coding: Coding
    statistics: Statistics
    given: dict[str, Any]
    options: dict[str, Any]
    seed: int
    history: list[EpochRecord] = field(default_factory=list)


class FittedModel(Parameters):
    """Everything that reads a fitted model and leaves it as it is."""

    _fit: Fitted | None = None

    @property
    def network(self) -> TopicNetwork | None:
        """The parameters, once fitted."""
        return self._fit.network if self._fit else None

    @property
    def features(self) -> np.ndarray:
        """Names of the modelled features, G, once fitted."""
        return self._fit.features if self._fit else np.array([], dtype=str)

    @property
    def mean_profile(self) -> np.ndarray:
        """Share of each modelled feature in the training cells' counts, G; sums to 1."""
        return self._fitted().statistics.mean_profile

    @property
    def history(self) -> list[EpochRecord]:
        """One record for each epoch trained."""
        return self._fit.history if self._fit else []

    @property
    def seed_used(self) -> int | None:
        """The seed of the last fit: `seed`, or the one drawn in its place."""
        return self._fit.seed if self._fit else None

    @property
    def training_loss(self) -> list[float]:
        """Mean loss of each epoch, nats per cell, divergences weighted as they were."""
        return [r.loss for r in self.history]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._fitted().network.device

    @property
    def topic_cols(self) -> list[str]:
        """Names of the columns that `predict` writes: topic_0, topic_1, ..."""
        return [f"topic_{k}" for k in range(self._fit.network.num_topics if self._fit else self.num_topics)]

    def _fitted(self) -> Fitted:
        if self._fit is None:
            raise NotFitted("the model is not fitted; call fit(data) first, or load one by load_model(path)")
        return self._fit

    # --- cells ----------------------------------------------------------------------------------

    def _cells(self, source: Any) -> Cells:
        fit = self._fitted()
        return sources.cells_of_model(source, fit.options, fit.features, fit.endogenous, fit.coding)

    def predict(self, data: Data, *, box_cox: float = 0.25) -> ad.AnnData:
        """Infer each cell's topics.

        Parameters
        ----------
        data
            AnnData, the path of a file, or of a folder that `write_ondisk_dataset` wrote, with all features
            of the model, in any order.
        box_cox
            Power of the transform of `get_umap_features`.

        Returns
        -------
        anndata.AnnData
            The same object (for a path: a new one, without counts if it is a folder's) with, in addition:

            ``obsm['X_topic_compositions']``
                Posterior mean of the topics, N x K, rows sum to 1.
            ``obsm['X_umap_features']``
                Coordinates for neighbours with the manhattan metric, N x (K - 1).
            ``obs['topic_0']``, ...
                Columns of the compositions.
            ``varm['topic_feature_compositions']``, ``varm['topic_feature_activations']``
                Features by topics; NaN for features that are not modelled.
            ``uns['topic_dendogram']``
                Ward linkage of the topics.

        Raises
        ------
        NotFitted, DataError
        """
        fit = self._fitted()
        source = sources.open_source(data)
        theta = interpretation.compositions(fit.network, self._cells(source))
        adata = source if isinstance(source, ad.AnnData) else source.table()
        anndata_io.write_topics(adata, theta, interpretation.umap_features(theta, box_cox))
        for name in ("topic_feature_compositions", "topic_feature_activations"):
            anndata_io.write_features(adata, fit.features, name, getattr(self, name)())
        adata.uns["topic_dendogram"] = self.cluster_topics()
        return adata

    def _predicted(self, data: Data) -> tuple[ad.AnnData, np.ndarray]:
        """Return an AnnData with compositions, predicting them if a path is given, and the compositions."""
        adata = data if isinstance(data, ad.AnnData) else self.predict(data)
        K = self._fitted().network.num_topics
        if "X_topic_compositions" not in adata.obsm:
            raise DataError("obsm['X_topic_compositions'] is missing; call predict(adata) first")
        theta = np.asarray(adata.obsm["X_topic_compositions"])
        if theta.ndim != 2 or theta.shape[1] != K:
            raise DataError(
                f"obsm['X_topic_compositions'] must be cells x {K} topics; got shape {theta.shape}. "
                "Call predict(adata) with this model first"
            )
        return adata, theta

    def get_umap_features(self, adata: Data, *, box_cox: float = 0.25) -> np.ndarray:
        """Compute coordinates of the cells' topics, for neighbours with the manhattan metric.

        Isometric log-ratio of the compositions with a centred Box-Cox transform.

        Parameters
        ----------
        adata
            With ``obsm['X_topic_compositions']`` from `predict`, or a path, for which they are predicted.
        box_cox
            Power; 0 gives the logarithm. Smaller values tell rare topics further apart.

        Returns
        -------
        numpy.ndarray, N x (K - 1)
            Also written to ``obsm['X_umap_features']``.
        """
        adata, theta = self._predicted(adata)
        adata.obsm["X_umap_features"] = features = interpretation.umap_features(theta, box_cox)
        return features

    def get_hierarchical_umap_features(self, adata: Data, *, box_cox: float = 0.5) -> np.ndarray:
        """Compute coordinates of the cells' topics that follow the topics' dendrogram.

        As `get_umap_features`, but each coordinate is a balance: one branch of the dendrogram against its sister
        (isometric log-ratio of a sequential binary partition: Egozcue & Pawlowsky-Glahn, Math. Geology 2005).

        Parameters
        ----------
        adata
            With ``obsm['X_topic_compositions']`` from `predict`, or a path, for which they are predicted.
        box_cox
            Power; 0 gives the logarithm.

        Returns
        -------
        numpy.ndarray, N x (K - 1)
            In the order in which the dendrogram joins; also written to ``obsm['X_umap_features']``.
        """
        adata, theta = self._predicted(adata)
        basis = interpretation.balances(self.cluster_topics())
        adata.obsm["X_umap_features"] = features = interpretation.umap_features(theta, box_cox, basis)
        return features

    def impute(self, adata: Data) -> np.ndarray:
        """Compute what the topics say of each feature's relative frequency in each cell, without technical effects.

        Parameters
        ----------
        adata
            With ``obsm['X_topic_compositions']`` from `predict`, or a path, for which they are predicted.

        Returns
        -------
        numpy.ndarray, N x n_vars
            Also written to ``layers['imputed']``; over the modelled features rows sum to 1, others are NaN.
        """
        adata, theta = self._predicted(adata)
        return self._write_layer(adata, "imputed", interpretation.frequencies(self._fitted().network, theta))

    def get_batch_effect(self, adata: Data) -> np.ndarray:
        """Compute the technical effect on each feature in each cell; of CODAL models only.

        Frequencies with technical effects are ``imputed * exp(batch_effect)``, over their sum.

        Parameters
        ----------
        adata
            With ``obsm['X_topic_compositions']`` from `predict` and the columns of the covariates, or a path, for
            which they are predicted.

        Returns
        -------
        numpy.ndarray, N x n_vars
            In natural-log units; also written to ``layers['batch_effect']``; NaN for features not modelled.
        """
        fit = self._fitted()
        if fit.network.technical is None:
            raise OptionError("the model has no covariates, and so no batch effect; name some, and fit it anew")
        adata, theta = self._predicted(adata)
        covariates = fit.coding.covariates(anndata_io.obs_column(adata.obs))
        effects = interpretation.technical_effects(fit.network, theta, covariates)
        return self._write_layer(adata, "batch_effect", effects)

    def _write_layer(self, adata: ad.AnnData, name: str, chunks: Any) -> np.ndarray:
        features = self._fitted().features
        if missing := sorted(set(features) - set(adata.var_names)):
            raise DataError(f"the data lacks {len(missing)} of the model's features, such as {missing[0]}")
        out, at = anndata_io.empty_layer(adata, features)
        done = 0
        for chunk in chunks:
            out[done : done + len(chunk), at] = chunk
            done += len(chunk)
        adata.layers[name] = out
        return out

    def score(self, data: Data) -> float:
        """Negative evidence lower bound, in nats per cell; lower is better.

        At full weight of all terms and over fixed draws, so that the same model and data give the same score.
        """
        network = self._fitted().network
        return mean_loss(network, self._cells(sources.open_source(data)))["loss"]

    # --- topics ---------------------------------------------------------------------------------

    def topic_feature_compositions(self) -> np.ndarray:
        """Return each topic's distribution over the modelled features, K x G, rows sum to 1."""
        return self._fitted().network.decoder.topic_distributions().cpu().numpy()

    def topic_feature_activations(self) -> np.ndarray:
        """Return how far each topic moves each modelled feature, in standard deviations, K x G."""
        return self._fitted().network.decoder.activations().cpu().numpy()

    def cluster_topics(self) -> np.ndarray:
        """Return Ward's linkage of the topics, (K - 1) x 4, by the Hellinger distance of what they are made of."""
        return interpretation.dendrogram(self.topic_feature_compositions())

    def rank_genes(self, topic_num: int) -> np.ndarray:
        """Return all modelled features, from least to most activated in a topic."""
        return self.features[np.argsort(self.topic_feature_activations()[self._topic(topic_num)], kind="stable")]

    rank_peaks = rank_genes

    def rank_modules(self, gene: str) -> list[tuple[int, float]]:
        """Return (topic, activation of the feature in it) for all topics, most activated first."""
        at = np.flatnonzero(self._fitted().features == gene)
        if not at.size:
            raise DataError(f"{gene!r} is not among the {len(self.features)} modelled features")
        activation = self.topic_feature_activations()[:, at[0]]
        order = np.argsort(-activation, kind="stable")
        return [(int(k), float(activation[k])) for k in order]

    def get_top_genes(
        self, topic_num: int, top_n: int | None = None, *, min_genes: int = 200, max_genes: int = 600
    ) -> np.ndarray:
        """Return the most activated features of a topic, from least to most activated.

        Parameters
        ----------
        topic_num
            Topic, from 0.
        top_n
            How many. None: all whose activation is more than 3 above the topic's mean, but at least `min_genes`
            and at most `max_genes`.
        """
        ranked = self.rank_genes(topic_num)
        if top_n is None:
            activation = self.topic_feature_activations()[topic_num]
            found = int((activation - max(activation.mean(), 0) > 3).sum())
            top_n = min(max(found, min_genes), max_genes)
        elif isinstance(top_n, bool) or not isinstance(top_n, int | np.integer) or top_n < 1:
            raise OptionError(f"top_n must be an integer of at least 1; got {top_n!r}")
        return ranked[-int(top_n) :]

    get_top_peaks = get_top_genes

    def _topic(self, topic_num: int) -> int:
        K = self._fitted().network.num_topics
        if isinstance(topic_num, bool) or not isinstance(topic_num, int | np.integer) or not 0 <= topic_num < K:
            raise OptionError(f"topic_num must be an integer from 0 to {K - 1}; got {topic_num!r}")
        return int(topic_num)
