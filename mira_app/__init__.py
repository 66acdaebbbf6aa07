"""The dashboard over mira_core."""
