"""What a run was computed with: versions, processor, threads. On these it depends whether it gives the same bits."""

from __future__ import annotations

import glob
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import psutil

# Those that the numbers come from, and those that a methods section names.
DISTRIBUTIONS = (
    "mira-topics", "torch", "pyro-ppl", "numpy", "scipy", "pandas", "anndata", "h5py", "safetensors", "scanpy",
    "scikit-learn", "scikit-misc", "umap-learn", "pynndescent", "numba",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python and of the distributions that matter, those that are not installed left out."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(device: str = "cpu") -> dict[str, Any]:
    """Describe this process, as JSON can hold it.

    Parameters
    ----------
    device
        Where it computes.

    Returns
    -------
    dict
        ``versions``; ``threads`` of ``torch`` and of numpy's ``blas``; ``processor``: ``name``, ``machine``, number of
        ``cores``, which instructions ``torch`` and ``blas`` use; ``system``; ``device``, and the name of a GPU.
    """
    import threadpoolctl
    import torch

    blas = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    return {
        "versions": versions(),
        "threads": {"torch": torch.get_num_threads(), "blas": max((pool["num_threads"] for pool in blas), default=1)},
        "processor": {
            "name": _processor(),
            "machine": platform.machine(),
            "cores": psutil.cpu_count() or 1,
            "torch": torch.backends.cpu.get_cpu_capability(),
            "blas": ", ".join(sorted({str(pool.get("architecture") or pool["internal_api"]) for pool in blas})),
        },
        "system": platform.system(),
        "device": device,
        "gpu": gpu,
    }


def may_have_gpu() -> bool:
    """Whether this machine may have a GPU that torch could use: told at once, without torch, by what Linux has."""
    devices = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")  # NVIDIA's, Jetson's, AMD's, in WSL
    return not sys.platform.startswith("linux") or any(glob.glob(f"/dev/{name}") for name in devices)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            named = (line.partition(":")[2].strip() for line in f if line.startswith("model name"))
            return next(named, "") or platform.processor()
    except OSError:
        return platform.processor()


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in which respects two descriptions differ that may change a result, one line each."""
    told = []
    before, after = then.get("versions", {}), now.get("versions", {})
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            told.append(f"{name} was {before.get(name, 'absent')} and is {after.get(name, 'absent')}")
    for of, words in (("threads", "threads of {}"), ("processor", "{} of the processor")):
        before, after = then.get(of, {}), now.get(of, {})
        for name in before:
            if name != "cores" and before[name] != after.get(name):
                told.append(f"{words.format(name)}: {before[name]!s} then, {after.get(name)!s} now")
    for name in ("system", "device", "gpu"):
        if then.get(name) != now.get(name):
            told.append(f"{name}: {then.get(name) or 'none'} then, {now.get(name) or 'none'} now")
    return told
