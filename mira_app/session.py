"""What one person is looking at. All of it is in the URL; a session holds only what it may lose."""

from __future__ import annotations

import param

PAGES = ("data", "model", "train", "tune", "explore", "jobs")


class Session(param.Parameterized):
    """The view of one browser page.

    Attributes
    ----------
    page
        Which page is shown.
    data
        Key of the data set (`mira_app.workspace.Source`).
    recipe
        Key of what is done to the data before a model is made of them (`mira_app.looks.Looks.recipe`); empty: nothing.
    job
        Key of the job.
    test
        Key of the learning-rate test.
    beside
        Keys of the jobs that it is compared with, separated by commas.
    study
        Name of the study on the Tune page; empty: the list of all.
    part
        Which part of that page is shown.
    trials
        Numbers of the trials that are selected, separated by commas.
    pin
        Number of the trial that others are compared with.
    colour
        What the cells are coloured by on the Explore page.
    feature, column, tab, against
        What is looked at there: a feature, a column, which part, and with which run it is compared.
    given
        What somebody gave on the form of the Model page; not in the URL.
    """

    page = param.Selector(objects=list(PAGES), default="data")
    data = param.String(default="")
    recipe = param.String(default="")
    job = param.String(default="")
    test = param.String(default="")
    beside = param.String(default="")
    study = param.String(default="")
    part = param.String(default="")
    trials = param.ClassSelector(default="", class_=(str, int))  # what is a number in the URL comes as one
    pin = param.ClassSelector(default="", class_=(str, int))
    colour = param.String(default="")
    feature = param.ClassSelector(default="", class_=(str, int, float))  # a name may look like a number
    column = param.ClassSelector(default="", class_=(str, int, float))
    tab = param.String(default="")
    against = param.String(default="")
    given = param.Dict(default={})

    def show_job(self, key: str, kind: str, name: str) -> None:
        """Go to the page that a job of this kind is watched on.

        Parameters
        ----------
        key, kind, name
            Of the job; that of a tuning is called as its study is.
        """
        if kind == "fit":
            self.param.update(job=key, page="train")
        elif kind == "tune":
            self.param.update(study=name, page="tune", trials="", pin="")
        elif kind == "gradient_tune":
            self.param.update(study="", page="tune")
        elif kind == "predict":
            self.param.update(job=key, page="explore")
        else:
            self.param.update(test=key, page="model")

    @property
    def selected(self) -> list[int]:
        """Numbers of the selected trials."""
        return _numbers(self.trials)

    @property
    def pinned(self) -> int | None:
        """Number of the pinned trial."""
        return next(iter(_numbers(self.pin)), None)


def _numbers(text: str | int) -> list[int]:
    return [int(part) for part in str(text).split(",") if part.strip().isdigit()]
