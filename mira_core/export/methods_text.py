"""A paragraph for a paper's methods section, in words, from what a run has noted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import options as opt
from ..data.recipe import Recipe
from ..errors import MiraError
from ..running import parts
from .run import FinishedRun

REFERENCES = {
    "MIRA": "Lynch, A.W. et al. MIRA: joint regulatory modeling of multimodal expression and chromatin accessibility "
    "in single cells. Nature Methods 19, 1097–1108 (2022).",
    "CODAL": "Lynch, A.W., Brown, M. & Meyer, C.A. Multi-batch single-cell comparative atlas construction by deep "
    "learning disentanglement. Nature Communications 14, 4126 (2023).",
    "UMAP": "McInnes, L., Healy, J. & Melville, J. UMAP: uniform manifold approximation and projection for dimension "
    "reduction. arXiv:1802.03426 (2018).",
    "scanpy": "Wolf, F.A., Angerer, P. & Theis, F.J. SCANPY: large-scale single-cell gene expression data analysis. "
    "Genome Biology 19, 15 (2018).",
    "Pyro": "Bingham, E. et al. Pyro: deep universal probabilistic programming. Journal of Machine Learning Research "
    "20, 28 (2019).",
}  # fmt: skip
NAMED = {"torch": "PyTorch", "pyro-ppl": "Pyro", "numpy": "NumPy", "scipy": "SciPy", "anndata": "anndata",
         "scanpy": "scanpy", "umap-learn": "umap-learn"}  # fmt: skip


def methods(run: FinishedRun) -> str:
    """Return the methods section: a paragraph, a blank line, and the references.

    It names the model and its size, what was done to the cells first, every option that was set or recommended, the
    seed, the versions, and a digest of the counts (`mira_core.data.digest`).
    """
    return f"{paragraph(run)}\n\n{references(run)}"


def paragraph(run: FinishedRun) -> str:
    """Return the paragraph."""
    model, cells, with_ = run.model, run.cells, run.computed_with
    options, versions = model.options, with_["versions"]
    codal = opt.is_codal(model.given)
    accessibility = model.feature_type == "accessibility"
    measured = "chromatin accessibility" if accessibility else "gene expression"
    features = "peaks" if accessibility else "genes"
    n_topics = len(model.topic_cols)
    out = [f"Cells were described by {n_topics} topics of {measured}, found by a "
           f"{'CODAL' if codal else 'MIRA'} topic model{' [1,2]' if codal else ' [1]'}"
           f" (mira-topics {versions['mira-topics']})."]  # fmt: skip
    if run.recipe.steps:
        out.append(f"Cells and features were prepared in these steps: {_recipe(run.recipe)}.")
    n_trained, n_held = _divided(run)
    size = f"{cells.n_obs:,} cells and {len(model.features):,} {features}"
    if cells.n_vars > len(model.features):
        size += f" of {cells.n_vars:,}"
    if chosen := model.highly_variable_key or model.exogenous_key:
        size += f' (those marked in the column "{chosen}")'
    out.append(f"The data were {'binarised ' if accessibility else ''}counts of {size}.")
    if codal:
        out.append(_covariates(model))
    if run.is_fit:
        trained = f"The model was trained on {n_trained:,} cells" if n_held else "The model was trained on all cells"
        epochs = len(run.history)
        trained += f" for {epochs} {'epoch' if epochs == 1 else 'epochs'} in minibatches of {model.batch_size} cells"
        if run.status.state == "stopped":
            trained += f" (stopped at step {run.status.step:,} of {run.status.num_steps:,})"
        trained += (
            f" by AdamW with a one-cycle learning rate from {model.min_learning_rate:g} to {model.max_learning_rate:g}"
        )
        if n_held:
            trained += f"; {n_held:,} cells were held out and scored after each epoch"
        out.append(f"{trained}.")
        out.append(f"{_options(options)} The random seed was {model.seed_used}.")
    else:
        out.append(
            f"The topics were inferred by a model that had been trained before on {model.n_samples:,} cells (random "
            f"seed {model.seed_used})."
        )
    if "X_umap" in cells.obsm:
        out.append(
            "For the embedding, cells were joined to their nearest neighbours by the Manhattan distance of isometric "
            "log-ratios of their topics, and laid out by UMAP [{umap}] as in scanpy [{scanpy}]."
        )
    cited = {"pyro-ppl": " [{pyro}]"}
    used = [f"{words} {versions[name]}{cited.get(name, '')}" for name, words in NAMED.items() if name in versions]
    python = f"Python {versions['python']}"
    out.append(f"The computation used {', '.join(used[:-1])} and {used[-1]} on {python}, on a {_device(with_)}.")
    if (found := data_digest(run)) is not None:
        out.append(
            f"The counts, with the names of cells and {features}, have the SHA-256 digest {found} (as defined in "
            "mira_core.data.digest)."
        )
    text = " ".join(out)
    for i, name in enumerate(_cited(run), 1):
        text = text.replace(f"[{{{name.lower()}}}]", f"[{i}]")
    return text


def _cited(run: FinishedRun) -> list[str]:
    cited = ["MIRA", *(["CODAL"] if opt.is_codal(run.model.given) else [])]
    if "X_umap" in run.cells.obsm:
        cited += ["UMAP", "scanpy"]
    return [*cited, "Pyro"]


def references(run: FinishedRun) -> str:
    """Return the references, one a line, numbered as the paragraph has them."""
    return "\n".join(f"[{i}] {REFERENCES[name]}" for i, name in enumerate(_cited(run), 1))


def data_digest(run: FinishedRun) -> str | None:
    """Return the digest of the cells that the run noted; of older runs what their data have now, None if gone."""
    noted = run.provenance.get("digest")
    if noted is not None:
        return str(noted)
    try:
        return parts.data_digest(run.model, run.open_cells_lightly())
    except MiraError:
        return None


def _divided(run: FinishedRun) -> tuple[int, int]:
    n_trained = run.model._fitted().statistics.n_cells
    return n_trained, run.status.n_held_out if run.is_fit else 0


def _recipe(recipe: Recipe) -> str:
    return "; ".join(f"({i}) {step}" for i, step in enumerate(recipe, 1))


def _covariates(model: Any) -> str:
    of = {name: getattr(model, name) or [] for name in opt.COVARIATE_OPTIONS}
    names = [f'"{key}"' for keys in of.values() for key in keys]
    return (
        f"Technical effects of {_and(names)} were modelled apart from the topics, with a penalty on their dependence."
    )


def _options(options: Any) -> str:
    """Tell the options that are not the documented ones."""
    left = {"feature_type", "seed", "num_topics", "num_epochs", "batch_size", "min_learning_rate", "max_learning_rate",
            "highly_variable_key", "exogenous_key", "counts_layer", *opt.COVARIATE_OPTIONS}  # fmt: skip
    told = []
    for source, words in (("yours", "set"), ("recommended", "recommended by the size of the data")):
        of_it = [f"{n} = {_value(o.value)}" for n, o in options.items() if o.source == source and n not in left]
        if of_it:
            told.append(f"{_and(of_it)} ({words})")
    if not told:
        return "All other options were the documented defaults."
    return f"Further options were {'; '.join(told)}; all others were the documented defaults."


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _device(with_: Any) -> str:
    if with_.get("gpu"):
        return f"GPU ({with_['gpu']})"
    threads = with_["threads"]["torch"]
    return f"CPU ({with_['processor']['name'] or with_['processor']['machine']}, {threads} threads)".replace(
        "1 threads", "1 thread"
    )


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
