"""Saved models: one safetensors file. Only numbers and JSON, so opening a stranger's file runs nothing.

Tensors: the network's state under ``network.``, the training cells' statistics under ``statistics.``.
Metadata: ``mira`` holds a JSON object with ``format``, options, names of features and the records of training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from ..data.statistics import Statistics
from ..errors import CheckpointError
from ..files import replace_file

FORMAT = 1


@dataclass
class Checkpoint:
    """What a file holds."""

    header: dict[str, Any]
    network: dict[str, torch.Tensor]
    statistics: Statistics


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside and rename, so that a file of this name is always whole."""
    s = checkpoint.statistics
    tensors = {f"network.{k}": v.detach().cpu().contiguous() for k, v in checkpoint.network.items()}
    tensors["statistics.mean_profile"] = torch.from_numpy(s.mean_profile)
    tensors["statistics.endogenous_share"] = torch.from_numpy(s.endogenous_share)
    numbers = {"n_cells": s.n_cells, "endogenous_depth": s.endogenous_depth}
    header = {"format": FORMAT, **checkpoint.header, "statistics": numbers}
    data = safetensors.torch.save(tensors, {"mira": json.dumps(header)})
    replace_file(path, data)


def read(path: Path) -> Checkpoint:
    """Read a saved model.

    Raises
    ------
    CheckpointError
        If the file is missing, is not a saved model, is damaged, or is of a newer format.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as f:
            header = json.loads((f.metadata() or {})["mira"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a mapping
        found = header["format"]
        if not isinstance(found, int) or found > FORMAT:
            raise CheckpointError(f"{path.name} has format {found}; this version reads up to {FORMAT}. Update mira")
        statistics = Statistics(
            n_cells=int(header["statistics"]["n_cells"]),
            endogenous_depth=float(header["statistics"]["endogenous_depth"]),
            mean_profile=np.asarray(tensors["statistics.mean_profile"], dtype=np.float64),
            endogenous_share=np.asarray(tensors["statistics.endogenous_share"], dtype=np.float64),
        )
    except CheckpointError:
        raise
    except Exception as problem:  # whatever a hostile or damaged file provokes
        raise CheckpointError(f"{path.name} is not a saved topic model: {problem}") from problem
    prefix = "network."
    network = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return Checkpoint(header, network, statistics)
