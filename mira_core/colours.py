"""Colours that mean the same in every figure and on every page, and that the colour-blind can tell apart."""

from __future__ import annotations

import functools

# Okabe & Ito's, without black; beyond these, Glasbey's farthest-apart colours that show on light and dark. A topic
# has the same colour however many there are.
OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#b8a900")
NONE = "#bbbbbb"  # of what has no value
LINE = "#2a93a8"  # where one line must be seen on light and on dark
SECOND = "#e8890c"


def categories(n: int) -> list[str]:
    """Return `n` colours for categories, as #rrggbb."""
    known = _known()
    return [known[i % len(known)] for i in range(n)]


@functools.cache
def _known() -> tuple[str, ...]:
    import colorcet  # not before colours are wanted: it brings matplotlib

    return (*OKABE_ITO, *(c for c in colorcet.b_glasbey_bw_minc_20 if _readable(c)))


def _readable(colour: str) -> bool:
    """Whether a colour can be seen on white and on black."""
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.25 < 0.299 * r + 0.587 * g + 0.114 * b < 0.8
