"""Pieces that stand alone: in the pages of the dashboard, in a notebook, in any page of Panel.

``from mira_app.widgets import ModelForm, LearningRateTest, TrainingMonitor, StudyView, TopicExplorer``; each comes with
what it needs when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "LearningRateTest": "mira_app.widgets.rates",
    "ModelForm": "mira_app.forms",
    "StudyView": "mira_app.widgets.study",
    "TopicExplorer": "mira_app.widgets.explorer",
    "TrainingMonitor": "mira_app.widgets.training",
    "load": "mira_app.widgets.notebook",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
