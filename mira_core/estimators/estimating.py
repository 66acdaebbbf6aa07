"""How long a training would take, and how much memory: from a few real steps on some of its cells."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import scipy.sparse as sp
import torch

from ..data import anndata_io, loaders, sources
from ..data.counts import Cells
from ..data.loaders import DeviceCells
from ..data.on_disk import OnDiskDataset
from ..data.sources import Data
from ..errors import DataError, OptionError
from ..training import schedules
from ..training.engine import DeviceEngine, make_engine
from ..training.evaluation import held_out

if TYPE_CHECKING:
    from .trainable import TrainableModel

T = TypeVar("T")
WHOLE = 2048  # cells that are read whole; of more, some
SAMPLE = 1024
BLOCK = 64  # cells of a sample that are neighbours
WARM_UP, MOST_STEPS, MOST_SECONDS = 5, 80, 1.0  # of the steps that are timed
SCORED = 256  # cells whose scoring is timed
READING = 12  # bytes for each count while counts are checked and copied, besides what stays
STAYS = 8  # bytes for each count that a model holds
DENSITY = {"expression": 0.1, "accessibility": 0.05}  # of counts, where only the size of the data is known


@dataclass(frozen=True)
class Estimate:
    """What a training would take.

    Attributes
    ----------
    seconds
        Of reading the data, training, and scoring held-out cells.
    memory
        Bytes that the process would have resident at its peak, with what it has now.
    device_memory
        Bytes on a GPU; None without one.
    seconds_per_step, num_steps
        Of the training.
    n_cells, n_features
        That it is trained on.
    device
        Where.
    """

    seconds: float
    memory: int
    device_memory: int | None
    seconds_per_step: float
    num_steps: int
    n_cells: int
    n_features: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    def __str__(self) -> str:
        size = f"{self.n_cells:,} cells x {self.n_features:,} features"
        told = f"{_duration(self.seconds)} and {self.memory / 2**20:,.0f} MB of memory"
        if self.device_memory is not None:
            told += f", {self.device_memory / 2**20:,.0f} MB on the device"
        return (
            f"about {told} ({size}, {self.num_steps:,} steps of {1000 * self.seconds_per_step:.1f} ms, {self.device})"
        )


def estimate(
    model: TrainableModel, data: Data | tuple[int, int], test_size: float | None = None, copies: int = 1
) -> Estimate:
    """Take a few steps as a training would, and tell from them what all would take; as `TopicModel.estimate`.

    `copies` are those of the weights that a training keeps.
    """
    options = model.get_params()
    source = _simulated(data, options) if isinstance(data, tuple) else open_lightly(data)
    n_all = data[0] if isinstance(data, tuple) else len(source)
    _sample(source, options)  # the first time takes longer
    began = time.perf_counter()
    cells, sample = _sample(source, options)
    seconds_read = time.perf_counter() - began
    larger = n_all / len(cells)
    with _Peak() as peak:
        half = cells.take(np.arange(len(cells) // 2))
        model._begin(half)
        fit, whole = _timed(lambda: model._begin(cells))
        _, part = _timed(lambda: model._begin(half))
        seconds_learnt = whole + 2 * max(0.0, whole - part) * (larger - 1)  # what does not grow with the cells, once
        device = fit.network.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        n_test = round((test_size or 0) * n_all)
        n_cells = n_all - n_test
        n_steps = options["num_epochs"] * loaders.steps_per_epoch(n_cells, options["batch_size"])
        engine = make_engine(fit.network, cells, options, fit.seed)
        seconds_step = _time_steps(engine, cells, options, n_steps)
        engine.close()
        seconds_scoring = 0.0
        if n_test:
            few = cells.take(np.arange(min(SCORED, len(cells))))
            held_out(fit.network, few)
            seconds_scoring = _timed(lambda: held_out(fit.network, few))[1] / len(few) * n_test * options["num_epochs"]
    weights = sum(t.nbytes for t in fit.network.state_dict().values())
    counts = 0 if cells.counts.on_disk else int(cells.counts.lengths.sum() * larger)
    on_device = None
    if device.type == "cuda":
        on_device = torch.cuda.max_memory_allocated(device) + copies * weights
        if isinstance(engine, DeviceEngine):
            on_device += int(DeviceCells.size(cells) * (larger - 1))
    # what is resident now is, but for the sample, what would be when the data are opened
    now = peak.before - (0 if larger == 1 else sample) - (0 if cells.counts.on_disk else STAYS * int(counts / larger))
    opened = 0 if larger == 1 or _in_memory(data) or cells.counts.on_disk else int(sample * larger)
    training = peak.growth + (copies * weights if device.type == "cpu" else 0)
    memory = now + opened + max(STAYS * counts + training, (STAYS + READING) * counts)
    return Estimate(
        seconds=seconds_read * larger + seconds_learnt + n_steps * seconds_step + seconds_scoring, memory=int(memory),
        device_memory=on_device, seconds_per_step=seconds_step, num_steps=n_steps, n_cells=n_cells,
        n_features=len(cells.features), device=str(device),
    )  # fmt: skip


def _timed(what: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return what(), time.perf_counter() - began


def open_lightly(data: Data) -> ad.AnnData | OnDiskDataset:
    """Open data without reading the counts, where their format allows that."""
    if isinstance(data, OnDiskDataset) or sources.is_ondisk(data):
        return sources.open_source(data)
    return anndata_io.open_data(data, backed=True)


def _in_memory(data: Any) -> bool:
    return isinstance(data, ad.AnnData) and not data.isbacked


def _sample(source: ad.AnnData | OnDiskDataset, options: Mapping[str, Any]) -> tuple[Cells, int]:
    """Read all cells if they are few, else some at random; return also the bytes that these take as an AnnData."""
    n = len(source)
    size = max(SAMPLE, 2 * options["batch_size"])  # multiples of a block
    if n <= max(WHOLE, size):
        return sources.training_cells(source, options), 0
    blocks = np.random.default_rng(0).permutation(n // BLOCK)[: size // BLOCK]  # as files are slow to read by the cell
    rows = (np.sort(blocks)[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    try:
        if isinstance(source, OnDiskDataset):
            return sources.training_cells(source.take(rows), options), 0
        part = source[rows].to_memory()
        return sources.training_cells(part, options), _bytes(part)
    except DataError:  # some cells may lack what all of them have
        return sources.training_cells(source, options), 0


def _bytes(data: ad.AnnData) -> int:
    matrices = [data.X, *data.layers.values(), *data.obsm.values(), *([data.raw.X] if data.raw is not None else [])]
    return sum(_bytes_of(m) for m in matrices)


def _bytes_of(matrix: Any) -> int:
    if sp.issparse(matrix):
        return int(matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes)
    return int(getattr(matrix, "nbytes", 0))


def _simulated(size: tuple[int, int], options: Mapping[str, Any]) -> ad.AnnData:
    """Return some cells of data of a size, with the columns that the options name."""
    n, g = size
    if n < 2 or g < 2:
        raise OptionError(f"the size of the data must be at least 2 cells and 2 features; got {n} and {g}")
    n = min(n, max(SAMPLE, 2 * options["batch_size"]))
    rng = np.random.default_rng(0)
    per_cell = max(1, int(DENSITY[options["feature_type"]] * g))
    columns = np.sort(rng.integers(0, g, (n, per_cell)), axis=1)
    x = sp.csr_matrix((np.ones(n * per_cell, np.float32), columns.ravel(), np.arange(n + 1) * per_cell), shape=(n, g))
    x.sum_duplicates()
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
    for key in options["categorical_covariates"] or []:
        obs[key] = np.where(np.arange(n) % 2, "a", "b")
    for key in (*(options["continuous_covariates"] or []), *(options["extra_features_keys"] or [])):
        obs[key] = rng.standard_normal(n)
    var = pd.DataFrame(index=[f"feature{j}" for j in range(g)])
    for name in ("highly_variable_key", "exogenous_key", "endogenous_key"):
        if options[name]:
            var[options[name]] = True
    layer = options["counts_layer"]
    return ad.AnnData(x, obs, var) if layer is None else ad.AnnData(obs=obs, var=var, layers={layer: x})


def _time_steps(engine: Any, cells: Cells, options: Mapping[str, Any], total: int) -> float:
    """Return the seconds that a step takes."""
    rng = np.random.default_rng(0)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < MOST_STEPS + WARM_UP:
        order = loaders.shuffled(len(cells), options["batch_size"], rng)[: MOST_STEPS + WARM_UP - len(times)]
        settings = [schedules.settings(i, total, options) for i in range(len(order))]
        last = time.perf_counter()
        if engine.device.type != "cpu":  # tells many steps at once
            list(engine.epoch(order, settings))
            times += [(time.perf_counter() - last) / len(order)] * len(order)
        else:
            for _ in engine.epoch(order, settings):
                now = time.perf_counter()
                times.append(now - last)
                last = now
                if now - began > MOST_SECONDS and len(times) > WARM_UP + 2:
                    break
        if time.perf_counter() - began > MOST_SECONDS and len(times) > WARM_UP + 2:
            break
    return float(np.median(times[WARM_UP:]))


class _Peak:
    """Watches the resident memory of this process, while inside."""

    def __enter__(self) -> _Peak:
        self._process, self._quit = psutil.Process(), threading.Event()
        self.before = self.most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True, name="memory")
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._quit.wait(0.005):
            self.most = max(self.most, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """Bytes above what there was."""
        return self.most - self.before


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


COPIES_OF_A_JOB = 1 + 2 + 6  # the last good weights; both moments; a checkpoint in the making, twice all three
