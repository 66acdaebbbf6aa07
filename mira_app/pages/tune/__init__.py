"""Tune: studies of the storage, live; their trials, and what they say of the number of topics."""

from .page import TunePage

__all__ = ["TunePage"]
