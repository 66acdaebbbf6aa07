"""Imports point one way, and importing does nothing else."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import mira_core
import mira_core.analysis
import mira_core.data
import mira_core.export
import mira_core.topics

ROOT = Path(mira_core.__file__).parent
LAYERS = ["base", "data", "nn", "models", "training", "plots", "estimators", "analysis", "tuning", "top", "mira_app"]
BASE = {"errors", "options", "records", "recommend", "files", "processes", "safer", "colours", "environment"}
PACKAGES = set(LAYERS[1:-2])
TOP = {"__init__", "topics", "jobs", "kinds", "run", "running", "reporting", "starting", "estimate", "cli", "notation",
       "export"}  # fmt: skip
SOURCES = sorted(ROOT.rglob("*.py"))
DASHBOARD = {"panel", "bokeh", "holoviews", "mira_app", "panel_material_ui"}


def layer(module: str) -> str:
    """Layer of a module such as ``mira_core.data.counts``."""
    parts = module.split(".")
    if parts[0] == "mira_app":
        return "mira_app"
    room = parts[1] if len(parts) > 1 else "__init__"
    if room in PACKAGES:
        return room
    assert room in BASE | TOP, f"{module} is in no layer; name one in this test"
    return "base" if room in BASE else "top"


def module_name(path: Path) -> str:
    parts = [ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, in functions too."""
    here = module_name(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for a in node.names:  # `from . import x` may name a module or an object
                inner = ROOT.parent / Path(*stem.split("."), a.name)
                is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
                found.add(f"{stem}.{a.name}" if is_module else stem)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_import_points_back(path):
    here = layer(module_name(path))
    for name in imported(path):
        if name.split(".")[0] in ("mira_core", "mira_app") and name != "mira_core":
            there = layer(name)
            assert LAYERS.index(there) <= LAYERS.index(here), f"{module_name(path)} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_the_core_never_imports_the_dashboard(path):
    assert not {name.split(".")[0] for name in imported(path)} & DASHBOARD


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_importing_prints_nothing_and_changes_no_global_state():
    """Against a process that has imported the dependencies, everything in one process to save time."""
    modules = [module_name(p) for p in SOURCES]
    done = python(f"""
import importlib, logging, random, signal, sys, warnings
import anndata, numpy as np, pandas, param, psutil, pyro, safetensors.torch, scipy, torch, tqdm.auto
import torch.quasirandom, torch.distributions.kl, scipy.cluster.hierarchy, scipy.linalg

def state():
    name, keys, *rest = np.random.get_state()
    return dict(
        torch_rng=bytes(torch.get_rng_state().numpy()), numpy_rng=(name, bytes(keys), *rest), rng=random.getstate(),
        threads=(torch.get_num_threads(), torch.get_num_interop_threads()), dtype=torch.get_default_dtype(),
        grad=torch.is_grad_enabled(), deterministic=torch.are_deterministic_algorithms_enabled(),
        anomaly=torch.is_anomaly_enabled(), errors=np.geterr(), printing=str(np.get_printoptions()),
        filters=list(warnings.filters), root=(logging.root.level, list(logging.root.handlers)),
        handlers={{n: list(x.handlers) for n, x in logging.root.manager.loggerDict.items() if hasattr(x, "handlers")
                  and n.startswith("mira")}},
        signals=[signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)],
        validation=torch.distributions.Distribution._validate_args, params=list(pyro.get_param_store().keys()),
        hooks=(sys.excepthook, sys.displayhook),
    )

before = state()
for m in {modules!r}:
    importlib.import_module(m)
after = state()
changed = [k for k in before if before[k] != after[k] and k != "handlers"]
assert not changed, changed
assert not any(after["handlers"].values()), after["handlers"]
loaded = {sorted(DASHBOARD)!r}
assert not [m for m in loaded if m in sys.modules]
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_alone_prints_nothing():
    done = python("import mira_core as mira; mira.topics.make_model; mira.data.load_demo")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_public_names_are_exactly_these():
    assert mira_core.__all__ == ["analysis", "data", "export", "topics"]
    assert sorted(mira_core.topics.__all__) == [
        "BayesianTuner", "Recommendation", "Redis", "TensorBoardWriter", "TopicModel", "Writer",
        "gradient_tune", "load_model", "make_model", "plot_topic_contributions", "recommend_parameters",
    ]  # fmt: skip
    assert sorted(mira_core.data.__all__) == [
        "Finding", "Recipe", "inspect", "load_demo", "open_data", "qc", "simulate_expression",
    ]  # fmt: skip
    assert sorted(mira_core.analysis.__all__) == [
        "Mixing", "batch_mixing", "correlate_topics", "describe_topics", "differential_topics", "enrich",
        "enrich_peaks", "keep_enrichment", "kept_enrichments", "make_joint_representation", "match_topics",
        "rank_topics", "read_gmt", "readable", "top_features", "topics_by",
    ]  # fmt: skip
    assert sorted(mira_core.export.__all__) == [
        "FinishedRun", "check_repeat", "check_source", "export_all", "methods", "report", "write_zip",
    ]  # fmt: skip
    for package in (mira_core, mira_core.topics, mira_core.data, mira_core.analysis, mira_core.export):
        for name in package.__all__:
            assert getattr(package, name).__name__.split(".")[-1] == name


def test_an_unknown_public_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="mira_core.*nonsense"):
        mira_core.nonsense  # noqa: B018


def test_the_version_is_the_distributions():
    assert mira_core.__version__ == importlib.metadata.version("mira-topics")
