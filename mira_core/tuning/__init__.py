"""Choosing a model: what is searched, who searches it, and where the trials are kept (Optuna)."""
