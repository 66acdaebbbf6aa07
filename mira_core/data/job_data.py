"""The cells that a job names. Needs no torch, as pages that show what came of it open them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anndata as ad

from . import sources
from .demo import DEMO, load_demo
from .on_disk import OnDiskDataset
from .recipe import Recipe, prepare


def open_named(data: str) -> ad.AnnData | OnDiskDataset:
    """Open what a job names as its data: a path as `fit` takes it, or ``demo:NAME``."""
    if data.startswith(DEMO):
        return load_demo(data.removeprefix(DEMO))
    return sources.open_source(data)


def open_cells(spec: Mapping[str, Any]) -> ad.AnnData | OnDiskDataset:
    """Open the data of a job, and do to it what its recipe says."""
    data = spec["data"]
    if spec.get("recipe") is None:
        return open_named(data)
    return prepare(open_named(data) if data.startswith(DEMO) else data, Recipe.from_dict(spec["recipe"]))
