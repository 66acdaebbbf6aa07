"""Saved models: one safetensors file. Only numbers and JSON, so opening a stranger's file runs nothing.

Tensors: the network's state under ``network.``, the training cells' statistics under ``statistics.``.
Metadata: ``mira`` holds a JSON object with ``format``, options, names of features and the records of training.

The checkpoint of a training that can be gone on with holds its state besides, under ``training.``; its network is that
of the last whole epoch.

Format 1 knew expression models without covariates only. Format 2 has ``coding`` and ``curve`` besides. A header may
hold ``enrichments``, which earlier versions read over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from .. import options as opt
from ..data.covariates import Coding
from ..data.lsi import LSI
from ..data.statistics import Statistics
from ..errors import CheckpointError
from ..files import parse_json, replace_file
from ..nn.network import TopicNetwork
from ..records import from_dict
from ..training.loop import State
from .fitted import Fitted

FORMAT = 3
# Up to format 2 files held what follows from which features the encoder sees.
_DERIVED = ("position_G", "at_zero_E")
_ARRAYS = ("mean_profile", "endogenous_share")
TRAINING = "training."  # head of the names of the optimisers' tensors, and the generator's
_LSI = ("idf", "components", "deviations")


def write(path: Path, fit: Fitted, header: dict[str, Any], state: State | None = None) -> None:
    """Write beside and rename, so that a file of this name is always whole; with `state`, as a checkpoint."""
    s = fit.statistics
    arrays = {name: getattr(s, name) for name in _ARRAYS}
    if s.lsi is not None:
        arrays |= {f"lsi.{name}": getattr(s.lsi, name) for name in _LSI}
    weights = fit.network.state_dict() if state is None else state.weights
    tensors = {f"network.{k}": v.detach().cpu().contiguous() for k, v in weights.items()}
    tensors |= {f"statistics.{k}": torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()}
    header = {
        **header,
        "format": FORMAT,
        "given": fit.given,
        "resolved": fit.options,
        "features": fit.features.tolist(),
        "endogenous": np.flatnonzero(fit.endogenous).tolist(),
        "coding": fit.coding.to_dict(),
        "seed_used": fit.seed,
        "history": [r.to_dict() for r in fit.history],
        "statistics": {"n_cells": s.n_cells, "endogenous_depth": s.endogenous_depth},
    }
    if state is not None:
        tensors |= {f"{TRAINING}{k}": v.detach().cpu().contiguous() for k, v in state.stepper.items()}
        header["training"] = {"epoch": state.epoch, "step": state.step, "order": state.order}
    replace_file(path, safetensors.torch.save(tensors, {"mira": json.dumps(header)}))


def read(path: Path) -> tuple[Fitted, dict[str, Any], State | None]:
    """Read a saved model, the rest of its header, and of a checkpoint what its training goes on from.

    Raises
    ------
    CheckpointError
        If the file is missing, is not a saved model, is damaged, or is of a newer format.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as f:
            header = parse_json((f.metadata() or {})["mira"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a mapping
        found = header["format"]
        newer = not isinstance(found, int) or not 0 < found <= FORMAT
    except Exception as problem:  # whatever a hostile or damaged file provokes
        raise CheckpointError(f"{path.name} is not a saved topic model: {problem}") from problem
    if newer:
        raise CheckpointError(f"{path.name} has format {found}; this version reads up to {FORMAT}. Update mira")
    try:
        fit = _build(header if found > 1 else _from_format_1(header), tensors)
        return fit, header, _state(header, fit, tensors) if "training" in header else None
    except Exception as problem:
        raise CheckpointError(f"{path.name} is damaged: {problem}") from problem


def _build(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Fitted:
    given = opt.validate_all(header["given"])
    options = {**header["resolved"], **opt.validate_all(header["resolved"])}
    endogenous = np.zeros(len(header["features"]), bool)
    endogenous[header["endogenous"]] = True
    coding = Coding.from_dict(header["coding"])
    coded = (tuple(coding.categories), tuple(coding.scales), coding.as_they_are, coding.extra)
    if coded != tuple(tuple(options[k] or ()) for k in (*opt.COVARIATE_OPTIONS, "extra_features_keys")):
        raise ValueError("its coding is of other columns than its options name")
    arrays = {
        k.removeprefix("statistics."): v.numpy().astype(np.float64)
        for k, v in tensors.items()
        if k.startswith("statistics.")
    }
    statistics = Statistics(
        n_cells=int(header["statistics"]["n_cells"]),
        endogenous_depth=float(header["statistics"]["endogenous_depth"]),
        lsi=LSI(*(arrays[f"lsi.{name}"] for name in _LSI)) if "lsi.idf" in arrays else None,
        **{name: arrays[name] for name in _ARRAYS},
    )
    prefix = "network."
    weights = {
        k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix) and not k.endswith(_DERIVED)
    }
    asked = options, endogenous, statistics, len(coding.names), len(coding.extra)
    _check_sizes(weights, *asked)
    network = TopicNetwork(*asked)
    network.load_state_dict(weights)
    network.eval()
    return Fitted(
        network, np.array(header["features"], dtype=str), endogenous, coding, statistics, given, options,
        header["seed_used"], [from_dict(r) for r in header["history"]],  # type: ignore[misc]
    )  # fmt: skip


def _check_sizes(weights: Mapping[str, torch.Tensor], options: Mapping[str, Any], *asked: Any) -> None:
    """Raise unless the options ask for these weights, before they take the memory that they ask for."""
    if options["num_layers"] > len(weights):
        raise ValueError(f"it has fewer weights than num_layers={options['num_layers']} asks for")
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in TopicNetwork(options, *asked).state_dict().items()}
    for name, shape in shapes.items():
        if name not in weights or weights[name].shape != shape:
            found = tuple(weights[name].shape) if name in weights else "none"
            raise ValueError(f"its options ask for {name} of {tuple(shape)}; it has {found}")


def _state(header: dict[str, Any], fit: Fitted, tensors: dict[str, torch.Tensor]) -> State:
    told = header["training"]
    stepper = {k.removeprefix(TRAINING): v for k, v in tensors.items() if k.startswith(TRAINING)}
    weights = {k: v.detach().clone() for k, v in fit.network.state_dict().items()}
    np.random.default_rng().bit_generator.state = told["order"]  # raises if it is none
    epoch, step = int(told["epoch"]), int(told["step"])
    if not 1 <= epoch <= fit.options["num_epochs"] or step < epoch or step % epoch:
        raise ValueError(f"it tells of epoch {epoch} and step {step} of {fit.options['num_epochs']} epochs")
    return State(epoch, step, weights, stepper, told["order"])


def _from_format_1(header: dict[str, Any]) -> dict[str, Any]:
    extra = header["resolved"]["extra_features_keys"] or []
    coding: dict[str, Any] = {"categories": {}, "scales": {}, "as_they_are": [], "extra": extra}
    since = {"topic_prior": "dirichlet", "topic_effect_scale": None}
    return {**header, "coding": coding, "resolved": {**header["resolved"], **since}}
