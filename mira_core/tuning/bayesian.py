"""The tuner: the number of topics and how strongly to regularise, chosen by held-out loss."""

from __future__ import annotations

import contextlib
import threading
import warnings
from concurrent.futures import Executor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from ..data.counts import Cells
from ..data.on_disk import OnDiskDataset
from ..data.sources import Data, is_ondisk
from ..errors import MiraError, OptionError, TuningError
from ..estimators.topic_model import TopicModel, load_model
from ..processes import this_user
from . import storage as storages
from . import workers
from .origin import Origin, digest, origin_of
from .search import Search
from .storage import Storage, patiently
from .study import BUDGET, TOLD, Plan, attributes, best_of, fail, fail_dead, standing, trials_of
from .summary import COMPARED, Summary, end_warning, summarise
from .table import Table
from .tune_options import BY_TRIAL, SQLITE, TuneOptions, parts_of
from .worker import Worker, read_cells


class BayesianTuner:
    """Chooses the number of topics and the regularisation that suit the data best.

    Models are trained with parameters that a sampler suggests, each is scored by cells that it was not trained on,
    and what was learned goes into the next suggestion. Trials that do worse than others at the same epoch are
    stopped early.

    Parameters
    ----------
    model
        Topic model to tune, with the columns of features set and the learning rates configured by
        `get_learning_rate_bounds`.
    save_name
        Name of the study in the storage, such as dataset/modality/model_id/tuning_run.
    min_topics, max_topics
        Least and greatest number of topics to try.
    storage
        ``'sqlite:///FILE'`` for up to 5 concurrent trials, `mira.topics.Redis`, the URL of a PostgreSQL or MySQL
        database, or ``'journal:///FILE'``.
    n_jobs
        Concurrent trials, each in a process of its own; 1: in this one.
    max_trials, min_trials, stop_condition
        Ends once `min_trials` have ended and `stop_condition` have passed without a better one, or once
        `max_trials` have begun.
    seed
        Of sampler, split and models. With one job, the same seed gives the same study.
    tensorboard_logdir
        Folder for TensorBoard's logs.
    model_dir
        Folder for the models of completed trials.
    pruner, sampler
        Optuna's, or None: successive halving, and a Gaussian process that pruned trials inform too.
    log_steps, log_every
        Whether steps are logged for TensorBoard besides epochs, and which.
    train_size
        Share of the cells for training, where `fit` is given none for testing.
    search
        Further options to tune, by name, with both ends or None for the usual ones:
        ``{"initial_pseudocounts": (10, 200), "hidden": None}``.

    Attributes
    ----------
    study : optuna.study.Study
        What was tried so far.
    trial_attrs : list of dict
        For each trial its number, state, score, parameters and attributes, which plots can show.

    Raises
    ------
    OptionError
    """

    def __init__(
        self,
        *,
        model: TopicModel,
        save_name: str,
        min_topics: int,
        max_topics: int,
        storage: Storage = SQLITE,
        n_jobs: int = 1,
        max_trials: int = 128,
        min_trials: int = 48,
        stop_condition: int = 12,
        seed: int = 2556,
        tensorboard_logdir: str | Path = "runs",
        model_dir: str | Path = "models",
        pruner: optuna.pruners.BasePruner | None = None,
        sampler: optuna.samplers.BaseSampler | None = None,
        log_steps: bool = False,
        log_every: int = 10,
        train_size: float = 0.8,
        search: Search | None = None,
    ) -> None:
        asked = TuneOptions(
            save_name, min_topics, max_topics, storage, n_jobs, max_trials, min_trials, stop_condition, seed,
            tensorboard_logdir, model_dir, log_steps, log_every, train_size, search,
        )  # fmt: skip
        asked.check()
        self.model, self.save_name, self.storage, self.n_jobs = model, save_name, storage, int(n_jobs)
        self.pruner, self.sampler = pruner, sampler
        self.min_topics, self.max_topics = min_topics, max_topics
        self._origin: Origin | None = None
        given = {k: v for k, v in model.given.items() if k not in BY_TRIAL}
        self._plan = Plan(
            n_samples=model.n_samples, n_features=model.n_features, given=given,
            space=asked.space(model.get_params()),
            min_trials=int(min_trials), max_trials=int(max_trials), stop_condition=int(stop_condition),
            seed=int(seed), train_size=train_size, digest="", log_steps=bool(log_steps), log_every=int(log_every),
            model_dir=str(_folder(model_dir, save_name)),
            tensorboard_logdir=str(_folder(tensorboard_logdir, save_name)),
        )  # fmt: skip

    # --- the study ------------------------------------------------------------------------------

    @classmethod
    def load(cls, *, model: TopicModel, save_name: str, storage: Storage = SQLITE) -> BayesianTuner:
        """Load a tuning run from its storage.

        Raises
        ------
        TuningError
            If there is no such run.
        """
        opened = storages.open_storage(storage)
        plan = Plan.of(workers.load_study(opened, save_name))
        topics = plan.space["num_topics"]
        tuner = cls(
            model=model, save_name="loaded", storage=storage, min_topics=int(topics.low),
            max_topics=int(topics.high), max_trials=plan.max_trials, min_trials=plan.min_trials,
            stop_condition=plan.stop_condition, seed=plan.seed, log_steps=plan.log_steps, log_every=plan.log_every,
            train_size=plan.train_size,
        )  # fmt: skip
        # Its name may be one that no new study is given.
        tuner.save_name, tuner._plan, tuner._opened = save_name, plan, opened
        return tuner

    @cached_property
    def study(self) -> optuna.Study:
        """The study in its storage."""
        return workers.open_study(
            self._opened, self.save_name, self.model.num_epochs, self._plan.seed, self.n_jobs, self.sampler, self.pruner
        )

    @cached_property
    def _opened(self) -> optuna.storages.BaseStorage:
        return storages.open_storage(self.storage)

    @property
    def trial_attrs(self) -> list[dict[str, Any]]:
        """Number, state, score, parameters and attributes of each trial."""
        return [attributes(t) for t in trials_of(self.study)]

    def purge(self, *, dead_only: bool = False) -> list[int]:
        """Change the state of RUNNING trials to FAILED; return their numbers.

        Trials of a tuning that was killed stay RUNNING for ever. `fit` recognises them by itself; this is for those
        who look at the study meanwhile.

        Parameters
        ----------
        dead_only
            Leave those whose process is not proven gone, or silent for a minute.
        """
        study, opened, purged = self.study, self._opened, []
        if dead_only:
            return fail_dead(study, opened)
        for trial in trials_of(study, [TrialState.RUNNING]):
            why = {"type": "Purged", "message": f"purged while its process was {standing(trial)}"}
            if patiently(lambda t=trial, w=why: fail(study, opened, t, w)):  # type: ignore[misc]
                purged.append(trial.number)
        return purged

    def stop(self) -> None:
        """Ask every worker of the study, wherever it runs, to stop at its next step; `fit` goes on later."""
        patiently(lambda: self.study.set_user_attr("stop", True))

    def pause(self, paused: bool = True) -> None:
        """Ask every worker of the study to begin no further trial, or, with False, to go on."""
        patiently(lambda: self.study.set_user_attr("pause", paused))

    # --- tuning ---------------------------------------------------------------------------------

    def fit(self, train: Data, test: Data | None = None, *, executor: Executor | None = None) -> TopicModel:
        """Tune, or go on with a tuning that was interrupted.

        Parameters
        ----------
        train
            AnnData, a path as `mira_core.data.open_data` takes it, or of a folder that `write_ondisk_dataset` wrote.
        test
            Cells to score by; None: part of `train`, as `train_size` says, in proportion within every combination of
            covariates.
        executor
            Where trials are to run, `n_jobs` at a time: anything with ``submit``, such as
            ``dask.distributed.Client(...).get_executor()``. Its processes must see the same files and storage.
            None: processes of this machine.

        Returns
        -------
        TopicModel
            The best model.

        Raises
        ------
        TuningError
            If the study was begun with another model, search or data; if its storage is away for long; or if all
            trials fail.
        """
        self._run(*self._begin(train, test, executor), executor)
        self._warn_of_ends()
        return self.fetch_best_weights()

    def _begin(self, train: Data, test: Data | None = None, executor: Executor | None = None) -> tuple[Cells, Cells]:
        """Read the data, and write into the study what its workers must know; return training and held-out cells."""
        cells, held_out = read_cells(self.model, train, test, self._plan)
        study = self.study
        before = Plan.of(study) if patiently(lambda: study.user_attrs).get("plan") else self._plan
        origin = self._origin or origin_of(train) or Origin(before.data, before.recipe)
        # where the data are on the disk is for workers that are started by hand
        plan = replace(self._plan, digest=digest(cells, held_out), train=before.train, test=before.test,
                       owner=before.owner or this_user(), **origin._asdict())  # fmt: skip
        self._agree(plan)
        if not self._is_here(executor):
            plan = replace(plan, train=str(self._on_disk(train, "train", plan)),
                           test=None if test is None else str(self._on_disk(test, "test", plan)))  # fmt: skip
        patiently(lambda: study.set_user_attr("plan", plan.to_dict()))
        for flag in ("stop", "pause"):
            patiently(lambda f=flag: study.set_user_attr(f, False))  # type: ignore[misc]
        self._plan = plan
        return cells, held_out

    def _run(
        self, cells: Cells, held_out: Cells, executor: Executor | None = None, quit: threading.Event | None = None
    ) -> str:
        """Run trials until none is wanted, or until `quit` is set, which stops the study; return why it ended."""
        study = self.study
        with Table(study, self._plan, self.model.num_epochs) as table:
            if self._is_here(executor):
                worker = Worker(study, self._opened, cells, held_out)
                worker.quit = quit or worker.quit
                why = worker.run()
            else:
                team = workers.Team(
                    study, self._opened, self._plan, self.storage, self.n_jobs, self.sampler, self.pruner
                )
                why = team.run_in(executor) if executor else team.run_processes(quit)
            if quit is not None and quit.is_set():
                self.stop()  # for those who joined
        table.say(why)
        return why

    def _is_here(self, executor: Executor | None) -> bool:
        return self.n_jobs == 1 and executor is None

    def _agree(self, plan: Plan) -> None:
        """Raise if the study was begun otherwise."""
        if not patiently(lambda: self.study.user_attrs).get("plan"):
            return
        before, now = Plan.of(self.study).to_dict(), plan.to_dict()
        free = {*BUDGET, "model_dir", "tensorboard_logdir", "log_steps", "log_every", "train", "test", *TOLD}
        if differ := [k for k in now if k not in free and before[k] != now[k]]:
            what = "; ".join(f"{k} was {before[k]!r} and is {now[k]!r}" for k in differ)
            raise TuningError(
                f"the study {self.save_name!r} was begun otherwise: {what[:600]}. Choose another save_name, or give "
                "what it was begun with"
            )

    def _on_disk(self, data: Data, part: str, plan: Plan) -> Path:
        """Return a folder from which other processes read the data; write it where there is none."""
        if isinstance(data, OnDiskDataset) and data.rows is None:
            return data.path.resolve()
        if isinstance(data, OnDiskDataset):
            raise OptionError("processes cannot share a view of a folder; give the folder, or write the part to one")
        if is_ondisk(data):
            return Path(data).resolve()
        folder = plan.cells(part)
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            self.model.write_ondisk_dataset(data, folder)
        return folder

    def _warn_of_ends(self) -> None:
        best = best_of(trials_of(self.study))
        if best is not None and (warning := end_warning(best, (self.min_topics, self.max_topics))):
            warnings.warn(warning, stacklevel=3)

    # --- models ---------------------------------------------------------------------------------

    def fetch_weights(self, trial_num: int) -> TopicModel:
        """Fetch the model of a trial from the disk.

        Raises
        ------
        ValueError
            If the trial does not exist.
        KeyError
            If it did not finish: it was pruned, failed, or is running.
        """
        found = {t.number: t for t in trials_of(self.study)}
        if trial_num not in found:
            have = f"0 to {max(found)}" if found else "none"
            raise ValueError(f"there is no trial {trial_num}; there are {have}")
        state = found[trial_num].state
        if state != TrialState.COMPLETE:
            raise KeyError(f"trial {trial_num} did not finish: it is {state.name}, and only COMPLETE ones are kept")
        return load_model(found[trial_num].user_attrs["weights"])

    def fetch_best_weights(self) -> TopicModel:
        """Fetch the best model from the disk.

        Raises
        ------
        ValueError
            If no trial has been completed.
        """
        best = best_of(trials_of(self.study))
        if best is None:
            states = [t.state.name for t in trials_of(self.study)]
            raise ValueError(f"no trial has been completed; {len(states)} have begun")
        return self.fetch_weights(best.number)

    def summary(self) -> Summary:
        """Return the evidence for the number of topics: what else would do, and whether topics come again.

        Raises
        ------
        ValueError
            If no trial has been completed.
        """
        completed = trials_of(self.study, [TrialState.COMPLETE])
        if not completed:
            raise ValueError("no trial has been completed, so there is nothing to sum up")
        models = {}
        for trial in sorted(completed, key=lambda t: (t.value, t.number))[:COMPARED]:
            with contextlib.suppress(MiraError, OSError, KeyError):  # its file may have been moved away
                models[trial.number] = self.fetch_weights(trial.number)
        return summarise(self.save_name, completed, models, (self.min_topics, self.max_topics))

    # --- figures --------------------------------------------------------------------------------

    def plot_intermediate_values(self, palette: str = "Spectral_r", hue: str = "value", ax: Any = None,
                                 figsize: tuple[float, float] = (10, 7), log_hue: bool = False,
                                 na_color: str = "lightgrey", add_legend: bool = True, vmax: float | None = None,
                                 vmin: float | None = None, **plot_kwargs: Any) -> Any:  # fmt: skip
        """Draw the score of every trial at each epoch.

        Parameters
        ----------
        palette
            Colours, by matplotlib's name.
        hue
            Attribute to colour trials by; see `trial_attrs`.
        ax, figsize
            Axes to draw on, or the size of new ones.
        log_hue
            Whether to colour by the attribute's logarithm.
        na_color
            Of trials without the attribute.
        add_legend
            Whether to explain the colours.
        vmax, vmin
            Ends of the colours.
        **plot_kwargs
            For matplotlib's ``plot``.

        Returns
        -------
        matplotlib.axes.Axes
        """
        from ..plots.trials import plot_intermediate_values

        return plot_intermediate_values(
            self.trial_attrs, self._scores(), palette=palette, hue=hue, ax=ax, figsize=figsize, log_hue=log_hue,
            na_color=na_color, add_legend=add_legend, vmax=vmax, vmin=vmin, **plot_kwargs,
        )  # fmt: skip

    def plot_pareto_front(self, x: str = "num_topics", y: str = "elbo", hue: str = "number", ax: Any = None,
                          figsize: tuple[float, float] = (7, 7), palette: str = "Blues",
                          na_color: str = "lightgrey", size: float = 100, alpha: float = 0.8,
                          add_legend: bool = True, label_pareto_front: bool = False,
                          include_pruned_trials: bool = True) -> Any:  # fmt: skip
        """Draw one attribute of the trials against another.

        Parameters
        ----------
        x, y, hue
            Attributes, see `trial_attrs`; ``"elbo"`` and ``"value"`` are the score.
        ax, figsize
            Axes to draw on, or the size of new ones.
        palette, na_color
            Colours, and that of trials without the attribute.
        size, alpha
            Of the points.
        add_legend
            Whether to explain the colours.
        label_pareto_front
            Whether to number only the trials on the Pareto front of distortion and rate, the best ones.
        include_pruned_trials
            Whether to draw them.

        Returns
        -------
        matplotlib.axes.Axes
        """
        from ..plots.trials import plot_pareto_front

        return plot_pareto_front(
            self.trial_attrs, x=x, y=y, hue=hue, ax=ax, figsize=figsize, palette=palette, na_color=na_color,
            size=size, alpha=alpha, add_legend=add_legend, label_pareto_front=label_pareto_front,
            include_pruned_trials=include_pruned_trials,
        )  # fmt: skip

    def plot_history(self, ax: Any = None, figsize: tuple[float, float] = (10, 4), add_legend: bool = True) -> Any:
        """Draw the loss of each trial in the order in which they began, and the best so far.

        Trials without a loss, such as those that run, are drawn where they were last.

        Parameters
        ----------
        ax, figsize
            Axes to draw on, or the size of new ones.
        add_legend
            Whether to explain the marks.

        Returns
        -------
        matplotlib.axes.Axes
        """
        from ..plots.trials import plot_history

        return plot_history(self.trial_attrs, self._scores(), ax=ax, figsize=figsize, add_legend=add_legend)

    def plot_topic_counts(self, ax: Any = None, figsize: tuple[float, float] = (10, 4),
                          add_legend: bool = True) -> Any:  # fmt: skip
        """Draw the loss of each trial by its number of topics, and the medians of the completed ones.

        Parameters and returns are those of `plot_history`.
        """
        from ..plots.trials import plot_topic_counts

        return plot_topic_counts(self.trial_attrs, self._scores(), ax=ax, figsize=figsize, add_legend=add_legend)

    def plot_parallel_coordinates(self, names: list[str] | None = None, hue: str = "value", ax: Any = None,
                                  figsize: tuple[float, float] = (10, 5), palette: str = "Spectral_r",
                                  na_color: str = "lightgrey", add_legend: bool = True, vmax: float | None = None,
                                  vmin: float | None = None, **plot_kwargs: Any) -> Any:  # fmt: skip
        """Draw each trial as a line through one axis for each parameter and outcome.

        Parameters
        ----------
        names
            Attributes with an axis, in this order; None: what was searched, distortion, rate and the score.
        hue, palette, na_color, vmax, vmin
            As in `plot_intermediate_values`.
        ax, figsize
            Axes to draw on, or the size of new ones.
        add_legend
            Whether to explain the colours.
        **plot_kwargs
            For matplotlib's ``plot``.

        Returns
        -------
        matplotlib.axes.Axes
        """
        from ..plots.trials import plot_parallel_coordinates

        return plot_parallel_coordinates(
            self.trial_attrs, names=names, hue=hue, ax=ax, figsize=figsize, palette=palette, na_color=na_color,
            add_legend=add_legend, vmax=vmax, vmin=vmin, **plot_kwargs,
        )  # fmt: skip

    def plot_importance(self, ax: Any = None, figsize: tuple[float, float] = (7, 3)) -> Any:
        """Draw how much of the variance of the loss each parameter explains, by fANOVA of the completed trials.

        With fewer than 8 of these, or where nothing varies, the figure says so. Pruned trials do not count, and as
        they were the worse ones, this is about what still mattered among those that were let through.

        Parameters
        ----------
        ax, figsize
            Axes to draw on, or the size of new ones.

        Returns
        -------
        matplotlib.axes.Axes
        """
        from ..plots.trials import plot_importance

        return plot_importance(trials_of(self.study), ax=ax, figsize=figsize)

    def _scores(self) -> dict[int, dict[int, float]]:
        return {t.number: t.intermediate_values for t in trials_of(self.study)}


def _folder(root: str | Path, save_name: str) -> Path:
    """Return the study's folder under a root, which it cannot leave."""
    return Path(root).resolve().joinpath(*parts_of(save_name))
