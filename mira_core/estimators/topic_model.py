"""The topic model as a user holds it: AnnData in, topics out."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import anndata as ad
import numpy as np
import torch

from .. import options as opt
from ..data import anndata_io, statistics
from ..data.counts import Cells
from ..errors import CheckpointError, DataError, NotFitted, OptionError
from ..nn.encoders import DevianceResiduals, ExpressionEncoder
from ..nn.network import TopicNetwork
from ..recommend import ResolvedOption, check_count, resolve
from ..records import EpochRecord, Record, from_dict
from ..training import loop
from ..training.writers import RecordWriter
from . import checkpoint, interpretation

Data: TypeAlias = ad.AnnData | str | Path


class TopicModel:
    """A topic model of single-cell counts; made by `make_model`.

    Every option can be read as an attribute (``model.num_topics``); `set_params` changes them.

    Attributes
    ----------
    n_samples, n_features
        Size of the data for which options were recommended.
    network : TopicNetwork or None
        The parameters, once fitted.
    features : numpy.ndarray of str, G
        Names of the modelled features, once fitted.
    history : list of EpochRecord
        One record for each epoch trained.
    seed_used : int or None
        The seed of the last fit: `seed`, or the one drawn in its place.
    """

    def __init__(self, n_samples: int, n_features: int, **given: Any) -> None:
        self.n_samples = check_count("n_samples", n_samples)
        self.n_features = check_count("n_features", n_features)
        self._given: dict[str, Any] = {}
        self._resolved: dict[str, ResolvedOption] = {}
        self.network: TopicNetwork | None = None
        self.features = np.array([], dtype=str)
        self.history: list[EpochRecord] = []
        self.seed_used: int | None = None
        self._endogenous = np.array([], dtype=bool)
        self._statistics: statistics.Statistics | None = None
        self._fitted_given = self._given  # the options of the last fit; `set_params` is for the next
        self._fitted_resolved = self._resolved
        self.set_params(**given)

    # --- options --------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the value of every option that applies to this model. `deep` is there for scikit-learn."""
        return {name: o.value for name, o in self._resolved.items()}

    def set_params(self, **given: Any) -> TopicModel:
        """Set options; those left out keep what they were. Takes effect at the next fit.

        Returns
        -------
        TopicModel
            This model.

        Raises
        ------
        OptionError, NotYetAvailable
        """
        checked = opt.validate_all({**self._given, **given})
        self._resolved = resolve(self.n_samples, self.n_features, checked)
        self._given = checked
        return self

    @property
    def options(self) -> Mapping[str, ResolvedOption]:
        """Every option that applies, with documented, recommended and chosen values."""
        return self._resolved

    @property
    def given(self) -> dict[str, Any]:
        """The options that were set explicitly."""
        return dict(self._given)

    def __getattr__(self, name: str) -> Any:
        resolved = self.__dict__.get("_resolved", {})
        if name in resolved:
            return resolved[name].value
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in opt.names():
            raise AttributeError(f"set options by set_params({name}=...)")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        kind = {"expression": "ExpressionTopicModel"}.get(self.feature_type, "TopicModel")
        state = f"{len(self.history)} epochs trained" if self.network is not None else "not fitted"
        num_topics = self.network.num_topics if self.network is not None else self.num_topics
        return f"<{kind}: {num_topics} topics, {state}>"

    # --- training -------------------------------------------------------------------------------

    def fit(
        self,
        data: Data,
        *,
        writer: RecordWriter | None = None,
        progress: bool = True,
    ) -> TopicModel:
        """Train on a data set, from the start.

        Parameters
        ----------
        data
            AnnData, or the path of an .h5ad file.
        writer
            Something with ``write(record)``, such as `mira_core.topics.Writer`; is given every record.
        progress
            Whether to show a progress bar.

        Returns
        -------
        TopicModel
            This model.

        Raises
        ------
        DataError
            If the data are not counts, lack a column, or have nothing to learn from.
        TrainingError
            If the loss stops being finite.
        """
        from tqdm.auto import tqdm

        with tqdm(total=self.num_epochs, unit="epoch", disable=not progress) as bar:
            for record in self.fit_records(data):
                if writer is not None:
                    writer.write(record)
                if isinstance(record, EpochRecord):
                    bar.update()
                    bar.set_postfix_str(
                        f"loss {record.loss:.1f} nats/cell, {record.cells_per_second:,.0f} cells/s, "
                        f"{self.network.device if self.network else ''}"
                    )
        return self

    def fit_records(self, data: Data) -> Generator[Record, None, None]:
        """Train as `fit` does, yielding a record after each step and each epoch.

        Closing the generator stops training at the next step and leaves a usable model of what was reached.

        Yields
        ------
        StepRecord or EpochRecord
        """
        cells = anndata_io.training_cells(anndata_io.open_data(data), self.get_params())
        return self.fit_cells(cells)

    def fit_cells(self, cells: Cells) -> Generator[Record, None, None]:
        """Train on cells that were read before; otherwise as `fit_records`."""
        seed = self.seed if self.seed is not None else secrets.randbits(32)
        learned = statistics.learn(cells)
        network = self._build(cells.endogenous, learned, cells.covariates.shape[1], cells.extra.shape[1])
        network.initialise(torch.Generator().manual_seed(seed))
        network.to(torch.device("cuda" if self.use_cuda and torch.cuda.is_available() else "cpu"))
        self.network, self.features = network, cells.features
        self._endogenous, self._statistics = cells.endogenous, learned
        self._fitted_given, self._fitted_resolved = self._given, self._resolved
        self.seed_used, self.history = seed, []
        for record in loop.train(network, cells, self.get_params(), seed):
            if isinstance(record, EpochRecord):
                self.history.append(record)
            yield record

    def _build(
        self, endogenous: np.ndarray, learned: statistics.Statistics, n_covariates: int, n_extra: int
    ) -> TopicNetwork:
        encoder = ExpressionEncoder(
            DevianceResiduals(endogenous, learned),
            self.num_topics,
            self.hidden,
            self.num_layers,
            self.embedding_size,
            self.encoder_dropout,
            n_covariates,
            n_extra,
        )
        return TopicNetwork(
            encoder,
            learned,
            num_topics=self.num_topics,
            initial_pseudocounts=self.initial_pseudocounts,
            decoder_dropout=self.decoder_dropout,
            nb_logspace=self.nb_parameterize_logspace,
        )

    @property
    def training_loss(self) -> list[float]:
        """Mean loss of each epoch, nats per cell, KL terms weighted as they were."""
        return [r.loss for r in self.history]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._fitted().device

    def _fitted(self) -> TopicNetwork:
        if self.network is None:
            raise NotFitted("the model is not fitted; call fit(data) first, or load one by load_model(path)")
        return self.network

    # --- cells ----------------------------------------------------------------------------------

    def _cells(self, adata: ad.AnnData) -> Cells:
        options = {name: o.value for name, o in self._fitted_resolved.items()}
        return anndata_io.cells_of_model(adata, options, self.features, self._endogenous)

    def predict(self, data: Data, *, box_cox: float = 0.25) -> ad.AnnData:
        """Infer each cell's topics.

        Parameters
        ----------
        data
            AnnData, or the path of an .h5ad file, with all features of the model, in any order.
        box_cox
            Power of the transform of `get_umap_features`.

        Returns
        -------
        anndata.AnnData
            The same object with, in addition:

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
        network = self._fitted()
        adata = anndata_io.open_data(data)
        theta = interpretation.compositions(network, self._cells(adata))
        anndata_io.write_topics(adata, theta, interpretation.umap_features(theta, box_cox))
        topics = self.topic_feature_compositions()
        anndata_io.write_features(adata, self.features, "topic_feature_compositions", topics)
        anndata_io.write_features(adata, self.features, "topic_feature_activations", self.topic_feature_activations())
        adata.uns["topic_dendogram"] = interpretation.dendrogram(topics)
        return adata

    def get_umap_features(self, adata: ad.AnnData, *, box_cox: float = 0.25) -> np.ndarray:
        """Compute coordinates of the cells' topics, for neighbours with the manhattan metric.

        Isometric log-ratio of the compositions with a centred Box-Cox transform.

        Parameters
        ----------
        adata
            With ``obsm['X_topic_compositions']`` from `predict`.
        box_cox
            Power; 0 gives the logarithm. Smaller values tell rare topics further apart.

        Returns
        -------
        numpy.ndarray, N x (K - 1)
            Also written to ``obsm['X_umap_features']``.
        """
        features = interpretation.umap_features(self._compositions_in(adata), box_cox)
        adata.obsm["X_umap_features"] = features
        return features

    def impute(self, adata: ad.AnnData) -> np.ndarray:
        """Compute what the topics say of each feature's relative frequency in each cell.

        Parameters
        ----------
        adata
            With ``obsm['X_topic_compositions']`` from `predict`.

        Returns
        -------
        numpy.ndarray, N x n_vars
            Also written to ``layers['imputed']``; over the modelled features rows sum to 1, others are NaN.
        """
        network = self._fitted()
        theta = self._compositions_in(adata)
        if missing := sorted(set(self.features) - set(adata.var_names)):
            raise DataError(f"the data lacks {len(missing)} of the model's features, such as {missing[0]}")
        out, at = anndata_io.empty_layer(adata, self.features)
        done = 0
        for rho in interpretation.frequencies(network, theta):
            out[done : done + len(rho), at] = rho
            done += len(rho)
        adata.layers["imputed"] = out
        return out

    def _compositions_in(self, adata: ad.AnnData) -> np.ndarray:
        K = self._fitted().num_topics
        if "X_topic_compositions" not in adata.obsm:
            raise DataError("obsm['X_topic_compositions'] is missing; call predict(adata) first")
        theta = np.asarray(adata.obsm["X_topic_compositions"])
        if theta.ndim != 2 or theta.shape[1] != K:
            raise DataError(
                f"obsm['X_topic_compositions'] must be cells x {K} topics; got shape {theta.shape}. "
                "Call predict(adata) with this model first"
            )
        return theta

    def score(self, data: Data) -> float:
        """Negative evidence lower bound, in nats per cell; lower is better.

        At full weight of all terms and over fixed draws, so that the same model and data give the same score.
        """
        network = self._fitted()
        return interpretation.mean_loss(network, self._cells(anndata_io.open_data(data)))["loss"]

    # --- topics ---------------------------------------------------------------------------------

    def topic_feature_compositions(self) -> np.ndarray:
        """Return each topic's distribution over the modelled features, K x G, rows sum to 1."""
        return self._fitted().decoder.topic_distributions().cpu().numpy()

    def topic_feature_activations(self) -> np.ndarray:
        """Return how far each topic moves each modelled feature, in standard deviations, K x G."""
        return self._fitted().decoder.activations().cpu().numpy()

    def rank_genes(self, topic_num: int) -> np.ndarray:
        """Return all modelled genes, from least to most activated in a topic."""
        return self.features[np.argsort(self.topic_feature_activations()[self._topic(topic_num)], kind="stable")]

    def rank_modules(self, gene: str) -> list[tuple[int, float]]:
        """Return (topic, activation of the gene in it) for all topics, most activated first."""
        at = np.flatnonzero(self.features == gene)
        self._fitted()
        if not at.size:
            raise DataError(f"{gene!r} is not among the {len(self.features)} modelled features")
        activation = self.topic_feature_activations()[:, at[0]]
        order = np.argsort(-activation, kind="stable")
        return [(int(k), float(activation[k])) for k in order]

    def get_top_genes(
        self, topic_num: int, top_n: int | None = None, *, min_genes: int = 200, max_genes: int = 600
    ) -> np.ndarray:
        """Return the most activated genes of a topic, from least to most activated.

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

    def _topic(self, topic_num: int) -> int:
        K = self._fitted().num_topics
        if isinstance(topic_num, bool) or not isinstance(topic_num, int | np.integer) or not 0 <= topic_num < K:
            raise OptionError(f"topic_num must be an integer from 0 to {K - 1}; got {topic_num!r}")
        return int(topic_num)

    # --- files ----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Save to one file that holds only numbers and text (safetensors); `load_model` reads it.

        The file is written beside and renamed, so that a broken write leaves what was there.
        """
        network = self._fitted()
        if self._statistics is None:
            raise NotFitted("the model is not fitted; call fit(data) first")
        header = {
            "n_samples": self.n_samples,
            "n_features": self.n_features,
            "given": self._fitted_given,
            "resolved": {name: o.value for name, o in self._fitted_resolved.items()},
            "features": self.features.tolist(),
            "endogenous": np.flatnonzero(self._endogenous).tolist(),
            "seed_used": self.seed_used,
            "history": [r.to_dict() for r in self.history],
        }
        checkpoint.write(Path(path), checkpoint.Checkpoint(header, network.state_dict(), self._statistics))

    @classmethod
    def _load(cls, path: str | Path) -> TopicModel:
        saved = checkpoint.read(Path(path))
        h = saved.header
        try:
            # What was recommended when it was trained stays, even if a later version recommends otherwise.
            model = cls(h["n_samples"], h["n_features"], **h["given"])
            for name, value in opt.validate_all(h["resolved"]).items():
                now = model._resolved[name]
                if now.value != value:
                    model._resolved[name] = ResolvedOption(
                        name, value, now.source, now.documented, value, "when it was trained"
                    )
            model.features = np.array(h["features"], dtype=str)
            model._endogenous = np.zeros(len(model.features), bool)
            model._endogenous[h["endogenous"]] = True
            model._statistics, model.seed_used = saved.statistics, h["seed_used"]
            model.history = [from_dict(r) for r in h["history"]]  # type: ignore[misc]
            n_extra = len(model.extra_features_keys or [])
            network = model._build(model._endogenous, saved.statistics, 0, n_extra)
            network.load_state_dict(saved.network)
        except Exception as problem:  # whatever a hostile or damaged file provokes
            raise CheckpointError(f"{Path(path).name} is damaged: {problem}") from problem
        network.eval()
        model.network = network
        model._fitted_given, model._fitted_resolved = model._given, model._resolved
        return model


def load_model(path: str | Path) -> TopicModel:
    """Load a model that `TopicModel.save` wrote, onto the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, not a saved model, or of a newer format.
    """
    return TopicModel._load(path)
