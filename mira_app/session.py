"""What one person is looking at. All of it is in the URL; a session holds only what it may lose."""

from __future__ import annotations

import param

PAGES = ("data", "model", "train", "explore")


class Session(param.Parameterized):
    """The view of one browser page.

    Attributes
    ----------
    page
        Which page is shown.
    data
        Key of the data set (`mira_app.workspace.Source`).
    job
        Key of the job.
    test
        Key of the learning-rate test.
    beside
        Keys of the jobs that it is compared with, separated by commas.
    colour
        What the cells are coloured by on the Explore page.
    """

    page = param.Selector(objects=list(PAGES), default="data")
    data = param.String(default="")
    job = param.String(default="")
    test = param.String(default="")
    beside = param.String(default="")
    colour = param.String(default="")
