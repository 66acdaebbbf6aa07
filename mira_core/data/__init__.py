"""Counts in, minibatches out; what is wrong with them and what is done about it; simulated and demonstration data."""

from .anndata_io import open_data
from .demo import load_demo
from .inspection import Finding, inspect
from .qc import qc
from .recipe import Recipe
from .simulate import simulate_expression

__all__ = ["Finding", "Recipe", "inspect", "load_demo", "open_data", "qc", "simulate_expression"]
