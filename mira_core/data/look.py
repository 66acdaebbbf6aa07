"""A look at data before a model is made: what they hold, what is wrong, how good the cells are; after a recipe, too.

``python -m mira_core.data.look FOLDER`` does it in a process of its own, as a dashboard wants, which must not wait
for a large file nor share its memory with a hostile one. It reads a JSON object from standard input, with ``data``
(a path as `mira_core.data.open_data` takes it, or ``demo:NAME``) and optionally ``recipe``, and writes the `Look` to
the folder; what it cannot do it prints as ``{"error": {"type", "message"}}``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from ..errors import DataError, MiraError
from .describe import Column, Description, Layer, describe
from .inspection import Finding, inspect
from .qc import QC, mitochondrial, qc
from .recipe import Recipe
from .sources import open_backed
from .steps import STEPS, FilterCells, HighlyVariable, make_step

ROW = "row of the file, while a recipe is done"


@dataclass(frozen=True)
class Look:
    """What `look` found.

    Attributes
    ----------
    opened
        Number of cells and of features in the file.
    description
        Sizes, layers and columns as the recipe leaves them.
    findings
        What is wrong with the cells as the recipe leaves them.
    cells, thresholds
        As of `mira_core.data.qc`, of the cells that the step filter_cells is given, or would be. Empty if there are
        no raw counts.
    rows
        Which cells of the file the recipe leaves.
    symbols
        Column of ``var`` with the names that tell mitochondrial genes; None: ``var_names``.
    problem
        Why the recipe could not be done; the rest is then of what it left before. Empty if it could.
    """

    opened: tuple[int, int]
    description: Description
    findings: list[Finding]
    cells: pd.DataFrame
    thresholds: pd.DataFrame
    rows: np.ndarray
    symbols: str | None = None
    problem: str = ""

    def write(self, folder: Path) -> None:
        """Write it to a folder."""
        told = {
            "opened": self.opened,
            "description": asdict(self.description),
            "findings": [f.to_dict() for f in self.findings],
            "thresholds": self.thresholds.to_dict("index"),
            "symbols": self.symbols,
            "problem": self.problem,
        }
        arrays: dict[str, Any] = {str(c): self.cells[c].to_numpy(np.float32) for c in self.cells}
        np.savez(folder / "cells.npz", **arrays)
        np.save(folder / "rows.npy", self.rows)
        (folder / "look.json").write_text(json.dumps(told), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Look:
        """Read what `write` wrote; names of cells are not kept."""
        told = json.loads((folder / "look.json").read_text(encoding="utf-8"))
        with np.load(folder / "cells.npz", allow_pickle=False) as arrays:
            cells = pd.DataFrame({name: arrays[name] for name in arrays.files})
        return cls(
            tuple(told["opened"]),
            _description(told["description"]),
            [_finding(f) for f in told["findings"]],
            cells,
            pd.DataFrame.from_dict(told["thresholds"], orient="index"),
            np.load(folder / "rows.npy", allow_pickle=False),
            told["symbols"],
            told["problem"],
        )


def look(data: str, recipe: Recipe | None = None) -> Look:
    """Look at data.

    Parameters
    ----------
    data
        A path as `mira_core.data.open_data` takes it, or ``demo:NAME``. Without a recipe, a large matrix stays on
        the disk.
    recipe
        What is done to the cells first.

    Raises
    ------
    DataError
        If the data cannot be opened, or were written for training from the disk. A step that cannot be done is told
        as `Look.problem`.
    """
    adata = open_backed(data)
    recipe = Recipe() if recipe is None else recipe
    quality: QC | None = None
    opened, problem, symbols = adata.shape, "", None
    n_before = _before_filtering(recipe)
    rows = np.arange(adata.n_obs)
    try:
        for n, state in enumerate(recipe.states(adata) if recipe.steps else [adata]):
            if recipe.steps and not n:
                state.obs[ROW] = rows  # a copy, whose cells are followed
            adata = state
            if n == n_before:
                quality, mt = _quality(state), mitochondrial(state.var)
                symbols = None if mt is None else mt[1]
    except DataError as wrong:
        problem = str(wrong)
    if ROW in adata.obs:
        rows = adata.obs.pop(ROW).to_numpy()
    return Look(
        opened,
        describe(adata),
        _inspected(adata, recipe),
        pd.DataFrame() if quality is None else quality.cells,
        pd.DataFrame() if quality is None else quality.thresholds,
        rows,
        symbols,
        problem,
    )


def _inspected(adata: ad.AnnData, recipe: Recipe) -> list[Finding]:
    """Inspect the cells as a model would get them; those that were filtered by choice need no further limits."""
    chosen = next((s.column for s in recipe if isinstance(s, HighlyVariable)), None)
    known = chosen if chosen in adata.var else None  # the recipe may have stopped before
    found = inspect(adata, highly_variable_key=known)
    filtered = any(isinstance(s, FilterCells) for s in recipe)
    return [f for f in found if not (filtered and isinstance(f.remedy, FilterCells))]


def _before_filtering(recipe: Recipe) -> int:
    """Return how many steps are done before cells are filtered, or would be."""
    order = list(STEPS)
    at = order.index(FilterCells.name)
    return next((i for i, s in enumerate(recipe.steps) if order.index(s.name) >= at), len(recipe.steps))


def _quality(adata: ad.AnnData) -> QC | None:
    """Measure the cells by the first layer that holds counts."""
    layer = describe(adata).counts_layer()
    if layer is None:
        return None
    try:
        return qc(adata, layer.name)
    except DataError:  # counts in the cells that were looked at, but not in all; a finding says so
        return None


def _description(told: Mapping[str, Any]) -> Description:
    kinds: Iterator[tuple[str, type]] = iter((("layers", Layer), ("obs", Column), ("var", Column)))
    return Description(**{**told, **{name: tuple(kind(**x) for x in told[name]) for name, kind in kinds}})


def _finding(told: Mapping[str, Any]) -> Finding:
    return Finding(**{**told, "remedy": make_step(told["remedy"]) if told["remedy"] else None})


def main(argv: list[str] | None = None) -> int:
    """Look at what standard input names; write to the folder that the command line names."""
    (folder,) = sys.argv[1:] if argv is None else argv
    with contextlib.suppress(OSError):  # should memory run out, this process ends before any other
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        asked = json.loads(sys.stdin.read())
        look(asked["data"], Recipe.from_dict(asked.get("recipe") or [])).write(Path(folder))
    except MiraError as problem:
        print(json.dumps({"error": {"type": type(problem).__name__, "message": str(problem)}}))
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
