"""Studies of the storage: listed, read while they run, begun, gone on with. Knows no widgets."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import optuna
import pandas as pd
from optuna.trial import TrialState

from mira_core import jobs
from mira_core.data import Recipe
from mira_core.data.demo import DEMO
from mira_core.errors import MiraError, TuningError
from mira_core.plots.trials_info import ImportanceInfo, importance_info
from mira_core.tuning import storage as storages
from mira_core.tuning.reading import Reading, StudyLine, StudyReader, list_studies
from mira_core.tuning.storage import patiently
from mira_core.tuning.study import trials_of
from mira_core.tuning.summary import COMPARED, Summary, compare, summarise
from mira_core.tuning.tune_options import TuneOptions

from .hub import Followed, Hub
from .workspace import Workspace

if TYPE_CHECKING:
    from mira_core.topics import TopicModel

T = TypeVar("T")
SELDOM = 2.0  # seconds between two looks at the list
COUNTED = 40  # studies, the newest, whose trials are read for the list
AT_ONCE = 0.5  # seconds of reading, after which what is known is told
BESIDES = 0.05  # seconds for studies that nothing happened to when they were read last


@dataclass(frozen=True)
class Row:
    """A study, as the list shows it."""

    name: str
    study_id: int
    ours: bool
    state: str
    n_trials: int
    counts: Mapping[str, int]
    best_value: float | None
    best_topics: int | None
    data: str
    owner: str


@dataclass(eq=False)
class _Study(Followed):
    """One study, read again and again."""

    studies: Studies = None  # type: ignore[assignment]
    name: str = ""
    reading: Reading | None = None
    problem: str = ""
    job: jobs.Status | None = None
    key_of_job: str | None = None
    next: float = 0.0

    def read(self) -> bool:
        before = self.reading, self.problem, self.job and (self.job.state, self.job.stage)
        if time.monotonic() > self.next:
            self.key_of_job, self.next = self.studies.job_of(self.name), time.monotonic() + SELDOM
        if self.key_of_job is not None:
            self.job = jobs.read_status(self.studies.workspace.jobs_folder / self.key_of_job)
        try:
            self.reading, self.problem = self.studies.read(self.name), ""
        except MiraError as problem:
            self.problem = str(problem)
        now = self.problem, self.job and (self.job.state, self.job.stage)
        return self.reading is not before[0] or now != before[1:]

    def told(self) -> tuple[Any, ...]:
        return self.reading, self.problem, self.job


@dataclass(eq=False)
class _List(Followed):
    """All studies. What takes long to read comes later."""

    studies: Studies = None  # type: ignore[assignment]
    rows: list[Row] | None = None
    problem: str = ""
    next: float = 0.0
    due: list[str] = field(default_factory=list)  # studies whose trials are yet to be read

    def read(self) -> bool:
        if time.monotonic() < self.next and not self.due:
            return False
        before = self.rows, self.problem
        try:
            self.rows, self.due = self.studies.rows(), self.studies.unread()
            self.problem = ""
        except MiraError as problem:
            self.problem, self.due = str(problem), []
        self.next = time.monotonic() + SELDOM
        return (self.rows, self.problem) != before

    def told(self) -> tuple[Any, ...]:
        return self.rows, self.problem


class Studies:
    """The studies of one storage, for all sessions of this process.

    Reading is done by a hub of its own, as a storage may be far away, and must hold up nobody who watches a run.

    Parameters
    ----------
    workspace
        Whose settings name the storage, and where jobs are.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.url = workspace, workspace.settings.storage
        self.hub = Hub()
        self._lock = threading.Lock()
        self._opened: optuna.storages.BaseStorage | None = None
        self._readers: dict[str, StudyReader] = {}
        self._readings: dict[str, Reading] = {}
        self._lines: list[StudyLine] = []
        self._turn = 0  # which of the quiet studies is read next

    # --- reading --------------------------------------------------------------------------------

    @property
    def opened(self) -> optuna.storages.BaseStorage:
        """The storage.

        Raises
        ------
        TuningError
            If it is away.
        """
        with self._lock:
            if self._opened is None:
                self._opened = storages.open_storage(self.url)
            return self._opened

    def follow(self, name: str, document: Any, listener: Callable[..., None]) -> Callable[[], None]:
        """Tell `listener` of a study whenever something is new.

        Of its `Reading`, or None; what is wrong; and the status of the newest job that runs it here, or None.

        Returns
        -------
        callable
            Ends it.
        """
        return self.hub.follow_new(_Study(("study", name), studies=self, name=name), document, listener)

    def read_ahead(self, name: str) -> None:
        """Read a study that somebody is about to follow, while their page is on its way."""
        self.hub.read_new(_Study(("study", name), studies=self, name=name))

    def follow_list(self, document: Any, listener: Callable[..., None]) -> Callable[[], None]:
        """Tell `listener` of all studies, a list of `Row` or None and what is wrong, as they change."""
        return self.hub.follow_new(_List(("studies",), studies=self), document, listener)

    def read(self, name: str) -> Reading:
        """Read a study; of what was read before, only what is new.

        Raises
        ------
        TuningError
            If there is none of this name, or the storage is away.
        """
        if name not in self._readers:
            self._readers[name] = StudyReader(self.opened, name)
        try:
            self._readings[name] = self._readers[name].read()
        except TuningError:
            self._readers.pop(name, None)  # it may come again, as another one
            raise
        return self._readings[name]

    def known(self, name: str) -> Reading | None:
        """Return what was read last, None if nothing was."""
        return self._readings.get(name)

    def rows(self) -> list[Row]:
        """List the studies; trials are read for a short while at most: of those that are new or live, then others."""
        self._lines = list_studies(self.opened)
        names = [line.name for line in self._lines]
        for gone in self._readers.keys() - set(names):
            self._readers.pop(gone), self._readings.pop(gone, None)
        live = [n for n, r in self._readings.items() if r.running or r.waiting]
        quiet = [n for n in names[:COUNTED] if n in self._readings and n not in live]
        began = time.monotonic()
        for name in [*live, *self.unread(), *quiet[self._turn :], *quiet[: self._turn]]:
            took = time.monotonic() - began
            if took > AT_ONCE or (name in quiet and took > BESIDES):
                break
            self.read(name)
            self._turn += name in quiet
        self._turn %= max(1, len(quiet))
        return [self._row(line) for line in self._lines]

    def unread(self) -> list[str]:
        """Return the names of the newest studies that were never read."""
        return [line.name for line in self._lines[:COUNTED] if line.name not in self._readings]

    def _row(self, line: StudyLine) -> Row:
        known = self._readings.get(line.name)
        if known is None:
            return Row(line.name, line.study_id, line.ours, "…", 0, {}, None, None, "", "")
        best = known.of(known.best) if known.best is not None else None
        topics = best.get("num_topics") if best else None
        plan = known.plan
        return Row(
            line.name, line.study_id, line.ours, known.state, len(known.trials), dict(known.counts),
            best["value"] if best else None, None if topics is None else int(topics),
            _data_label(plan.data if plan else None), (plan.owner if plan else None) or "",
        )  # fmt: skip

    def id_of(self, name: str) -> int:
        """Return the number by which optuna-dashboard knows a study."""
        return int(self.opened.get_study_id_from_name(name))

    # --- what people ask of a study ---------------------------------------------------------------

    def ask(self, name: str, action: Callable[..., T], *arguments: Any) -> T:
        """Do something of `mira_core.tuning.control` to a study; it may take as long as the storage does.

        Raises
        ------
        MiraError
        """
        try:
            study = patiently(lambda: optuna.load_study(study_name=name, storage=self.opened), 5.0)
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
        if any(line.name == tune["study"] for line in list_studies(self.opened)):
            raise TuningError(
                f"there is a study {tune['study']!r} already; choose another name, or go on with that one"
            )
        folder = self.workspace.settings.workspace / "studies"
        places = {"model_dir": str(folder / "models"), "tensorboard_logdir": str(folder / "logs")}
        return self.workspace.submit(
            source, model, tune["study"], kind="tune", recipe=recipe,
            tune={"storage": self.url, **places, **tune},
        )  # fmt: skip

    def job_of(self, name: str) -> str | None:
        """Return the key of the newest job that runs a study here, None if there is none."""
        return next((key for key, spec in self.workspace.specs("tune") if spec["tune"].get("study") == name), None)

    def is_run_here(self, name: str) -> bool:
        """Tell whether a job of this server runs a study now."""
        key = self.job_of(name)
        return key is not None and jobs.read_status(self.workspace.folder_of(key)).state in ("waiting", "running")

    def go_on(self, name: str, **changes: Any) -> str:
        """Go on with a study that has ended, perhaps with a larger budget or more jobs; return the job's key.

        Raises
        ------
        MiraError
            If it runs, or its data cannot be had here.
        """
        if self.is_run_here(name):
            raise TuningError(f"the study {name!r} is run already")
        key = self.job_of(name)
        if key is not None:
            spec = jobs.read_spec(self.workspace.folder_of(key))
            tune = {**spec["tune"], **changes}
            return self.workspace._submit(
                spec["data"], spec["model"], spec["name"], kind="tune", tune=tune, recipe=spec.get("recipe")
            )
        plan = self.read(name).plan
        if plan is None or plan.data is None:
            raise TuningError(
                f"the study {name!r} was begun elsewhere, with cells that were in the memory there; call fit of the "
                "same BayesianTuner again, which goes on with it"
            )
        tune = TuneOptions.of_plan(name, plan, self.url).to_dict() | changes
        return self.workspace._submit(plan.data, plan.given, name, kind="tune", tune=tune, recipe=plan.recipe)

    def log(self, name: str, number: int) -> str:
        """Return what the workers of this server said of a trial, empty if they said nothing."""
        key = self.job_of(name)
        if key is None:
            return ""
        try:
            lines = (self.workspace.folder_of(key) / "log.txt").read_text(errors="replace").splitlines()
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
        return importance_info(trials_of(self._readers[reading.name].study))

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
        if data is None:
            if not source:
                raise TuningError(
                    "this study does not say where its cells are, as they were in memory or no BayesianTuner made it; "
                    "choose their file on the Data page, and open the trial again"
                )
            data, recipe = self.workspace.data_of(source), None
        predict = {"model": str(path), "study": reading.name, "trial": number}
        for key, spec in self.workspace.specs("predict"):
            status = jobs.read_status(self.workspace.folder_of(key))
            same = spec.get("predict") == predict and spec["data"] == data
            if same and status.state in ("waiting", "running", "finished"):
                return key
        name = f"{reading.name} · trial {number}"
        return self.workspace._submit(data, {}, name, kind="predict", predict=predict, recipe=recipe)


def _data_label(data: str | None) -> str:
    return "" if data is None else data.removeprefix(DEMO) if data.startswith(DEMO) else Path(data).name


@functools.lru_cache(maxsize=8)
def _model(path: Path, modified: int) -> TopicModel:
    from mira_core.topics import load_model  # with torch: once a model is looked at

    return load_model(path)
