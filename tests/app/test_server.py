"""`mira serve` says what is wrong with its flags."""

from __future__ import annotations

import socket
import subprocess
import sys

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
