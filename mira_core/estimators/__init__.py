"""The user's objects: a topic model with `fit` and `predict`, its interpretation, its files."""
