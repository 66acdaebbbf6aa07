"""What the tests of the tuner share."""

from __future__ import annotations

import pytest

import mira_core as mira


@pytest.fixture(scope="module")
def cells():
    return mira.data.simulate_expression(150, 40, 4, seed=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path
