"""Several people at once, while a model is trained; `python -m tests.benchmarks.load` is the same for hours."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import requests

from ..benchmarks.load import Meter, serving
from ..benchmarks.tabs import Log
from ..benchmarks.visitors import person
from ..servers import to_its_end, wait_until

pytestmark = pytest.mark.slow
PEOPLE, ACTIONS, ROUNDS = 5, 2, 2
LARGEST = 20  # MB that a visit may leave, while its session waits to be dropped


def test_people_who_do_not_think_are_all_answered_and_then_forgotten(tmp_path):
    log = Log()
    with serving(tmp_path, trainings=1, studies=0, log=log) as ((server,), work):
        meter = Meter([server])

        async def browse(seed: int) -> None:
            once = {"visits": 1, "actions": (ACTIONS, ACTIONS)}
            people = (person(server.url("/"), work, log, seed + i, 0, **once) for i in range(PEOPLE))
            await asyncio.gather(*people)

        requests.get(server.url("/"), cookies=work.cookies, timeout=60)
        assert meter.sessions() > 0  # so that none in the end tells something
        for n in range(ROUNDS):
            to_its_end(browse(PEOPLE * n))
            work.tend()
            meter.read()
        assert log.errors + Counter(meter.errors()) == {}
        assert log.visits == len([t for name, times in log.times.items() if name.startswith("open ") for t in times])
        assert sum(map(len, log.times.values())) > 2 * log.visits  # they did things besides
        assert meter.rss[1] - meter.rss[0] < LARGEST * PEOPLE
        wait_until(lambda: meter.sessions() == 0, 60, "the sessions are dropped")
