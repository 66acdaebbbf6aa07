"""What ``panel serve mira_app`` runs for each session."""

from mira_app.page import app

app().servable()
