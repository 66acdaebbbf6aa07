"""A job is a folder: what to do, what happened so far, and what came of it.

==========================  ========================================================================================
``job.json``                the specification: kind, data, options of the model; written once
``process.json``            host, pid and start time of the process that runs it
``status.json``             state, stage, progress and heartbeat; replaced whole
``records.jsonl``           the records of training or of the test, one JSON object a line, appended
``provenance.json``         of a fit or prediction: versions, threads and processor of each process that computed it,
                            and a digest of the cells
``checkpoint.safetensors``  where a training can be gone on from; a saved model, too
``log.txt``                 what the process printed, if it was started detached
``stop``                    there if somebody asked it to stop
``result/``                 of a fit or prediction ``model.safetensors`` and ``cells.h5ad``, of a range test
                            ``curve.json``, of a tuning ``model.safetensors`` (the best) and ``summary.json``, of a
                            gradient tuning ``contributions.json``
==========================  ========================================================================================

A job of kind ``fit`` trains a model; ``range_test`` finds learning rates for it; ``tune`` and ``gradient_tune`` choose
the number of topics; ``predict`` tells the topics of cells by a model that there is. A fit that was stopped or died
goes on where it was when it is run again, a tuning goes on with its study.

Reading a folder needs nothing but this module, and works while the job runs, after it, and after its death.
"""

from __future__ import annotations

import builtins
import math
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import kinds
from . import options as opt
from .data.demo import DEMO, DEMOS
from .data.formats import join_part, split_part
from .data.recipe import Recipe
from .errors import JobError
from .files import make_folder, parse_json, read_json, write_json
from .kinds import EXTRAS, KINDS
from .processes import SILENT_AFTER, is_alive, this_process

FORMAT = 1
STATES = ("waiting", "running", "silent", "finished", "stopped", "failed", "died")
ENDED = ("finished", "stopped", "failed", "died")
LAST_TIME = 2**37  # seconds since 1970, which calendars still know


def write_spec(
    folder: Path,
    *,
    data: str,
    model: Mapping[str, Any],
    name: str | None = None,
    embedding: bool = True,
    kind: str = "fit",
    test_size: float | None = None,
    learning_rate_curve: Mapping[str, Any] | None = None,
    range_test: Mapping[str, Any] | None = None,
    tune: Mapping[str, Any] | None = None,
    gradient_tune: Mapping[str, Any] | None = None,
    predict: Mapping[str, Any] | None = None,
    recipe: Recipe | Mapping[str, Any] | list[Any] | None = None,
    owner: str | None = None,
) -> None:
    """Create a job's folder.

    Parameters
    ----------
    folder
        Must not exist, or be empty.
    data
        A path as `fit` takes it, or ``"demo:NAME"`` for one of `mira_core.data.demo.DEMOS`.
    model
        Options as for `make_model`; checked here. A tuning's are without those that each trial sets: num_topics,
        decoder_dropout, seed.
    name
        What to call the job; by default the folder's name.
    embedding
        Whether to compute a UMAP of the topics at the end.
    kind
        What it is to do, see `mira_core.kinds`.
    test_size
        Of a fit: share of the cells that are held out of the training, and scored after each epoch.
    learning_rate_curve
        Of a fit: what a range test left in ``result/curve.json``, to be saved with the model.
    range_test
        Of a range test: its options, as of `mira_core.training.range_options.RangeOptions`.
    tune
        Of a tuning: its options, as of `mira_core.tuning.tune_options.TuneOptions`: those of `BayesianTuner`, with
        ``study`` in place of ``save_name``. Where its storage names a password, only the user can enter the folder.
    gradient_tune
        Of a gradient tuning: ``max_attempts`` and ``max_topics``.
    predict
        Of a prediction: ``model``, the path of a saved model, and perhaps ``study`` and ``trial``, where it is from.
    recipe
        Steps from the cells of the file to those of the training: a `mira_core.data.Recipe`, or what its ``to_dict``
        returned.
    owner
        Whose job it is, on a server where people have accounts.

    Raises
    ------
    JobError
        If the folder is in use, the data or the model do not exist, or something does not go with the kind.
    OptionError
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise JobError(f"{folder} must not exist or be empty; choose another folder")
    checked = opt.validate_all(model)
    extras: dict[str, Any] = {
        "test_size": test_size,
        "learning_rate_curve": learning_rate_curve,
        "range_test": range_test,
        "tune": tune,
        "gradient_tune": gradient_tune,
        "predict": predict,
        "recipe": None if recipe is None else Recipe.from_dict(recipe).to_dict(),
    }
    extras = {key: value for key, value in extras.items() if value is not None}
    kinds.check(kind, extras, checked)
    extras = kinds.settle(kind, extras, checked)
    if data.startswith(DEMO):
        if data.removeprefix(DEMO) not in DEMOS:
            raise JobError(f"there is no demo {data!r}; choose one of {', '.join(DEMO + d for d in DEMOS)}")
    else:
        path, part = split_part(data)
        if not os.path.exists(path):  # False, too, for what can be no path
            raise JobError(f"there is no file {data}")
        data = join_part(path.resolve(), part)
    make_folder(folder)
    if kinds.is_secret(extras):
        folder.chmod(0o700)
    spec = {
        "format": FORMAT,
        "kind": kind,
        "name": name or folder.name,
        "created": time.time(),
        "data": data,
        "model": checked,
        "embedding": embedding,
        **({} if owner is None else {"owner": owner}),
        **extras,
    }
    write_json(folder / "job.json", spec)


def read_spec(folder: Path) -> dict[str, Any]:
    """Read and check ``job.json``.

    Raises
    ------
    JobError
        If it is missing, damaged, or of a newer format.
    OptionError
        If the model's options are wrong.
    """
    try:
        spec = read_json(folder / "job.json")
        found, kind, data, model = spec["format"], spec["kind"], spec["data"], spec["model"]
    except FileNotFoundError:
        raise JobError(f"{folder} is not a job: it has no job.json") from None
    except (ValueError, KeyError, TypeError, IsADirectoryError) as problem:
        raise JobError(f"{folder}/job.json is damaged: {problem!r}") from problem
    if not isinstance(found, int) or found > FORMAT or kind not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise JobError(f"{folder}/job.json has format {found}, kind {kind!r}; this version knows {known} of {FORMAT}")
    if not isinstance(data, str) or not isinstance(model, dict):
        raise JobError(f"{folder}/job.json is damaged: data must be text and model an object")
    if not (isinstance(spec.get("name"), str) and _is_time(spec.get("created"))):
        raise JobError(f"{folder}/job.json is damaged: name must be text and created a time, in seconds since 1970")
    if not isinstance(spec.get("embedding", True), bool):
        raise JobError(f"{folder}/job.json is damaged: embedding must be true or false; got {spec['embedding']!r}")
    checked = opt.validate_all(model)
    kinds.check(kind, {k: spec[k] for k in EXTRAS if k in spec}, checked)
    return spec


@dataclass
class Status:
    """Where a job stands.

    Attributes
    ----------
    state
        ``waiting``, ``running``, ``finished``, ``stopped``, ``failed``, or ``died`` (its process is gone without a
        word) or ``silent`` (it runs on another host, and its heart has not beaten for a minute).
    stage
        Of one that waits for its turn, why. Of one that runs, what it is doing: ``reading``, ``training``,
        ``predicting``, ``embedding``; a range test: ``testing``; a tuning: ``tuning``.
    kind
        Of job.
    step, num_steps
        Steps done, and to do; of a range test learning rates, of a tuning trials that have ended and ``max_trials``.
    n_cells, n_held_out
        Cells that are trained on, and those held out.
    started, training_started
        When this process began, and its training.
    memory, device_memory
        Bytes that its process has in memory; the most that it has reserved on the GPU, 0 without one.
    resumed
        How often it was gone on with.
    resumed_step, resumed_epoch
        Where it was last gone on with.
    error
        ``{"type", "message", "traceback"}`` if it failed.
    """

    state: str = "waiting"
    stage: str = ""
    epoch: int = 0
    num_epochs: int = 0
    step: int = 0
    num_steps: int = 0
    n_cells: int = 0
    n_held_out: int = 0
    device: str = ""
    started: float | None = None
    training_started: float | None = None
    ended: float | None = None
    heartbeat: float | None = None
    error: dict[str, str] = field(default_factory=dict)
    kind: str = "fit"
    memory: int = 0
    device_memory: int = 0
    resumed: int = 0
    resumed_step: int = 0
    resumed_epoch: int = 0

    @property
    def ended_already(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ENDED

    def seconds_left(self) -> float | None:
        """Estimate the time that training still takes; None before its first step."""
        done = self.step - self.resumed_step
        if (
            self.state != "running"
            or done < 1
            or not self.training_started
            or self.stage not in ("training", "testing", "tuning")
        ):
            return None
        spent = (self.heartbeat or self.training_started) - self.training_started
        return max(0.0, spent / done * (self.num_steps - self.step))


def read_status(folder: Path) -> Status:
    """Read where a job stands, with proof of life."""
    status = _status_of(_read_json(folder / "status.json") or {})
    process = _read_json(folder / "process.json")
    if process is not None and status.state in ("waiting", "running"):
        if process.get("host") == socket.gethostname():
            if not is_alive(process):
                # It may have ended between the two readings.
                again = _status_of(_read_json(folder / "status.json") or asdict(status)).state
                status.state = again if again != status.state else "died"
        elif status.state == "running" and time.time() - (status.heartbeat or 0) > SILENT_AFTER:
            status.state = "silent"
    elif process is None and status.state == "running":  # a power cut or a full disk took who runs it
        beat = status.heartbeat or status.started or _changed(folder / "status.json")
        if time.time() - beat > SILENT_AFTER:
            status.state = "died"
    return status


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # just now
        return time.time()


def _status_of(values: Mapping[str, Any]) -> Status:
    """Take what is of its kind; what is not is as if it were not told."""
    usual = asdict(Status())
    return Status(**{name: values[name] for name in usual if name in values and _fits(name, values[name], usual[name])})


def _fits(name: str, value: Any, usual: Any) -> bool:
    if name == "state":
        return value in STATES
    if usual is None:
        return value is None or _is_time(value)
    if isinstance(usual, int):
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    if isinstance(usual, dict):
        return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    return isinstance(value, str)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LAST_TIME


def read_records(folder: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Read records from a byte offset on; return them and the offset to go on from.

    A last line that is still being written is left for the next call.
    """
    try:
        with open(folder / "records.jsonl", "rb") as f:
            f.seek(offset)
            chunk = f.read()
    except FileNotFoundError:
        return [], offset
    whole = chunk.rfind(b"\n") + 1
    records = []
    for line in chunk[:whole].splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            continue  # torn by a kill
        if isinstance(record, dict):
            records.append(record)
    return records, offset + whole


def request_stop(folder: Path) -> None:
    """Ask a job to stop at its next step and keep what it has."""
    (folder / "stop").touch()


def why_not_resume(folder: Path, status: Status | None = None) -> str:
    """Say why a job cannot be gone on with; empty if it can. Without a status, it is read."""
    status = status or read_status(folder)
    kind, message = status.error.get("type", ""), status.error.get("message", "")
    if status.state == "finished":
        return f"the job in {folder} has finished before; start a new one in another folder"
    if status.state == "failed" and not _passes(kind) and (status.kind, kind) != ("tune", "TuningError"):
        hint = (
            "with safer settings, such as a lower max_learning_rate" if kind == "TrainingError" else "without its cause"
        )
        return (
            f"the job in {folder} has failed before, and would fail again: {message or 'nobody knows why'}. "
            f"Start a new one in another folder, {hint}"
        )
    if status.state in ("waiting", "running", "silent"):
        return f"the job in {folder} is {status.state}; there is nothing to go on with"
    if status.kind == "range_test" and status.state == "stopped":
        return f"the range test in {folder} was stopped before; start a new one in another folder"
    return ""


def _passes(kind: str) -> bool:
    """Whether an error, by its name, is of the machine, and may not come again."""
    error = getattr(builtins, kind, None)
    return kind == "OutOfMemoryError" or (isinstance(error, type) and issubclass(error, MemoryError | OSError))


def resume(folder: Path) -> None:
    """Make a job that was stopped or died wait, to be run again: it goes on from its checkpoint.

    A fit goes on after the last epoch that its checkpoint knows; without one it begins anew, as others do. A tuning
    goes on with its study.

    Raises
    ------
    JobError
        If it cannot be gone on with, see `why_not_resume`.
    """
    path, aside = folder / "process.json", folder / f".process.{secrets.token_hex(4)}.json"
    before = _read_json(path)
    if why := why_not_resume(folder):
        raise JobError(why)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        if before is not None:  # there a moment ago
            raise JobError(f"the job in {folder} is being started by another process") from None
    else:
        if _read_json(aside) != before:
            os.rename(aside, path)
            raise JobError(f"the job in {folder} is being started by another process")
    try:
        (folder / "stop").unlink(missing_ok=True)
        last = read_status(folder)
        same = ("kind", "num_epochs", "num_steps", "n_cells", "n_held_out", "step", "epoch")
        waiting = Status(**{name: getattr(last, name) for name in same}, resumed=last.resumed + 1)
        write_json(folder / "status.json", asdict(waiting))
    except BaseException:
        if aside.exists():  # or it would be taken to run
            os.rename(aside, path)
        raise
    aside.unlink(missing_ok=True)


def claim(folder: Path) -> Status:
    """Make this process the one that runs the job; one that was stopped or died before is resumed.

    Returns
    -------
    Status
        Of the job that waits.

    Raises
    ------
    JobError
        If another living process has it, or it has ended before.
    """
    status = read_status(folder)
    if status.state not in ("waiting", "running", "silent"):
        resume(folder)
        status = read_status(folder)
    path, beside = folder / "process.json", folder / f".process.{secrets.token_hex(4)}.json"
    try:
        write_json(beside, this_process())
        for _ in range(2):
            try:
                _put_first(beside, path)
                return status
            except FileExistsError:
                other = _read_json(path)
                if other is None and time.time() - _changed(path) < SILENT_AFTER:
                    raise JobError(f"the job in {folder} is being started by another process") from None
                if other is not None and (other.get("host") != socket.gethostname() or is_alive(other)):
                    raise JobError(
                        f"the job in {folder} is run by process {other.get('pid')} on {other.get('host')}"
                    ) from None
                path.unlink(missing_ok=True)
    finally:
        beside.unlink(missing_ok=True)
    raise JobError(f"the job in {folder} is being started by another process")


def _put_first(beside: Path, path: Path) -> None:
    """Put a whole file at `path`, where none may be."""
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:  # some file systems have no links
        with open(path, "xb") as f:
            f.write(beside.read_bytes())


def cut_records(folder: Path, epoch: int) -> None:
    """Cut ``records.jsonl`` after the record of an epoch; what came later is done again."""
    path, end = folder / "records.jsonl", 0
    if not path.exists():
        return
    with open(path, "rb") as f:
        for line in f:
            if b'"kind": "epoch"' in line and line.endswith(b"\n") and _epoch_of(line) <= epoch:
                end = f.tell()
    os.truncate(path, end)


def _epoch_of(line: bytes) -> float:
    try:
        epoch = parse_json(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # torn by a kill
    return epoch if isinstance(epoch, int) else math.inf


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = read_json(path)
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return None
    return values if isinstance(values, dict) else None
