"""A model's options: given, recommended, documented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from .. import options as opt
from ..recommend import ResolvedOption, check_count, resolve

Self = TypeVar("Self", bound="Parameters")


class Parameters:
    """Holds the options of a model for data of some size, and reads each as an attribute.

    Attributes
    ----------
    n_samples, n_features
        Size of the data for which options were recommended.
    """

    def __init__(self, n_samples: int, n_features: int, given: Mapping[str, Any]) -> None:
        self.n_samples = check_count("n_samples", n_samples)
        self.n_features = check_count("n_features", n_features)
        self._given: dict[str, Any] = {}
        self._resolved: dict[str, ResolvedOption] = {}
        self._set(given)

    def _set(self, given: Mapping[str, Any]) -> None:
        checked = opt.validate_all({**self._given, **given})
        self._resolved = resolve(self.n_samples, self.n_features, checked)
        self._given = checked

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the value of every option that applies to this model. `deep` is there for scikit-learn."""
        return {name: o.value for name, o in self._resolved.items()}

    def set_params(self: Self, **given: Any) -> Self:
        """Set options; those left out keep what they were. Takes effect at the next fit.

        Returns
        -------
        TopicModel
            This model.

        Raises
        ------
        OptionError
        """
        self._set(given)
        return self

    @property
    def options(self) -> Mapping[str, ResolvedOption]:
        """Every option that applies, with documented, recommended and chosen values."""
        return self._resolved

    @property
    def given(self) -> dict[str, Any]:
        """The options that were set explicitly."""
        return dict(self._given)

    def __getattr__(self, name: str) -> Any:
        resolved = self.__dict__.get("_resolved", {})
        if name in resolved:
            return resolved[name].value
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in opt.names():
            raise AttributeError(f"set options by set_params({name}=...)")
        super().__setattr__(name, value)
