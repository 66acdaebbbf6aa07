"""Pieces that stand alone: in the pages of the dashboard, in a notebook, in any page of Panel."""
