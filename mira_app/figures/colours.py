"""Colours that mean the same on every page, and that the colour-blind can tell apart."""

from __future__ import annotations

import colorcet

# Okabe & Ito's eight, without black; beyond these, Glasbey's farthest-apart colours.
_FEW = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442")
_MANY = tuple(colorcet.b_glasbey_category10)
SEQUENTIAL = "Cividis256"
ACCENT = "#0b7285"
ACCENT_ON_DARK = "#4fb3c6"
LINE = "#2a93a8"  # the accent, where one line must be seen on light and on dark
SECOND = "#e8890c"


def categories(n: int) -> list[str]:
    """Return `n` colours for categories."""
    return list(_FEW[:n]) if n <= len(_FEW) else [_MANY[i % len(_MANY)] for i in range(n)]
