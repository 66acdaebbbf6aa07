"""Counts in, minibatches out; simulated and demonstration data."""

from .demo import load_demo
from .simulate import simulate_expression

__all__ = ["load_demo", "simulate_expression"]
