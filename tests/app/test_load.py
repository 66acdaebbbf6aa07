"""Several people at once, while a model is trained; `python -m tests.benchmarks.load` is the same for hours."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from ..benchmarks.load import Meter, serving
from ..benchmarks.visitors import Log, person
from ..servers import wait_until

pytestmark = pytest.mark.slow
PEOPLE, VISITS = 5, 2
LARGEST = 20  # MB that a visit may leave, while its session waits to be dropped


def test_people_who_do_not_think_are_all_answered_and_then_forgotten(tmp_path):
    log = Log()
    with serving(tmp_path, trainings=1, studies=0, log=log) as (server, work):
        meter = Meter(server)

        async def browse(round_: int) -> None:
            people = [person(server.url("/"), work, log, 10 * round_ + i, 0, visits=VISITS) for i in range(PEOPLE)]
            await asyncio.gather(*people)
            work.tend()
            meter.read()

        asyncio.run(browse(0))
        asyncio.run(browse(1))
        assert log.errors + Counter(meter.errors()) == {}
        assert log.visits == 2 * PEOPLE * VISITS
        assert sum(map(len, log.times.values())) >= 6 * log.visits  # each opened a page and did five things at least
        first, second = meter.rss
        assert second - first < LARGEST * PEOPLE * VISITS
        assert meter.alive[-1] > 0
        wait_until(lambda: meter.sessions() == 0, 60, "the sessions are dropped")
