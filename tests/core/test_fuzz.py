"""Whatever is done to a file or a job, it is read or refused in words."""

from __future__ import annotations

import pytest

from ..fuzzing.child import Child
from ..fuzzing.explore import explore
from ..fuzzing.targets import TARGETS

EXAMPLES = 30


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    child = Child(tmp_path_factory.mktemp("fuzz"))
    yield child
    child.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_damaged_is_read_or_refused_in_words(child, name):
    explore(child, name, round(EXAMPLES * TARGETS[name].weight))
