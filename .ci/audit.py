"""Asks whether direct dependencies, as installed, have known vulnerabilities: 1 if one is mended in a later version.

What no version mends yet is told. pip-audit ends well where it could ask about nothing at all; here that is said.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

LONGEST = 300  # seconds, for the installation and for the questions


def direct(name: str = "mira-topics") -> list[str]:
    """Return what the package itself needs, without its extras, in the versions that are installed."""
    needed = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    names = {r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})}
    # What stands after a + tells builds apart, which no service knows.
    return sorted(f"{each}=={importlib.metadata.version(each).partition('+')[0]}" for each in names)


def ask(pinned: list[str]) -> list[dict[str, Any]]:
    """Return pip-audit's answers, from an environment of its own.

    Raises
    ------
    OSError
        If it cannot be installed, or does not answer; the last that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        python, asked = Path(folder) / "bin" / "python", Path(folder) / "direct.txt"
        venv.create(folder, with_pip=True)
        asked.write_text("\n".join(pinned))
        for command in (
            ["pip", "install", "-q", "pip-audit"],
            ["pip_audit", "-r", str(asked), "--no-deps", "--disable-pip", "-f", "json", "--progress-spinner", "off"],
        ):
            try:
                done = subprocess.run([python, "-m", *command], capture_output=True, text=True, timeout=LONGEST)
            except subprocess.TimeoutExpired:
                raise OSError(f"{command[0]} took longer than {LONGEST} s") from None
            last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
            if done.returncode and command[0] == "pip":
                raise OSError(f"pip-audit cannot be installed: {last}")
    try:
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        raise OSError(f"pip-audit does not answer: {last}") from None


def judge(answers: list[dict[str, Any]]) -> tuple[str, int]:
    """Return what to say of the answers, and the status."""
    asked = [answer for answer in answers if "skip_reason" not in answer]
    found = [(answer, each) for answer in asked for each in answer["vulns"]]
    lines = [
        f"audit: {answer['name']} {answer['version']} has {each['id']}; mended in "
        f"{', '.join(each['fix_versions']) or 'no version yet'}"
        for answer, each in found
    ]
    if not asked:
        return f"audit skipped: the service knows none of {len(answers)} dependencies; is it reached?", 0
    unknown = [answer["name"] for answer in answers if "skip_reason" in answer]
    lines.append(f"audit: {len(found)} known vulnerabilities of {len(asked)} direct dependencies")
    if unknown:
        lines.append(f"audit skipped: of {', '.join(unknown)} nothing is known")
    return "\n".join(lines), int(any(each["fix_versions"] for _, each in found))


def main() -> int:
    """Ask, say what is known, and return the status."""
    try:
        told, status = judge(ask(direct()))
    except OSError as problem:
        told, status = f"audit skipped: {problem}", 0
    print(told)
    return status


if __name__ == "__main__":
    sys.exit(main())
