"""Figures with matplotlib: what is computed first, then how it is drawn."""
