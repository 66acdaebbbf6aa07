"""Widgets that stand alone: in a page, or in a notebook."""
