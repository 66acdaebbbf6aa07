"""What one asks of cells with topics: what the topics are, who has them, how they differ, and what is known of them."""

from .description import describe_topics, rank_topics, top_features, topics_by
from .differential import differential_topics
from .enrichment import enrich, keep_enrichment, kept_enrichments
from .gene_sets import read_gmt
from .joint import correlate_topics, make_joint_representation
from .matching import match_topics
from .mixing import Mixing, batch_mixing
from .peaks import enrich_peaks
from .predicted import readable

__all__ = [
    "Mixing",
    "batch_mixing",
    "correlate_topics",
    "describe_topics",
    "differential_topics",
    "enrich",
    "enrich_peaks",
    "keep_enrichment",
    "kept_enrichments",
    "make_joint_representation",
    "match_topics",
    "rank_topics",
    "read_gmt",
    "readable",
    "top_features",
    "topics_by",
]
