"""The kinds of jobs, and what each is told besides data and model.

=================  ==================================================================================================
``fit``            ``test_size``, ``learning_rate_curve``, ``embedding``
``range_test``     ``range_test``: options of `mira_core.training.range_options.RangeOptions`
``tune``           ``tune``: options of `mira_core.tuning.tune_options.TuneOptions`; ``study`` and the ends of
                   ``num_topics`` are needed
``gradient_tune``  ``gradient_tune``: options of `mira_core.tuning.tune_options.GradientOptions`
``predict``        ``predict``: ``model``, the path of a saved model, and perhaps ``study`` and ``trial``, where it
                   is from; ``embedding``
=================  ==================================================================================================
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import options as opt
from .data.recipe import Recipe
from .errors import JobError
from .training.range_options import RangeOptions

KINDS = ("fit", "range_test", "tune", "gradient_tune", "predict")
OF = {"test_size": "fit", "learning_rate_curve": "fit", "range_test": "range_test", "tune": "tune",
      "gradient_tune": "gradient_tune", "predict": "predict"}  # fmt: skip
EXTRAS = (*OF, "recipe")
PREDICT = ("model", "study", "trial")


def check(kind: str, extras: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Check what a job is told besides its data and the options of its model.

    Raises
    ------
    JobError
        If something does not go with the kind, or is wrong.
    OptionError
    """
    if kind not in KINDS:
        raise JobError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    for key, of in OF.items():
        if key in extras and kind != of:
            raise JobError(f"{key} goes with jobs of kind {of!r} only; leave it out")
        if key in extras and key == of and not isinstance(extras[key], Mapping):
            raise JobError(f"{key} must hold options by name; got {extras[key]!r}")
    Recipe.from_dict(extras.get("recipe", []))
    if kind == "fit":
        _check_fit(extras)
    elif kind == "range_test":
        RangeOptions.from_dict(extras.get("range_test", {})).checked(opt.is_codal(model))
    elif kind == "predict":
        _check_predict(extras.get("predict", {}))
    else:
        from .tuning.tune_options import GradientOptions, TuneOptions

        taken = TuneOptions if kind == "tune" else GradientOptions
        taken.from_dict(extras.get(kind, {}), model)


def _check_fit(extras: Mapping[str, Any]) -> None:
    size = extras.get("test_size", 0.5)
    if isinstance(size, bool) or not isinstance(size, numbers.Real) or not 0 < size < 1:  # type: ignore[operator]
        raise JobError(f"test_size must be a share between 0 and 1; got {size!r}")
    if "learning_rate_curve" in extras:
        from .training.range_test import LearningRateCurve

        try:
            LearningRateCurve.from_dict(extras["learning_rate_curve"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise JobError(
                "learning_rate_curve must be the result of a range test that found where the loss falls; got another"
            ) from None


def _check_predict(asked: Mapping[str, Any]) -> None:
    for name in asked:
        if name not in PREDICT:
            raise JobError(f"a prediction has no option {name!r}. Options are: {', '.join(PREDICT)}")
    path, study, trial = (asked.get(name) for name in PREDICT)
    if not isinstance(path, str) or not path:
        raise JobError(f"a prediction must be told model, the path of a saved model; got {path!r}")
    if study is not None and not isinstance(study, str):
        raise JobError(f"study must be a name; got {study!r}")
    if trial is not None and (isinstance(trial, bool) or not isinstance(trial, int) or trial < 0):
        raise JobError(f"trial must be a number; got {trial!r}")


def settle(kind: str, extras: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same, with files named so that they are found wherever the job is run from.

    Raises
    ------
    JobError
        If a saved model does not exist.
    """
    out = dict(extras)
    if kind == "predict":
        path = extras["predict"]["model"]
        if not os.path.isfile(path):  # False, too, for what can be no path
            raise JobError(f"there is no model {path}")
        out["predict"] = {**extras["predict"], "model": str(Path(path).resolve())}
    elif kind == "tune":
        from .tuning.tune_options import TuneOptions

        out["tune"] = TuneOptions.from_dict(extras["tune"], model).absolute().to_dict()
    return out


def is_secret(extras: Mapping[str, Any]) -> bool:
    """Tell whether it holds a password: that of the server of a study."""
    return "@" in str(extras.get("tune", {}).get("storage", ""))
