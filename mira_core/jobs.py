"""A job is a folder: what to do, what happened so far, and what came of it.

=================  ==========================================================================================
``job.json``       the specification: data, options of the model; written once
``process.json``   host, pid and start time of the process that runs it
``status.json``    state, stage, progress and heartbeat; replaced whole
``records.jsonl``  the records of training, one JSON object a line, appended
``log.txt``        what the process printed, if it was started detached
``stop``           there if somebody asked it to stop
``result/``        ``model.safetensors`` and ``cells.h5ad``
=================  ==========================================================================================

Reading a folder needs nothing but this module, and works while the job runs, after it, and after its death.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import options as opt
from .data.demo import DEMOS
from .data.formats import join_part, split_part
from .errors import JobError
from .files import write_json
from .processes import SILENT_AFTER, is_alive, this_process

FORMAT = 1
STATES = ("waiting", "running", "silent", "finished", "stopped", "failed", "died")
ENDED = ("finished", "stopped", "failed", "died")


def write_spec(
    folder: Path, *, data: str, model: Mapping[str, Any], name: str | None = None, embedding: bool = True
) -> None:
    """Create a job's folder.

    Parameters
    ----------
    folder
        Must not exist, or be empty.
    data
        A path as `fit` takes it, or ``"demo:NAME"`` for one of `mira_core.data.demo.DEMOS`.
    model
        Options as for `make_model`; checked here.
    name
        What to call the job; by default the folder's name.
    embedding
        Whether to compute a UMAP of the topics at the end.

    Raises
    ------
    JobError
        If the folder is in use or the data do not exist.
    OptionError
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise JobError(f"{folder} must not exist or be empty; choose another folder")
    checked = opt.validate_all(model)
    if data.startswith("demo:"):
        if data.removeprefix("demo:") not in DEMOS:
            raise JobError(f"there is no demo {data!r}; choose one of {', '.join('demo:' + d for d in DEMOS)}")
    else:
        path, part = split_part(data)
        if not path.exists():
            raise JobError(f"there is no file {data}")
        data = join_part(path.resolve(), part)
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "format": FORMAT,
        "kind": "fit",
        "name": name or folder.name,
        "created": time.time(),
        "data": data,
        "model": checked,
        "embedding": embedding,
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
        spec = json.loads((folder / "job.json").read_bytes())
        found, kind, data, model = spec["format"], spec["kind"], spec["data"], spec["model"]
    except FileNotFoundError:
        raise JobError(f"{folder} is not a job: it has no job.json") from None
    except (ValueError, KeyError, TypeError) as problem:
        raise JobError(f"{folder}/job.json is damaged: {problem!r}") from problem
    if not isinstance(found, int) or found > FORMAT or kind != "fit":
        raise JobError(f"{folder}/job.json has format {found}, kind {kind!r}; this version knows 'fit' of {FORMAT}")
    if not isinstance(data, str) or not isinstance(model, dict):
        raise JobError(f"{folder}/job.json is damaged: data must be text and model an object")
    opt.validate_all(model)
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
        What it is doing: ``reading``, ``training``, ``predicting``, ``embedding``.
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
    device: str = ""
    started: float | None = None
    training_started: float | None = None
    ended: float | None = None
    heartbeat: float | None = None
    error: dict[str, str] = field(default_factory=dict)

    @property
    def ended_already(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ENDED

    def seconds_left(self) -> float | None:
        """Estimate the time that training still takes; None before its first step."""
        if self.state != "running" or not self.step or not self.training_started or self.stage != "training":
            return None
        spent = (self.heartbeat or self.training_started) - self.training_started
        return max(0.0, spent / self.step * (self.num_steps - self.step))


def read_status(folder: Path) -> Status:
    """Read where a job stands, with proof of life."""
    values = _read_json(folder / "status.json") or {}
    known = Status.__dataclass_fields__
    status = Status(**{k: v for k, v in values.items() if k in known})
    process = _read_json(folder / "process.json")
    if process is not None and status.state in ("waiting", "running"):
        if process.get("host") == socket.gethostname():
            if not is_alive(process):
                # It may have ended between the two readings.
                again = (_read_json(folder / "status.json") or {}).get("state", status.state)
                status.state = again if again != status.state else "died"
        elif status.state == "running" and time.time() - (status.heartbeat or 0) > SILENT_AFTER:
            status.state = "silent"
    return status


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
            records.append(json.loads(line))
        except ValueError:
            continue  # torn by a kill
    return records, offset + whole


def request_stop(folder: Path) -> None:
    """Ask a job to stop at its next step and keep what it has."""
    (folder / "stop").touch()


def claim(folder: Path) -> None:
    """Make this process the one that runs the job; one that died before is begun anew.

    Raises
    ------
    JobError
        If another living process has it, or it has ended before.
    """
    status = read_status(folder)
    if status.state in ("finished", "stopped", "failed"):
        raise JobError(f"the job in {folder} has {status.state} before; start a new one in another folder")
    path = folder / "process.json"
    for _ in range(2):
        try:
            with open(path, "x", encoding="utf-8") as f:
                json.dump(this_process(), f)
            return
        except FileExistsError:
            other = _read_json(path)
            if other is None and time.time() - path.stat().st_mtime < SILENT_AFTER:
                raise JobError(f"the job in {folder} is being started by another process") from None
            if other is not None and (other.get("host") != socket.gethostname() or is_alive(other)):
                raise JobError(
                    f"the job in {folder} is run by process {other.get('pid')} on {other.get('host')}"
                ) from None
            path.unlink(missing_ok=True)
    raise JobError(f"the job in {folder} is being started by another process")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else None
