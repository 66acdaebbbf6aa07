"""Pages: they lay out widgets and figures, and hold no numbers."""
