"""What all steps are: options that are checked, something that is done, and the same said as Python."""

from __future__ import annotations

import abc
import difflib
import numbers
import re
import sys
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType
from typing import Any, ClassVar

import anndata as ad
import numpy as np
import scipy.sparse as sp

from ...errors import DataError, OptionError
from ..anndata_io import check_counts

STEPS: dict[str, type[Step]] = {}  # by name, in the order in which they make sense


def option(default: Any = MISSING, *, doc: str, low: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    """Declare an option of a step."""
    return field(default=default, metadata={"doc": doc, "low": low, "choices": choices})


@dataclass(frozen=True)
class Step(abc.ABC):
    """A step; its fields are its options."""

    name: ClassVar[str] = ""
    needs_counts: ClassVar[bool] = False  # in X
    of_a_column: ClassVar[bool] = False  # so that there may be one for each
    family: ClassVar[str] = ""  # of steps, only one of which makes sense

    def __init_subclass__(cls) -> None:
        cls.name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
        STEPS[cls.name] = cls

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in fields(self):
            value = _checked(f"{f.name} of the step {self.name}", getattr(self, f.name), hints[f.name], f.metadata)
            object.__setattr__(self, f.name, value)
        self._check()

    @property
    def place(self) -> str:
        """What it does, to what: of two steps of the same place, a recipe that is put together has the later one."""
        return f"{self.name} {getattr(self, 'column', '')}" if self.of_a_column else self.family or self.name

    def after(self, before: Step) -> Step:
        """Return the step that takes the place of another one and of this one."""
        return self

    def apply(self, adata: ad.AnnData) -> ad.AnnData:
        """Change `adata`, which is ours, or return some of it.

        Raises
        ------
        DataError
            If it cannot be done, or leaves nothing.
        """
        if self.needs_counts:
            _require_counts(adata)
        out = self._apply(adata)
        for left, had, what in ((out.n_obs, adata.n_obs, "cells"), (out.n_vars, adata.n_vars, "features")):
            if not left:
                raise DataError(f"no {what} of {had:,} are left; choose milder thresholds")
        return out

    def code(self) -> list[str]:
        """Return lines of Python that do the same to ``adata``."""
        return self._code()

    def _check(self) -> None:  # noqa: B027 - most have nothing to check
        """Raise `OptionError` if options do not go together."""

    @abc.abstractmethod
    def _apply(self, adata: ad.AnnData) -> ad.AnnData: ...

    @abc.abstractmethod
    def _code(self) -> list[str]: ...

    def given(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: the name, and options that differ from their defaults."""
        return {"step": self.name, **{k: _plain(v) for k, v in self.given().items()}}

    def __str__(self) -> str:
        told = self.to_dict()
        name = told.pop("step")
        return f"{name}({', '.join(f'{k}={v!r}' for k, v in told.items())})"


def make_step(given: Any) -> Step:
    """Make a step of ``{"step": name, option: value, ...}``.

    Raises
    ------
    OptionError
        If the step or an option is unknown, missing, of the wrong kind or out of bounds.
    """
    if isinstance(given, Step):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get("step"), str):
        raise OptionError(f'a step must be an object such as {{"step": "drop_empty_cells"}}; got {given!r}')
    options = {str(k): v for k, v in given.items() if k != "step"}
    name = given["step"]
    if name not in STEPS:
        raise OptionError(f"there is no step {name!r}{_nearest(name, list(STEPS))}")
    kind = STEPS[name]
    known = {f.name: f for f in fields(kind)}
    for key in options:
        if key not in known:
            raise OptionError(f"the step {name} has no option {key!r}{_nearest(key, list(known))}")
    if missing := [k for k, f in known.items() if f.default is MISSING and k not in options]:
        raise OptionError(f"the step {name} needs {' and '.join(missing)}: {known[missing[0]].metadata['doc']}")
    return kind(**options)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f". There are: {', '.join(known) if known else 'none'}"


def _checked(what: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    kinds = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is tuple:
        kinds = (tuple,)
    low, choices = metadata["low"], metadata["choices"]
    if value is None and NoneType in kinds:
        return None
    out: Any = None
    if bool in kinds:
        wanted, out = "True or False", value if isinstance(value, bool) else None
    elif tuple in kinds:
        wanted = "a list of texts"
        if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
            out = tuple(value)
    elif str in kinds:
        wanted = f"one of {', '.join(choices)}" if choices else "a text"
        out = value if isinstance(value, str) and value and (not choices or value in choices) else None
    else:
        whole = float not in kinds
        bound = "" if low is None else f" of {low:g} or more"
        wanted = f"a {'whole ' if whole else ''}number{bound}"
        number = isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max  # type: ignore[operator]
        if number and (low is None or value >= low) and (not whole or float(value).is_integer()):
            out = int(value) if whole else float(value)
    if out is None:
        raise OptionError(f"{what} must be {wanted}; got {value!r}")
    return out


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _require_counts(adata: ad.AnnData) -> None:
    """Raise unless X holds counts."""
    x = adata.X
    if x is None:
        raise DataError("the data has no X; take the counts by counts_from_layer first")
    try:
        check_counts(x.data if sp.issparse(x) else np.asarray(x), "X")
    except DataError as problem:
        told = str(problem).removesuffix("If another layer holds the raw counts, name it by counts_layer").rstrip()
        raise DataError(
            f"{told.removesuffix('.')}. Take counts by counts_from_layer, counts_from_raw or recover_counts first"
        ) from None
