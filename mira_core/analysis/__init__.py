"""What one asks of cells with topics: what the topics are, who has them, and how they differ."""

from .description import describe_topics, rank_topics, top_features, topics_by
from .differential import differential_topics
from .matching import match_topics
from .predicted import readable

__all__ = [
    "describe_topics",
    "differential_topics",
    "match_topics",
    "rank_topics",
    "readable",
    "top_features",
    "topics_by",
]
