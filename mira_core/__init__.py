"""MIRA and CODAL topic models of single-cell counts.

>>> import mira_core as mira
>>> model = mira.topics.make_model(*adata.shape, feature_type="expression", counts_layer="counts")
>>> model.fit(adata).predict(adata)
"""

from . import data, topics

__version__ = "0.1.0"
__all__ = ["data", "topics"]
