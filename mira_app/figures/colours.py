"""Colours of the dashboard; those of topics and categories are the library's, so that its figures have them too."""

from __future__ import annotations

from mira_core.colours import LINE, SECOND, categories

__all__ = ["ACCENT", "ACCENT_ON_DARK", "LINE", "SECOND", "SEQUENTIAL", "categories"]

SEQUENTIAL = "Cividis256"
ACCENT = "#0b7285"
ACCENT_ON_DARK = "#4fb3c6"
