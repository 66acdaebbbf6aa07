"""CODAL on cells of which some types are in one batch only: batches mix, types stay apart, effects are found.

Two batches share four types; the second has three more, each like one of the shared types to some degree. A third
of the genes are shifted in the second batch, as a change of chemistry would, or by more than types differ. Figures are
medians over two data sets of each strength.
"""

from __future__ import annotations

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mira_core as mira
from mira_core.data.simulate import _topics

pytestmark = pytest.mark.slow

SEEDS = (0, 1)
STRENGTHS = {"usual": 0.5, "strong": 1.5}  # standard deviation of the shifts, in natural-log units
N_SHARED = 4
ALIKE = {"unlike": 0.0, "half alike": 0.5, "much alike": 0.8}  # to shared 0, shared 1, shared 2
TYPES = np.array([*(f"shared {t}" for t in range(N_SHARED)), *ALIKE])
MODELS = {
    "CODAL": {"categorical_covariates": ["batch"]},
    "no penalty": {"categorical_covariates": ["batch"], "dependence_beta": 0.0},
    "no covariate": {},
}


def simulate(seed: int, n_cells: int = 800, n_genes: int = 200, strength: float = 0.5) -> ad.AnnData:
    """Counts with ``obs['type']``, ``obs['batch']``, and the second batch's shift of each gene in ``var['shift']``."""
    rng = np.random.default_rng(seed)
    topics = _topics(rng, len(TYPES), n_genes)
    centre = np.full((len(TYPES), len(TYPES)), 0.02)
    centre[range(N_SHARED), range(N_SHARED)] += 1
    for i, alike in enumerate(ALIKE.values()):
        centre[N_SHARED + i, i] += alike
        centre[N_SHARED + i, N_SHARED + i] += 1 - alike
    second = rng.random(n_cells) < 0.5
    types = np.where(second, rng.integers(0, len(TYPES), n_cells), rng.integers(0, N_SHARED, n_cells))
    theta = rng.gamma(20 * centre[types] / centre[types].sum(1, keepdims=True)).clip(1e-9)
    shift = np.where(rng.random(n_genes) < 1 / 3, rng.normal(0, strength, n_genes), 0)
    rho = theta @ topics * np.exp(shift * second[:, None])
    depth = 1500 * np.exp(rng.normal(0, 0.3, n_cells))
    mean = depth[:, None] * rho / rho.sum(1, keepdims=True)
    counts = rng.poisson(mean * rng.gamma(5, 1 / 5, mean.shape))
    return ad.AnnData(
        sp.csr_matrix(counts.astype(np.int32)),
        obs=pd.DataFrame(
            {"type": TYPES[types], "batch": np.where(second, "b", "a")}, index=[f"cell{i}" for i in range(n_cells)]
        ),
        var=pd.DataFrame({"shift": shift - shift.mean()}, index=[f"gene{j}" for j in range(n_genes)]),
    )


def auc(x: np.ndarray, y: np.ndarray) -> float:
    """How well a logistic regression tells classes of cells that it has not seen."""
    told = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return roc_auc_score(y, cross_val_predict(told, x, y, cv=5, method="predict_proba")[:, 1])


def neighbours(x: np.ndarray, n: int = 15) -> np.ndarray:
    return NearestNeighbors(n_neighbors=n + 1).fit(x).kneighbors(return_distance=False, n_neighbors=n)


def slope(effect: np.ndarray, shift: np.ndarray) -> float:
    """How much of the shift an effect has: 0 nothing, 1 all."""
    return float((effect - effect.mean()) @ shift / (shift @ shift))


def figures(model: mira.topics.TopicModel, adata: ad.AnnData) -> dict[str, float]:
    """What can be said of a fitted model."""
    model.predict(adata)
    theta = adata.obsm["X_topic_compositions"]
    types, second = adata.obs["type"].to_numpy(), (adata.obs["batch"] == "b").to_numpy()
    shared = np.char.startswith(types.astype(str), "shared")
    each = [np.flatnonzero(types == f"shared {t}") for t in range(N_SHARED)]
    out = {"batch_auc": auc(theta[shared], second[shared])}

    near = neighbours(theta[shared])
    other = (second[shared][near] != second[shared][:, None]).mean(1)
    wanted = np.zeros(len(types))
    for at in each:  # the share of the other batch among cells of the type
        wanted[at] = np.where(second[at], 1 - second[at].mean(), second[at].mean())
    out["mixing"] = float((other / wanted[shared]).mean())

    near = neighbours(theta)
    for i, name in enumerate(ALIKE):
        pair = np.isin(types, [name, f"shared {i}"])
        out[f"{name}: auc"] = auc(theta[pair], types[pair] == name)
        out[f"{name}: purity"] = float((types[near[types == name]] == name).mean())

    def between(layer: np.ndarray) -> np.ndarray:
        """Differences of the batches within each shared type, types x genes."""
        return np.array([layer[at[second[at]]].mean(0) - layer[at[~second[at]]].mean(0) for at in each])

    shift = adata.var["shift"].to_numpy()
    out["imputed: slope"] = slope(between(np.log(model.impute(adata))).mean(0), shift)
    if model.network.technical is not None:
        effects = between(model.get_batch_effect(adata))
        effects -= effects.mean(1, keepdims=True)
        out["effect: correlation"] = float(np.corrcoef(effects.mean(0), shift)[0, 1])
        out["effect: slope"] = slope(effects.mean(0), shift)
        out["effect: error"] = float(np.sqrt(((effects - shift) ** 2).mean()) / shift.std())
        out["effect: varies with type"] = float(effects.std(0).mean() / shift.std())  # which the truth does not
        out["dependence"] = model.history[-1].dependence
    return out


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    """Figures by strength of the shifts, model and data set; what CODAL is compared with, for one data set only."""
    told = {}
    for (strength, deviation), seed in itertools.product(STRENGTHS.items(), SEEDS):
        adata = simulate(seed, strength=deviation)
        for name, options in MODELS.items():
            if (name != "CODAL" and seed != SEEDS[0]) or (name == "no covariate" and strength != "usual"):
                continue
            model = mira.topics.make_model(
                *adata.shape, feature_type="expression", num_topics=len(TYPES) + 1, seed=seed, **options
            )
            told[strength, name, seed] = figures(model.fit(adata, progress=False), adata)
    table = pd.DataFrame(told).T.sort_index()
    print(table.T.round(3).to_string())  # seen with pytest -s, and where a test fails
    return table


@pytest.fixture(scope="module", params=STRENGTHS)
def strength(request) -> str:
    return request.param


@pytest.fixture
def codal(runs: pd.DataFrame, strength: str) -> pd.Series:
    """Median figures of the models with CODAL's penalty."""
    return runs.loc[strength, "CODAL"].median()


@pytest.fixture
def free(runs: pd.DataFrame, strength: str) -> pd.Series:
    """Median figures of the models without it."""
    return runs.loc[strength, "no penalty"].median()


def test_the_batches_are_far_apart_where_nothing_is_corrected(runs):
    """Else the rest would say little."""
    plain = runs.loc["usual", "no covariate"].median()
    assert plain["batch_auc"] > 0.9
    assert plain["mixing"] < 0.5
    assert plain["imputed: slope"] > 0.2


def test_batches_mix_where_they_hold_the_same_types(codal, strength):
    """With usual shifts the topics tell the batch hardly better than chance."""
    assert codal["mixing"] > {"usual": 0.9, "strong": 0.75}[strength]
    assert codal["batch_auc"] < {"usual": 0.62, "strong": 0.8}[strength]


def test_without_the_penalty_topics_tell_more_of_strong_shifts(runs):
    """Usual ones are corrected for by the covariate alone."""
    codal, free = (runs.loc["strong", name].median() for name in ("CODAL", "no penalty"))
    assert codal["batch_auc"] < free["batch_auc"] - 0.04
    assert codal["mixing"] > free["mixing"] + 0.1


def test_a_type_of_one_batch_only_stays_apart_from_the_one_it_resembles(codal):
    assert codal["unlike: auc"] > 0.99
    assert codal["unlike: purity"] > 0.95
    assert codal["half alike: auc"] > 0.97
    assert codal["half alike: purity"] > 0.8
    assert codal["much alike: auc"] > 0.8
    assert codal["much alike: purity"] > 0.4  # of which chance would be a tenth


def test_the_batch_effect_is_the_simulated_shift(codal, strength):
    assert codal["effect: correlation"] > {"usual": 0.92, "strong": 0.97}[strength]
    assert 0.7 < codal["effect: slope"] < 1.1
    assert codal["effect: error"] < {"usual": 0.45, "strong": 0.2}[strength]


def test_without_the_penalty_effects_depend_on_the_type_and_are_further_off(codal, free):
    assert codal["dependence"] < 0.6 * free["dependence"]
    assert codal["effect: varies with type"] < 0.5 * free["effect: varies with type"]
    assert codal["effect: error"] < 0.75 * free["effect: error"]


def test_imputed_frequencies_are_free_of_the_shift(codal, free, strength):
    assert abs(codal["imputed: slope"]) < 0.05
    if strength == "strong":
        assert free["imputed: slope"] > 0.03
