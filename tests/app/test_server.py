"""`mira serve` says what is wrong with its flags, and keeps no memory that nobody needs."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys

import pytest

MIRA = [sys.executable, "-m", "mira_core.cli", "serve"]


def serve(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MIRA, *flags], capture_output=True, text=True, timeout=60)


def test_a_port_in_use_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = serve("--port", port, "--workspace", str(tmp_path / "w"))
    assert done.returncode == 2
    assert f"mira: error: --port {port} of 127.0.0.1 cannot be listened on" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_folder_that_is_none_is_told(tmp_path):
    done = serve("--data", str(tmp_path / "none"), "--workspace", str(tmp_path / "w"))
    assert done.returncode == 2
    assert "--data must name a folder" in done.stderr


LEAVE = """
import gc, sys, psutil
from mira_app.page import give_memory_back

if "give" in sys.argv:
    give_memory_back()
held = [bytearray(900) for _ in range(100_000)]
del held[:-1]  # what is above stays, so that the C library can't lower its end
gc.collect()
print(psutil.Process().memory_info().rss / 1e6)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back by itself, or never")
def test_what_sessions_leave_is_given_back():
    kept, given = (
        float(subprocess.run([sys.executable, "-c", LEAVE, *how], capture_output=True, check=True, text=True).stdout)
        for how in ([], ["give"])
    )
    assert kept - given > 50  # of 90 MB
