"""``mira clean``: list what nothing needs in a workspace, and remove it if asked to."""

from __future__ import annotations

import argparse
from pathlib import Path

from mira_core.errors import OptionError

from ..disk import remove, unneeded
from ..settings import Settings


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``clean`` to the command line of `mira_core.cli`."""
    p = commands.add_parser(
        "clean", help="free disk space that nothing needs",
        description="List what can go from a workspace: exports of a week ago, checkpoints of trainings that have "
        "finished, uploads that did not end, what was being deleted. No result, model or study is among it.",
    )  # fmt: skip
    p.add_argument("--workspace", type=Path, default=Path("mira-workspace"), metavar="DIR")
    p.add_argument("--remove", action="store_true", help="remove them; without it they are only listed")
    p.set_defaults(run=_clean)


def _clean(arguments: argparse.Namespace) -> int:
    if not arguments.workspace.is_dir():
        raise OptionError(f"--workspace must name a folder; there is none at {arguments.workspace}")
    found = unneeded(Settings(workspace=arguments.workspace.resolve()))
    for each in found:
        print(f"{each.bytes / 1e6:10.1f} MB  {each.path}  ({each.why})")
    total = sum(each.bytes for each in found)
    if arguments.remove:
        print(f"{remove(found) / 1e6:.1f} MB are free again")
    else:
        print(f"{total / 1e6:.1f} MB in {len(found)}; mira clean --remove removes them" if found else "nothing can go")
    return 0
