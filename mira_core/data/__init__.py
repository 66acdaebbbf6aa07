"""Counts in, minibatches out; simulated and demonstration data."""

from .anndata_io import open_data
from .demo import load_demo
from .simulate import simulate_expression

__all__ = ["load_demo", "open_data", "simulate_expression"]
