"""What is done to the cells before a model sees them, as a list that can be read, kept and done again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from ..errors import DataError, OptionError
from ..files import parse_json
from . import formats
from .anndata_io import from_disk, open_data
from .demo import DEMO
from .on_disk import OnDiskDataset
from .sources import is_ondisk, open_named
from .steps import STEPS, Step, make_step

FORMAT = 1


class Recipe:
    """An ordered list of steps from the cells of a file to those of a training.

    Steps are written ``{"step": name, option: value, ...}``: ``counts_from_layer``, ``counts_from_raw``,
    ``recover_counts``, ``reads_to_fragments``, ``binarise``, ``store_by_row``, ``make_names_unique``,
    ``keep_features``, ``drop_missing``, ``filter_cells``, ``filter_features``, ``drop_empty_features``,
    ``drop_rare_categories``, ``highly_variable``, ``drop_empty_cells``. `Recipe.help` tells their options. Those that
    look at counts find them in ``X``.

    Parameters
    ----------
    steps
        In the order in which they are done.

    Raises
    ------
    OptionError
        If a step or an option is unknown, of the wrong kind or out of bounds.

    Examples
    --------
    >>> recipe = Recipe([{"step": "filter_cells", "min_counts": 500}]).then("highly_variable", n_top=3000)
    >>> print(recipe)
    1. filter_cells(min_counts=500.0)
    2. highly_variable(n_top=3000)
    """

    def __init__(self, steps: Iterable[Step | Mapping[str, Any]] = ()) -> None:
        if isinstance(steps, str | Mapping):
            raise OptionError(f"steps must be a list; got {steps!r}. Recipe.from_json reads text")
        made = []
        for i, given in enumerate(steps, 1):
            try:
                made.append(make_step(given))
            except OptionError as problem:
                raise OptionError(f"step {i} of the recipe: {problem}") from None
        self.steps: tuple[Step, ...] = tuple(made)

    @classmethod
    def of(cls, findings: Iterable[Any]) -> Recipe:
        """Put the remedies of findings together, in the order in which they make sense."""
        recipe = cls()
        for f in findings:
            if f.remedy is not None:
                recipe = recipe.plus(f.remedy)
        return recipe

    def then(self, step: str | Step | Mapping[str, Any], **options: Any) -> Recipe:
        """Return a recipe with one step more, at its end; `plus` puts it where it makes sense."""
        return Recipe([*self.steps, {"step": step, **options} if isinstance(step, str) else step])

    def plus(self, step: str | Step | Mapping[str, Any], **options: Any) -> Recipe:
        """Return a recipe with a step where it makes sense, in place of one like it, whose limits are kept."""
        new = make_step({"step": step, **options} if isinstance(step, str) else step)
        for before in self.steps:
            new = new.after(before) if before.place == new.place else new
        order = list(STEPS)
        steps = [*(s for s in self.steps if s.place != new.place), new]
        steps.sort(key=lambda s: order.index(s.name))
        return Recipe(steps)

    def without(self, step: Step) -> Recipe:
        """Return a recipe without a step."""
        return Recipe(s for s in self.steps if s != step)

    def apply(self, adata: ad.AnnData) -> ad.AnnData:
        """Do it.

        Parameters
        ----------
        adata
            In memory or on the disk; never changed.

        Returns
        -------
        anndata.AnnData
            A new one, in memory. Counts that a step took are in ``X``.

        Raises
        ------
        DataError
            If a step cannot be done, or leaves no cell or feature; it names the step.
        """
        *_, out = self.states(adata)
        return out

    def states(self, adata: ad.AnnData) -> Iterator[ad.AnnData]:
        """Yield a copy of the data in memory, then the same after each step.

        A step may change what was yielded before it.

        Raises
        ------
        DataError
            As `apply` does.
        """
        out = _own(adata)
        yield out
        for i, step in enumerate(self.steps, 1):
            try:
                out = step.apply(out)
            except DataError as problem:
                raise DataError(f"step {i} of the recipe, {step.name}: {problem}") from problem
            yield out

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"format": FORMAT, "steps": [step.to_dict() for step in self.steps]}

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, values: Any) -> Recipe:
        """Read what `to_dict` returned, or a bare list of steps.

        Raises
        ------
        OptionError
        """
        if isinstance(values, Recipe):
            return values
        if isinstance(values, Mapping):
            found = values.get("format", FORMAT)
            if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= FORMAT:
                raise OptionError(f"the recipe has format {found!r}; this version knows up to {FORMAT}")
            if others := set(map(str, values)) - {"format", "steps"}:
                raise OptionError(f"a recipe holds format and steps; got {', '.join(sorted(others))}")
            values = values.get("steps")
        if not isinstance(values, list | tuple):
            raise OptionError(f"a recipe must hold a list of steps; got {values!r}")
        return cls(values)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what `to_json` returned.

        Raises
        ------
        OptionError
            If it is no JSON, or no recipe.
        """
        try:
            values = parse_json(text)
        except ValueError as problem:
            raise OptionError(f"a recipe must be JSON; {problem}") from None
        return cls.from_dict(values)

    def to_python(self, data: str | Path = "cells.h5ad") -> str:
        """Return the same as a script over anndata and scanpy, which leaves the cells in ``adata``."""
        lines = [line for step in self.steps for line in ["", f"# {step}", *step.code()]]
        text = "\n".join(lines)
        heads = {"np": "import numpy as np", "sc": "import scanpy as sc", "sp": "import scipy.sparse as sp"}
        path, part = formats.split_part(data)
        if str(data).startswith(DEMO):
            opened = f"mira.data.load_demo({str(data).removeprefix(DEMO)!r})"
        elif part is None and path.suffix == ".h5ad":
            opened = f"ad.read_h5ad({str(data)!r})"
        else:
            opened = f"mira.data.open_data({str(data)!r})"
        head = ["import anndata as ad" if opened.startswith("ad.") else "import mira_core as mira"]
        head += [line for name, line in heads.items() if f"{name}." in text]
        return "\n".join([*head, "", f"adata = {opened}", *lines, ""])

    @staticmethod
    def help() -> str:
        """Tell all steps and their options."""
        told = []
        for name, kind in STEPS.items():
            told.append(f"{name}: {(kind.__doc__ or '').strip().splitlines()[0]}")
            for f in fields(kind):
                default = "needed" if f.default is MISSING else f"default {f.default!r}"
                told.append(f"    {f.name}: {f.metadata['doc']} ({default})")
        return "\n".join(told)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.steps == other.steps

    def __hash__(self) -> int:
        return hash(self.steps)

    def __repr__(self) -> str:
        return f"Recipe({[step.to_dict() for step in self.steps]!r})"

    def __str__(self) -> str:
        return "\n".join(f"{i}. {step}" for i, step in enumerate(self.steps, 1)) or "(no steps)"


def prepare(data: ad.AnnData | str | Path, recipe: Recipe) -> ad.AnnData:
    """Return cells as a recipe leaves them; of a file, each matrix is read once.

    Raises
    ------
    DataError
        If a step cannot be done, or the data were written for training from the disk.
    """
    if not isinstance(data, ad.AnnData):
        if is_ondisk(data):
            raise DataError(
                f"a recipe cannot be applied to {data}, which write_ondisk_dataset wrote. Apply it to the file it was "
                "written from, and write it anew"
            )
        data = open_data(data, backed=True)
    return recipe.apply(data)


def open_cells(spec: Mapping[str, Any]) -> ad.AnnData | OnDiskDataset:
    """Open the data of a job, and do to it what its recipe says."""
    data = spec["data"]
    if spec.get("recipe") is None:
        return open_named(data)
    source = open_named(data) if data.startswith(DEMO) else data
    return prepare(source, Recipe.from_dict(spec["recipe"]))


def _own(adata: ad.AnnData) -> ad.AnnData:
    """Return a copy in memory."""
    matrices = [adata.X] if _has_x(adata) else []
    matrices += list(adata.layers.values()) + ([adata.raw.X] if adata.raw is not None else [])
    if all(m is None or isinstance(m, np.ndarray) or sp.issparse(m) for m in matrices):
        return adata.copy()
    with from_disk():
        out = adata.to_memory(copy=True)
        checked = [("X", out.X), *((f"layer {k!r}", m) for k, m in out.layers.items())]
        for where, m in [*checked, *([("raw", out.raw.X)] if out.raw is not None else [])]:
            if sp.issparse(m):
                formats.checked(m, where)
    return out


def _has_x(adata: ad.AnnData) -> bool:
    try:
        return adata.X is not None
    except KeyError:
        return False
