"""What a learning-rate range test is asked to do; apart from the test, so that a job can be read without torch."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import OptionError

DEGREE = 5  # of the spline
FEWEST = 2 * (DEGREE + 1)  # learning rates that a spline can be put through
HIGHEST_RATE, HIGHEST_RATE_CODAL = 5.0, 1.0


@dataclass(frozen=True)
class RangeOptions:
    """Which learning rates to try, and how long.

    Attributes
    ----------
    num_steps, eval_every
        Rates to try, and minibatches at each.
    lower_bound_lr, upper_bound_lr
        Range to try; None: up to 5, or 1 with covariates.
    lower_bound_trim, upper_bound_trim
        How far to move the bounds inwards, in natural-log units.
    """

    num_steps: int = 100
    eval_every: int = 3
    lower_bound_lr: float = 1e-6
    upper_bound_lr: float | None = None
    lower_bound_trim: float = 0.0
    upper_bound_trim: float = 0.5

    @property
    def trim(self) -> tuple[float, float]:
        """Both trims."""
        return self.lower_bound_trim, self.upper_bound_trim

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name."""
        return asdict(self)

    def checked(self, codal: bool) -> RangeOptions:
        """Return them with an upper bound.

        Raises
        ------
        OptionError
        """
        for f in fields(self):
            value = getattr(self, f.name)
            whole = f.type == "int"
            if value is None and f.name == "upper_bound_lr":
                continue
            is_number = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
            if not is_number or (isinstance(value, int) and abs(value) >= 2**63):  # beyond, no float may hold it
                raise OptionError(f"{f.name} must be {'an integer' if whole else 'a number'}; got {value!r}")
        high = self.upper_bound_lr
        if high is None:
            high = HIGHEST_RATE_CODAL if codal else HIGHEST_RATE
        if not 0 < self.lower_bound_lr < high:
            raise OptionError(f"lower_bound_lr must be above 0 and below {high:g}; got {self.lower_bound_lr}")
        if self.num_steps < FEWEST or self.eval_every < 1:
            raise OptionError(
                f"num_steps must be at least {FEWEST} and eval_every 1; got {self.num_steps}, {self.eval_every}"
            )
        if not all(map(math.isfinite, (high, *self.trim))):
            raise OptionError(f"upper_bound_lr and the trims must be finite; got {high}, {self.trim}")
        return replace(self, upper_bound_lr=high)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RangeOptions:
        """Take options by name.

        Raises
        ------
        OptionError
            If there is no option of a name.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f". Options are: {', '.join(known)}"
                raise OptionError(f"a range test has no option {name!r}{hint}")
        return cls(**values)
