"""What a tuning is asked to do; apart from the tuner, so that a job can be read without torch."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .. import options as opt
from ..errors import OptionError
from ..recommend import resolve

if TYPE_CHECKING:  # Optuna takes a while to load
    from .search import Range, Search
    from .storage import Storage
    from .study import Plan

SQLITE = "sqlite:///mira-tuning.db"
BY_TRIAL = ("num_topics", "decoder_dropout", "seed")  # options of a model that each trial sets
ON_DISK = ("sqlite:///", "journal:///")
A_NAME = "save_name must be a name such as 'dataset/modality/model/run', no part of it empty, '.' or '..'"
T = TypeVar("T")


def parts_of(study: str) -> list[str]:
    """Return the folders, one in the other, that a study's files are in below those of all studies."""
    return [p for p in study.split("/") if p not in ("", ".", "..")]


def check_name(study: str) -> None:
    """Raise if a new study must not be called so, as its folder would be another one's, or that of all.

    Raises
    ------
    OptionError
    """
    if not study or "/".join(parts_of(study)) != study:
        raise OptionError(f"{A_NAME}; got {study!r}")


@dataclass(frozen=True)
class TuneOptions:
    """What a `BayesianTuner` is told besides its model, sampler and pruner; `study` is its ``save_name``."""

    study: str
    min_topics: int
    max_topics: int
    storage: Storage = SQLITE
    n_jobs: int = 1
    max_trials: int = 128
    min_trials: int = 48
    stop_condition: int = 12
    seed: int = 2556
    tensorboard_logdir: str | Path = "runs"
    model_dir: str | Path = "models"
    log_steps: bool = False
    log_every: int = 10
    train_size: float = 0.8
    search: Search | None = None

    def check(self) -> None:
        """Raise if something is wrong in itself.

        Raises
        ------
        OptionError
        """
        self._check_all_but_name()
        check_name(self.study)

    def _check_all_but_name(self) -> None:
        for name in ("n_jobs", "max_trials", "min_trials", "stop_condition", "log_every"):
            value = getattr(self, name)
            if not _is_integer(value) or value < 1:
                raise OptionError(f"{name} must be an integer of at least 1; got {value!r}")
        if self.min_trials > self.max_trials:
            raise OptionError(f"min_trials must not exceed max_trials; got {self.min_trials} and {self.max_trials}")
        if not isinstance(self.study, str) or not self.study.strip("/"):
            raise OptionError(f"{A_NAME}; got {self.study!r}")
        if not _is_number(self.train_size) or not 0 < self.train_size < 1:
            raise OptionError(f"train_size must be between 0 and 1; got {self.train_size!r}")
        if not _is_integer(self.seed) or not 0 <= self.seed < 2**32:
            raise OptionError(f"seed must be an integer from 0 to {2**32 - 1}; got {self.seed!r}")
        from .storage import check_jobs

        check_jobs(self.storage, self.n_jobs)

    def space(self, options: Mapping[str, Any]) -> dict[str, Range]:
        """Return what is searched, for a model with these options.

        Raises
        ------
        OptionError
        """
        from .search import search_space

        return search_space(options, self.min_topics, self.max_topics, self.search)

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name."""
        return asdict(self)

    def absolute(self) -> TuneOptions:
        """Return the same with files and folders named from the root, for other processes."""
        storage = str(self.storage)
        for scheme in ON_DISK:
            if storage.startswith(scheme):
                storage = scheme + str(Path(storage.removeprefix(scheme)).resolve())
        folders = {name: str(Path(getattr(self, name)).resolve()) for name in ("model_dir", "tensorboard_logdir")}
        return TuneOptions(**{**self.to_dict(), **folders, "storage": storage})

    @classmethod
    def of_plan(cls, study: str, plan: Plan, storage: str) -> TuneOptions:
        """Return those with which a study that was begun elsewhere goes on."""
        space = {name: [r.low, r.high] for name, r in plan.space.items()}
        low, high = space.pop("num_topics")
        parts = parts_of(study)
        folders: dict[str, Any] = {}
        for name in ("model_dir", "tensorboard_logdir"):  # the tuner puts the study's name behind these
            path = Path(getattr(plan, name))
            folders[name] = str(path.parents[len(parts) - 1] if list(path.parts[-len(parts) :]) == parts else path)
        same = ("max_trials", "min_trials", "stop_condition", "seed", "log_steps", "log_every", "train_size")
        return cls(study, int(low), int(high), storage, search=space, **folders, **{n: getattr(plan, n) for n in same})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], model: Mapping[str, Any]) -> TuneOptions:
        """Take and check options by name, as a job holds them, for a model with these options.

        Raises
        ------
        OptionError
            If there is no option of a name, one is missing or wrong, or the model sets what each trial does.
        """
        asked = _take(cls, values, "a tuning")
        for name in ("storage", "tensorboard_logdir", "model_dir"):
            if not isinstance(value := getattr(asked, name), str) or not value:
                raise OptionError(f"{name} must be text; got {value!r}")
        for name in ("min_topics", "max_topics"):
            if not _is_integer(value := getattr(asked, name)):
                raise OptionError(f"{name} must be an integer; got {value!r}")
        if not isinstance(asked.log_steps, bool):
            raise OptionError(f"log_steps must be true or false; got {asked.log_steps!r}")
        _check_search(asked.search)
        asked._check_all_but_name()  # a job of a study that has had its name since any would do can still be read
        _refuse(model, BY_TRIAL, "is set by each trial")
        # which options can be searched does not depend on the size of the data
        asked.space({name: option.value for name, option in resolve(1000, 1000, model).items()})
        return asked


@dataclass(frozen=True)
class GradientOptions:
    """What `gradient_tune` is told besides its model and data."""

    max_attempts: int = 3
    max_topics: int | None = None

    def check(self) -> None:
        """Raise if something is wrong in itself.

        Raises
        ------
        OptionError
        """
        if not _is_integer(self.max_attempts) or self.max_attempts < 1:
            raise OptionError(f"max_attempts must be an integer of at least 1; got {self.max_attempts!r}")
        if self.max_topics is not None:
            try:
                opt.validate("num_topics", self.max_topics)
            except OptionError as problem:
                raise OptionError(f"max_topics is a num_topics: {problem}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], model: Mapping[str, Any]) -> GradientOptions:
        """Take and check options by name, as a job holds them, for a model with these options.

        Raises
        ------
        OptionError
            If there is no option of a name, one is wrong, or the model sets what is sought.
        """
        asked = _take(cls, values, "a gradient tuning")
        asked.check()
        _refuse(model, ("num_topics",), "is what is sought, and max_topics limits it")
        return asked


def _take(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    if not isinstance(values, Mapping):
        raise OptionError(f"{what} must be told options by name; got {values!r}")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f". Options are: {', '.join(known)}"
            raise OptionError(f"{what} has no option {name!r}{hint}")
    if missing := [name for name, f in known.items() if f.default is MISSING and name not in values]:
        raise OptionError(f"{what} must be told {' and '.join(missing)}")
    return cls(**values)


def _refuse(model: Mapping[str, Any], names: tuple[str, ...], why: str) -> None:
    for name in names:
        if name in model:
            raise OptionError(f"{name} {why}; leave it out of the model")


def _check_search(search: Any) -> None:
    if search is None:
        return
    if not isinstance(search, Mapping):
        raise OptionError(f"search must hold ranges by name, or be None; got {search!r}")
    for name, ends in search.items():
        if ends is not None and not (isinstance(ends, list | tuple) and len(ends) == 2 and all(map(_is_number, ends))):
            raise OptionError(f"search of {name} needs two ends, the lower first, or None; got {ends!r}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
