"""The dashboard as a server: what whoever keeps it needs."""
