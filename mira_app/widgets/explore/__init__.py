"""Parts of `mira_app.widgets.explorer.TopicExplorer`."""
