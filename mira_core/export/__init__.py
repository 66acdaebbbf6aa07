"""What one takes away from a finished run: data, tables, figures, a report, a methods text, a script to repeat it.

Exports are made from a run's folder (`mira_core.jobs`), after it, without a server.
"""

import importlib
from typing import Any

__all__ = ["FinishedRun", "check_repeat", "check_source", "export_all", "methods", "report", "write_zip"]

_ROOMS = {"FinishedRun": "run", "check_repeat": "repeating", "check_source": "repeating", "export_all": "everything",
          "methods": "methods_text",
          "report": "html_report", "write_zip": "zipped"}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Loaded when first used, as it brings torch, which `mira --help` does not need.
    if name in _ROOMS:
        return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
