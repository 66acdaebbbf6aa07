"""Figures: each has a `root` to show, a `source` of data, and `update`."""
