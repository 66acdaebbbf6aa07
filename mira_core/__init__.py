"""MIRA and CODAL topic models of single-cell counts.

>>> import mira_core as mira
>>> model = mira.topics.make_model(*adata.shape, feature_type="expression", counts_layer="counts")
>>> model.fit(adata).predict(adata)
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["analysis", "data", "export", "topics"]


def __getattr__(name: str) -> ModuleType:
    # Loaded when first used: torch takes seconds, and the dashboard and `mira --help` do not need it.
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
