"""What is searched: options of the model, with their ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optuna
import param

from .. import options as opt
from ..errors import OptionError

Search = Mapping[str, Sequence[float] | None]
NARROWED = "narrowed"  # attribute of a study: ranges for the trials to come, by name


class Range(NamedTuple):
    """Where an option is searched.

    Attributes
    ----------
    low, high
        Ends, included.
    log
        Whether its logarithm is what is searched evenly.
    integer
        Whether it takes whole numbers only.
    """

    low: float
    high: float
    log: bool
    integer: bool

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return it as Optuna knows it."""
        if self.integer:
            return optuna.distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log)


def search_space(
    options: Mapping[str, Any], min_topics: int, max_topics: int, search: Search | None
) -> dict[str, Range]:
    """Return the range of every option that is searched, by name.

    Parameters
    ----------
    options
        Of the model; those that do not apply to it cannot be searched.
    min_topics, max_topics
        Ends of ``num_topics``.
    search
        Further options by name, with both ends, or None for the usual ones.

    Raises
    ------
    OptionError
    """
    if not 2 <= min_topics < max_topics:
        raise OptionError(
            f"min_topics must be at least 2 and less than max_topics; got min_topics={min_topics}, "
            f"max_topics={max_topics}"
        )
    wanted: dict[str, Sequence[float] | None] = {"num_topics": (min_topics, max_topics), "decoder_dropout": None}
    if search is not None and "num_topics" in search:
        raise OptionError("the range of num_topics is min_topics to max_topics; leave it out of search")
    return {name: _range(name, ends, options) for name, ends in {**wanted, **(search or {})}.items()}


def _range(name: str, ends: Sequence[float] | None, options: Mapping[str, Any]) -> Range:
    declared = opt.parameter(name)
    usual = declared.metadata["search"]
    if usual is None:
        can = ", ".join(n for n in opt.names() if opt.parameter(n).metadata["search"] and n in options)
        raise OptionError(f"{name} cannot be searched; what can is {can}")
    if name not in options:
        raise OptionError(f"{name} does not apply to this model, and so cannot be searched")
    low, high = usual[:2] if ends is None else tuple(ends)
    if not low < high:
        raise OptionError(f"search of {name} needs two ends, the lower first; got {tuple(ends or ())}")
    for end in (low, high):
        opt.validate(name, end)
    return Range(low, high, usual[2] == "log", isinstance(declared, param.Integer))


def suggest(trial: optuna.Trial, space: Mapping[str, Range]) -> dict[str, Any]:
    """Ask a trial for a value of every option."""
    return {
        name: (trial.suggest_int if r.integer else trial.suggest_float)(name, r.low, r.high, log=r.log)  # type: ignore[arg-type]
        for name, r in space.items()
    }


def narrowed(space: Mapping[str, Range], ends: Mapping[str, Sequence[float]]) -> dict[str, Range]:
    """Return what is searched once some ranges are narrowed.

    Raises
    ------
    OptionError
        If one is not searched, or an end lies outside of what it was to begin with.
    """
    out = dict(space)
    for name, (low, high) in ends.items():
        if name not in space:
            raise OptionError(f"{name} is not searched in this study; what is: {', '.join(space)}")
        whole = space[name]
        if not whole.low <= low <= high <= whole.high:
            raise OptionError(
                f"the range of {name} can be narrowed within {whole.low:g} to {whole.high:g}, the lower end first; "
                f"got {low:g} to {high:g}"
            )
        if whole.integer and (low != int(low) or high != int(high)):
            raise OptionError(f"{name} takes whole numbers; got {low:g} to {high:g}")
        out[name] = whole._replace(low=low, high=high)
    return out
