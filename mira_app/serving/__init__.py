"""The dashboard as a server: how it is set up, who may come in, and how it is looked after."""
