"""Which sets of features topics are made of, offline: over-representation, rank tests, and keeping what was found.

Shapes: K topics, G modelled features, S sets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..errors import DataError, OptionError
from ..records import tables
from .description import saying
from .differential import adjusted
from .gene_sets import GeneSets, usable_sets
from .predicted import Predicted, Topics, topics_of

METHODS = ("overrepresentation", "rank", "gsea")
TOP = 200  # features that stand for a topic, but no more than a tenth of all
KEPT = "topic_enrichment"  # in uns


def enrich(
    data: Predicted,
    gene_sets: GeneSets,
    method: str = "overrepresentation",
    *,
    top: int | None = None,
    min_size: int = 5,
    max_size: int = 500,
    permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Test which gene sets are enriched in which topics; nothing is downloaded.

    The background is the modelled features, not the genome: a model of variable genes is rich in markers to begin
    with, and only what a topic has more of than these counts.

    Parameters
    ----------
    data
        Cells with topics, or a fitted model.
    gene_sets
        Names to genes, or the path of a .gmt file (`read_gmt`). Genes are found by symbol (see `readable`) or by the
        data's own names, whatever their case.
    method
        ``"overrepresentation"``: hypergeometric (one-sided Fisher) test of the `top` features of a topic, those with
        the greatest p log(p / q) as in `top_features`.
        ``"rank"``: one-sided Wilcoxon rank-sum test of the activations of a set's members against those of all others
        (normal approximation), which needs no cut and no permutations.
        ``"gsea"``: preranked GSEA (Subramanian et al., PNAS 2005) of the activations by gseapy, which is an extra:
        ``pip install 'mira-topics[enrichment]'``. Permutations take seconds for tens of sets, and many minutes for
        thousands.
        The last two take genes for independent, which those of a pathway are not: compare sets by their effects, and
        read p-values as a guide.
    top
        Features that stand for a topic. None: 200, or a tenth of the modelled ones if these are fewer than 2,000.
    min_size, max_size
        Members among the modelled features that a set must have; others are left out.
    permutations, seed
        Of ``"gsea"``.

    Returns
    -------
    pandas.DataFrame
        A row for each topic and set, by topic and p-value: ``topic``; ``gene_set``; ``size``, its members among the
        modelled features; ``overlap``, how many of them are among the `top`, and these ``genes``, the most telling
        first (of gsea: the leading edge); ``effect``: the odds ratio (1/2 added to each count), the AUC (0.5: as any
        genes), or the normalised enrichment score; ``p_value``; ``q_value`` (Benjamini-Hochberg over the sets of a
        topic).

    Raises
    ------
    DataError
        If the cells have no topics, the file cannot be read, or sets and data share no names.
    OptionError
        If the method is unknown or sizes are wrong, or gseapy is not installed.
    """
    if method not in METHODS:
        raise OptionError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if not 1 <= min_size <= max_size:
        raise OptionError(f"min_size must be from 1 to max_size; got {min_size} and {max_size}")
    topics = topics_of(data)
    sets = usable_sets(gene_sets, topics.features, topics.labels, min_size, max_size)
    score = saying(topics)
    n = top_of(top, len(topics.features))
    if method == "gsea":
        return _gsea(topics, sets, permutations, seed)
    if method == "rank":
        effect, p = rank_sums(topics.activations, members_of(sets, len(topics.features)))
    else:
        effect, p = overrepresented(score, members_of(sets, len(topics.features)), n)
    return told(topics, sets, score, n, effect, p)


def top_of(top: int | None, G: int) -> int:
    """Return how many features stand for a topic."""
    if top is None:
        return max(min(TOP, G // 10), 1)
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or not 1 <= top < G:
        raise OptionError(f"top must be an integer from 1 to {G - 1}, below the modelled features; got {top!r}")
    return int(top)


def members_of(sets: Mapping[str, np.ndarray], G: int) -> sp.csr_array:
    """Return which features are in which sets, S x G."""
    sizes = [len(at) for at in sets.values()]
    row = np.repeat(np.arange(len(sets)), sizes)
    return sp.csr_array((np.ones(len(row)), (row, np.concatenate(list(sets.values())))), shape=(len(sets), G))


def overrepresented(score_KG: np.ndarray, members_SG: sp.csr_array, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Test each set's members among the n features of the greatest score; odds ratios and p-values, K x S."""
    from scipy.stats import hypergeom

    K, G = score_KG.shape
    is_top = np.zeros((G, K))
    np.put_along_axis(is_top, np.argsort(-score_KG, axis=1, kind="stable")[:, :n].T, 1, axis=0)
    hits, size = np.rint(members_SG @ is_top).T, members_SG.sum(1)
    p = hypergeom.sf(hits - 1, G, size, n)
    odds = (hits + 0.5) * (G - n - size + hits + 0.5) / ((size - hits + 0.5) * (n - hits + 0.5))
    return odds, p


def rank_sums(value_KG: np.ndarray, members_SG: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Test whether each set's members have greater values than all others; AUC and one-sided p-values, K x S."""
    from scipy.stats import norm, rankdata, tiecorrect

    G = value_KG.shape[1]
    rank = rankdata(value_KG, axis=1)
    ties = np.array([tiecorrect(r) for r in rank])[:, None]
    size = members_SG.sum(1)
    pairs = np.maximum(size * (G - size), 1)
    u = (members_SG @ rank.T).T - size * (size + 1) / 2
    spread = np.sqrt(np.maximum(pairs * (G + 1) / 12 * ties, 1e-12))
    return u / pairs, norm.sf((u - pairs / 2 - 0.5) / spread)


def told(
    topics: Topics, sets: Mapping[str, np.ndarray], score_KG: np.ndarray, n: int, effect: np.ndarray, p: np.ndarray
) -> pd.DataFrame:
    """Put what was found into a table, by topic and p-value."""
    names, frames = np.array(list(sets), dtype=object), []
    for k, topic in enumerate(topics.names):
        order = np.argsort(-score_KG[k], kind="stable")[:n]
        place = np.full(len(topics.features), n)
        place[order] = np.arange(n)
        found = [np.sort(place[at]) for at in sets.values()]
        genes = [topics.labels[order[hits[hits < n]]] for hits in found]
        frame = pd.DataFrame(
            {
                "topic": topic,
                "gene_set": names,
                "size": [len(at) for at in sets.values()],
                "overlap": [len(g) for g in genes],
                "effect": effect[k],
                "p_value": p[k],
                "q_value": adjusted(p[k]),
                "genes": [", ".join(g) for g in genes],
            }
        )
        frames.append(frame.sort_values(["p_value", "effect"], ascending=[True, False], kind="stable"))
    return pd.concat(frames, ignore_index=True)


def _gsea(topics: Topics, sets: Mapping[str, np.ndarray], permutations: int, seed: int) -> pd.DataFrame:
    try:
        import gseapy
    except ImportError:
        raise OptionError(
            "method 'gsea' needs gseapy: pip install 'mira-topics[enrichment]'. Method 'rank' asks the same without it"
        ) from None
    named = {name: topics.features[at].tolist() for name, at in sets.items()}
    label, frames = dict(zip(topics.features, topics.labels, strict=True)), []
    for k, topic in enumerate(topics.names):
        ranked = pd.Series(topics.activations[k], index=topics.features).sort_values(ascending=False, kind="stable")
        found = gseapy.prerank(
            rnk=ranked, gene_sets=named, outdir=None, no_plot=True, min_size=1, max_size=len(ranked),
            permutation_num=permutations, seed=seed, threads=1, verbose=False,
        ).res2d  # fmt: skip
        leading = [[g for g in str(genes).split(";") if g] for genes in found["Lead_genes"]]
        # None of n permutations as extreme says that p is below about 1/n, and not that it is 0.
        p = np.maximum(found["NOM p-val"].to_numpy(float), 1 / (permutations + 1))
        frame = pd.DataFrame(
            {
                "topic": topic,
                "gene_set": found["Term"].to_numpy(object),
                "size": [len(sets[name]) for name in found["Term"]],
                "overlap": [len(genes) for genes in leading],
                "effect": found["NES"].to_numpy(float),
                "p_value": p,
                "q_value": adjusted(p),
                "genes": [", ".join(label[g] for g in genes) for genes in leading],
            }
        )
        frames.append(frame.sort_values(["p_value", "effect"], ascending=[True, False], kind="stable"))
    return pd.concat(frames, ignore_index=True)


# --- keeping --------------------------------------------------------------------------------------


def keep_enrichment(data: Predicted, name: str, frame: pd.DataFrame) -> None:
    """Keep a table of `enrich` or `enrich_peaks` with the cells, or with the model, under a name.

    In cells it is JSON in ``uns['topic_enrichment']``, which .h5ad and .zarr files hold; in a model it is in
    ``model.enrichments``, which `TopicModel.save` writes. A table of the same name is replaced. NaN and infinite
    numbers come back as NaN.

    Raises
    ------
    DataError
        If what is kept so far is damaged.
    """
    kept = _kept(data)
    kept[str(name)] = {str(c): [_json(v) for v in frame[c]] for c in frame.columns}
    if isinstance(data, ad.AnnData):
        data.uns[KEPT] = json.dumps(kept, allow_nan=False)
    else:
        data.enrichments = kept


def kept_enrichments(data: Predicted) -> dict[str, pd.DataFrame]:
    """Return the tables that `keep_enrichment` kept with cells or a model, by name.

    Raises
    ------
    DataError
        If what is kept is damaged.
    """
    return {name: pd.DataFrame(columns) for name, columns in _kept(data).items()}


def _kept(data: Predicted) -> dict[str, dict[str, list[Any]]]:
    if not isinstance(data, ad.AnnData):
        return dict(getattr(data, "enrichments", {}))
    try:
        return tables(json.loads(str(data.uns.get(KEPT, "{}"))))
    except (ValueError, RecursionError):
        raise DataError(
            f"uns[{KEPT!r}] must be what keep_enrichment wrote, and is damaged; delete it, and enrich anew"
        ) from None


def _json(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else str(value)
