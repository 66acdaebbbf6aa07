"""Damages files and jobs at random for a while: how many were read, how many refused, and what broke a rule.

    python -m tests.benchmarks.fuzz --minutes 10 --seed 1

The same as tests/core/test_fuzz.py, with other damages for each seed. What broke a rule is told with how to do it
again, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections import Counter
from pathlib import Path

from hypothesis.errors import Flaky

from ..fuzzing.child import Child
from ..fuzzing.explore import Broken, explore
from ..fuzzing.targets import TARGETS

ROUND = 20  # examples of one target before the next one's turn


def main() -> int:
    """Try until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="NAME")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    tallies = {name: Counter[str]() for name in arguments.only}
    broken: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        child = Child(Path(folder))
        try:
            for n, (name, tally) in enumerate(itertools.cycle(tallies.items())):
                if time.monotonic() > end:
                    break
                examples = max(1, round(ROUND * TARGETS[name].weight))
                try:
                    explore(child, name, examples, arguments.seed * 1_000_000 + n, tally)
                except (Broken, Flaky) as problem:
                    broken.setdefault(name, []).append(str(problem))
                    print(problem, flush=True)
        finally:
            child.close()
            report(tallies, broken)
    return 1 if broken else 0


def report(tallies: dict[str, Counter[str]], broken: dict[str, list[str]]) -> None:
    """Print a line for each target."""
    kinds = ("opened", "refused", "lost", "failed")
    print(f"{'':24}{'inputs':>9}" + "".join(f"{kind:>9}" for kind in kinds))
    for name, tally in [*tallies.items(), ("all", sum(tallies.values(), Counter[str]()))]:
        print(f"{name:24}{sum(tally.values()):9,}" + "".join(f"{tally[kind]:9,}" for kind in kinds))
    print(f"{sum(map(len, broken.values()))} broken rules" + (f", of {', '.join(broken)}" if broken else ""))


if __name__ == "__main__":
    raise SystemExit(main())
