"""Run one job from its folder: ``python -m mira_core.run FOLDER``.

SIGTERM, SIGINT or a file named ``stop`` in the folder stop it at the next step; the model trained so far is kept. A
training that was stopped or died goes on after the last epoch of its checkpoint, a tuning with its study.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import time
import traceback
from pathlib import Path

from . import jobs
from .errors import JobError, MiraError
from .reporting import Reporter, Requests
from .running.parts import Listener, Task

logger = logging.getLogger(__name__)


def run_job(folder: Path, listen: Listener | None = None) -> jobs.Status:
    """Run a job to its end, in this process.

    Parameters
    ----------
    folder
        A job's folder, see `mira_core.jobs`.
    listen
        Called with every record.

    Returns
    -------
    jobs.Status
        ``finished``, ``stopped`` or ``failed``; a failure is told there and not raised.

    Raises
    ------
    JobError
        If the folder is no job, or the job is running or has ended.
    """
    if not (folder / "job.json").is_file():
        raise JobError(f"{folder} is not a job: it has no job.json")
    status = jobs.claim(folder)
    with Reporter(folder, status) as report, Requests(folder) as requests:
        try:
            spec = jobs.read_spec(folder)
            report.update(kind=spec["kind"])
            runner = importlib.import_module(f".running.{spec['kind']}", __package__)  # each needs libraries of its own
            runner.run(Task(folder, spec, report, requests, listen))
            report.update(state="stopped" if report.status.stage == "stopped" else "finished")
        except Exception as problem:
            told = isinstance(problem, MiraError)
            logger.error("%s", problem, exc_info=not told)
            error = {
                "type": type(problem).__name__,
                "message": str(problem),
                "traceback": "".join(traceback.format_exception(problem)),
            }
            report.update(state="failed", error=error)
        finally:
            report.update(ended=time.time())
    if jobs.why_not_resume(folder, report.status):  # as it ended: somebody may have had it go on since
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return report.status


def main(argv: list[str] | None = None) -> int:
    """Run the job whose folder is named on the command line."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m mira_core.run FOLDER", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if nice := os.environ.get("MIRA_NICE"):
        _give_way(nice)
    folder = Path(arguments[0])
    try:
        status = run_job(folder)
    except MiraError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    logger.info("%s after %d steps", status.state, status.step)
    return {"finished": 0, "stopped": 0}.get(status.state, 1)


def _give_way(nice: str) -> None:
    """Leave the processor to others first, such as the server that started this."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no such thing on Windows
        os.nice(int(nice))
    # Linux weighs sessions against each other by this alone, where it groups processes by session.
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as group:
        group.write(nice)


if __name__ == "__main__":
    raise SystemExit(main())
