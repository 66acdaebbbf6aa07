"""The studies of the storage as one person sees them: begun, steered, gone on with, looked into. Knows no widgets."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import optuna
import pandas as pd
from optuna.trial import TrialState

from mira_core import jobs
from mira_core.data import Recipe, formats
from mira_core.data.demo import DEMO
from mira_core.errors import MiraError, TuningError
from mira_core.plots.trials_info import ImportanceInfo, importance_info
from mira_core.tuning.reading import Reading, list_studies
from mira_core.tuning.storage import patiently
from mira_core.tuning.study import trials_of
from mira_core.tuning.summary import COMPARED, Summary, compare, summarise
from mira_core.tuning.tune_options import TuneOptions, check_name, parts_of

from .study_readings import Row, StudyReadings
from .workspace import Workspace

if TYPE_CHECKING:
    from mira_core.topics import TopicModel

T = TypeVar("T")


class Studies:
    """The studies that one person sees; whatever they ask for is checked against their role here.

    A study that was begun by a job of this workspace belongs to whom the job does; one that was begun elsewhere, by
    whoever can reach the storage, is for all to see, and to steer for all who run jobs.

    Parameters
    ----------
    workspace
        Of the person.
    readings
        What is read for all.
    """

    def __init__(self, workspace: Workspace, readings: StudyReadings | None = None) -> None:
        self.workspace, self.url = workspace, workspace.settings.storage
        self.readings = readings or StudyReadings(workspace)

    def seen_by(self, workspace: Workspace) -> Studies:
        """Return the same studies, as the person of a workspace sees them."""
        return Studies(workspace, self.readings)

    # --- whose a study is ---------------------------------------------------------------------------

    def sees(self, name: str) -> bool:
        """Tell whether this person may see a study."""
        return self.workspace.person.may("admin") or self._sees(*self.readings.begun().get(name, ("", None)))

    def _sees(self, owner: str, job: str | None) -> bool:
        return self.workspace.person.may("viewer") if job is None else self.workspace.sees(job, owner)

    def _must_see(self, name: str) -> None:
        if not self.sees(name):
            raise TuningError(f"there is no study {name!r} in the storage, or it is not shared with you")

    @contextlib.contextmanager
    def _changing(self, action: str, name: str) -> Iterator[None]:
        """Do something to a study, if it is this person's to change."""
        self._must_see(name)
        with self.workspace.audit.of(self.workspace.person, f"study: {action}", name):
            owner, job = self.readings.begun().get(name, ("", None))
            if job is None:
                self.workspace.person.must_be("user")
            else:
                self.workspace.person.must_own(owner)
            yield

    # --- reading ------------------------------------------------------------------------------------

    def follow(self, name: str, document: Any, listener: Callable[..., None]) -> Callable[[], None]:
        """Tell `listener` of a study whenever something is new, see `StudyReadings.follow`.

        Raises
        ------
        TuningError
            If this person may not see it.
        """
        self._must_see(name)
        return self.readings.follow(name, document, listener)

    def read_ahead(self, name: str) -> None:
        """Read a study that somebody is about to follow, while their page is on its way."""
        self.readings.read_ahead(name)

    def known(self, name: str) -> Reading | None:
        """Return what was read last, None if nothing was."""
        return self.readings.known(name) if self.sees(name) else None

    def follow_list(self, document: Any, listener: Callable[..., None]) -> Callable[[], None]:
        """Tell `listener` of the studies, a list of `Row` or None and what is wrong, as they change."""

        def told(rows: list[Row] | None, problem: str) -> None:
            listener(None if rows is None else [row for row in rows if self._sees(row.person, row.job)], problem)

        return self.readings.follow_list(document, told)

    def id_of(self, name: str) -> int:
        """Return the number by which optuna-dashboard knows a study."""
        return int(self.readings.opened.get_study_id_from_name(name))

    # --- what people ask of a study ---------------------------------------------------------------

    def ask(self, name: str, action: Callable[..., T], *arguments: Any) -> T:
        """Do something of `mira_core.tuning.control` to a study; it may take as long as the storage does.

        Raises
        ------
        MiraError
        """
        with self._changing(action.__name__, name):
            try:
                study = patiently(lambda: optuna.load_study(study_name=name, storage=self.readings.opened), 5.0)
            except KeyError:
                raise TuningError(f"there is no study {name!r} in the storage; it may have been deleted") from None
            return action(study, *arguments)

    # --- jobs ---------------------------------------------------------------------------------------

    def begin(
        self, source: str, model: Mapping[str, Any], tune: Mapping[str, Any], recipe: Recipe | None = None
    ) -> str:
        """Begin a study as a process of its own, which outlives this server; return the job's key.

        Parameters
        ----------
        source, model, recipe
            Key of the data, options, what is done to the cells.
        tune
            Arguments of `BayesianTuner`, by name; ``study`` names it.

        Raises
        ------
        MiraError
            If the study could not be begun so.
        """
        name, me = tune["study"], self.workspace.person.name
        known = any(line.name == name for line in list_studies(self.readings.opened))
        # What is not in the storage yet, or any more, is still whose job began it.
        if known or self.readings.begun().get(name, (me, ""))[0] != me:
            raise TuningError(f"there is a study {name!r} already; choose another name, or go on with that one")
        logs = self._models.with_name("logs")
        places = {"model_dir": str(self._models), "tensorboard_logdir": str(logs)}
        asked = {"storage": self.url, **places, **tune}
        return self._submit(self.workspace.data.data_of(source), model, name, asked, recipe)

    def _submit(self, data: str, model: Mapping[str, Any], name: str, tune: Mapping[str, Any], recipe: Any) -> str:
        check_name(tune["study"])
        # Of two who ask at once, here or at another server, one is first; a study is in the storage only later.
        with self.workspace.dispatcher._changes:
            if self.readings.is_run_here(tune["study"], ("waiting", "running", "silent")):
                raise TuningError(f"the study {tune['study']!r} is run already, or waits to be")
            return self.workspace._submit(data, model, name, kind="tune", tune=tune, recipe=recipe)

    def go_on(self, name: str, **changes: Any) -> str:
        """Go on with a study that has ended, perhaps with a larger budget or more jobs; return the job's key.

        Raises
        ------
        MiraError
            If it runs, or its data cannot be had here.
        """
        with self._changing("go on", name):
            return self._go_on(name, changes)

    def _go_on(self, name: str, changes: Mapping[str, Any]) -> str:
        key = self.readings.job_of(name)
        if key is not None:
            spec = jobs.read_spec(self.readings.workspace.folder_of(key))  # an admin's perhaps, who went on with it
            tune = {**spec["tune"], **changes}
            return self._submit(spec["data"], spec["model"], spec["name"], tune, spec.get("recipe"))
        plan = self.readings.read(name).plan
        if plan is None or plan.data is None:
            raise TuningError(
                f"the study {name!r} was begun elsewhere, with cells that were in the memory there; call fit of the "
                "same BayesianTuner again, which goes on with it"
            )
        if not plan.data.startswith(DEMO):
            self._confined(formats.split_part(plan.data)[0], "the data")
        tune = TuneOptions.of_plan(name, plan, self.url).to_dict() | changes
        return self._submit(plan.data, plan.given, name, tune, plan.recipe)

    def delete(self, name: str) -> None:
        """Delete a study that does not run here: its trials, their models, and the jobs that ran it.

        Raises
        ------
        MiraError
            If it runs, a model of it is needed, or it is somebody else's.
        """
        with self._changing("delete", name):
            jobs_of = self.readings.jobs_of(name)
            if not jobs_of:  # it was begun elsewhere: everybody's, to look at and to steer
                self.workspace.person.must_be("admin")
            if self.readings.is_run_here(name):
                raise TuningError(f"the study {name!r} is run now; stop it before it is deleted")
            predicted = (spec["predict"] for _, spec in self.readings.workspace.specs("predict"))
            needed = sorted({p["trial"] for p in predicted if p.get("study") == name})
            if needed:
                raise TuningError(
                    f"the study {name!r} cannot be deleted: the topics of its trials {', '.join(map(str, needed))} are "
                    "on cells. Delete those jobs first"
                )
            # A storage that is away may have it; without its jobs it would be everybody's.
            names = {line.name for line in list_studies(self.readings.opened)}
            if name in names:
                reading = self.readings.read(name)
                with contextlib.suppress(KeyError):  # somebody else was quicker
                    patiently(lambda: optuna.delete_study(study_name=name, storage=self.readings.opened), 5.0)
                self._delete_models(reading, names - {name})
            for key in jobs_of:
                self.workspace.discard(key)

    def _delete_models(self, reading: Reading, others: Iterable[str]) -> None:
        """Delete the files of a study, below whose folder, or in it, there may be those of others."""
        plan = reading.plan
        if plan is None:
            return
        folder, root = Path(plan.model_dir).resolve(), self._models.resolve()
        if not folder.is_relative_to(root) or parts_of(reading.name) in map(parts_of, others):
            return
        for path in (*map(plan.weights, reading.stories), *folder.glob(".*.safetensors.*.part")):
            with contextlib.suppress(OSError):
                path.unlink()
        for cells in map(plan.cells, ("train", "test")):
            for path in (cells, *folder.glob(f".{cells.name}.*.part*")):
                shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # the first that something is left in
            while folder != root:
                folder.rmdir()
                folder = folder.parent

    def share(self, name: str, people: Sequence[str]) -> None:
        """Let others see a study, and no others any more.

        Raises
        ------
        MiraError
            If it was not begun here, or is somebody else's.
        """
        with self._changing("share", name):
            # Whose study it is may share all its runs, those of admins who went on with it too.
            whole = self.workspace.seen_by(lambda: replace(self.workspace.person, role="admin"))
            for key in self.readings.jobs_of(name):
                whole.share(key, people)

    @property
    def _models(self) -> Path:
        return self.workspace.settings.workspace / "studies" / "models"

    def _confined(self, path: Path, what: str) -> None:
        """Refuse a file that a study names and that somebody with an account may not open by themselves."""
        person = self.workspace.person
        if not person.name or person.may("admin"):
            return
        own = (*self.workspace.data.folders, self._models)
        if not any(path.resolve().is_relative_to(folder.resolve()) for folder in own):
            raise TuningError(
                f"{what} of this study lies outside of the folders that are open to you; ask an admin of this server"
            )

    def log(self, name: str, number: int) -> str:
        """Return what the workers of this server said of a trial, empty if they said nothing."""
        key = self.readings.job_of(name)
        if key is None:
            return ""
        try:
            lines = (self.readings.workspace.folder_of(key) / "log.txt").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(line for line in lines if f"trial {number} " in line or f"trial {number}:" in line)

    # --- models ---------------------------------------------------------------------------------------

    def weights(self, reading: Reading, number: int) -> Path:
        """Return the file of a trial's model.

        Raises
        ------
        TuningError
            If it has none, or none that can be seen from here.
        """
        trial = reading.of(number)
        if trial is None or trial["state"] != TrialState.COMPLETE.name:
            state = "there is none" if trial is None else f"it is {trial['state']}"
            raise TuningError(f"only COMPLETE trials have a model; of trial {number}, {state}")
        path = Path(str(reading.story(number).get("weights", "")))
        if path.suffix != ".safetensors" or not path.is_file():
            host = (reading.story(number).get("process") or {}).get("host", "another machine")
            raise TuningError(f"the model of trial {number} is not here: {host} keeps it at {path}")
        self._confined(path, f"the model of trial {number}")
        return path

    def model(self, reading: Reading, number: int) -> TopicModel:
        """Return a trial's model; raises as `weights` does."""
        path = self.weights(reading, number)
        return _model(path, path.stat().st_mtime_ns)

    def summary(self, reading: Reading) -> Summary | None:
        """Return the evidence for the number of topics, None as long as no trial is completed."""
        shown = (t for number, t in reading.stories.items() if number not in reading.hidden)
        completed = [t for t in shown if t.state == TrialState.COMPLETE]
        if not completed or reading.plan is None:
            return None
        models = {}
        for trial in sorted(completed, key=lambda t: (t.value, t.number))[:COMPARED]:
            try:
                models[trial.number] = self.model(reading, trial.number)
            except MiraError:
                continue  # which the summary says
        topics = reading.plan.space["num_topics"]
        return summarise(reading.name, completed, models, (int(topics.low), int(topics.high)))

    def importance(self, reading: Reading) -> ImportanceInfo:
        """Return how much each parameter matters for the loss; see `mira_core.plots.importance_info`."""
        return importance_info(trials_of(self.readings.study_of(reading.name)))

    def compare(self, reading: Reading, pinned: int, other: int) -> pd.DataFrame:
        """Match the topics of two trials' models."""
        return compare(self.model(reading, pinned), self.model(reading, other))

    def topics_on_cells(self, reading: Reading, number: int, source: str = "") -> str:
        """Return the key of a job that infers the topics of a trial's model, begun if there is none.

        Parameters
        ----------
        reading, number
            The trial.
        source
            Key of the data, where the study does not know its own.

        Raises
        ------
        MiraError
            If the model is not here, or there are no data for it.
        """
        path = self.weights(reading, number)
        plan = reading.plan
        data, recipe = (plan.data, plan.recipe) if plan is not None else (None, None)
        if data is not None and self.readings.job_of(reading.name) is None and not data.startswith(DEMO):
            self._confined(formats.split_part(data)[0], "the data")
        if data is None:
            if not source:
                raise TuningError(
                    "this study does not say where its cells are, as they were in memory or no BayesianTuner made it; "
                    "choose their file on the Data page, and open the trial again"
                )
            data, recipe = self.workspace.data.data_of(source), None
        predict = {"model": str(path), "study": reading.name, "trial": number}
        for key, spec in self.workspace.specs("predict"):
            status = jobs.read_status(self.workspace.folder_of(key))
            same = spec.get("predict") == predict and spec["data"] == data
            if same and status.state in ("waiting", "running", "finished"):
                return key
        name = f"{reading.name} · trial {number}"
        return self.workspace._submit(data, {}, name, kind="predict", predict=predict, recipe=recipe)


@functools.lru_cache(maxsize=8)
def _model(path: Path, modified: int) -> TopicModel:
    from mira_core.topics import load_model  # with torch: once a model is looked at

    return load_model(path)
