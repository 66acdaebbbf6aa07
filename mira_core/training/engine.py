"""What takes the steps of an epoch, as fast as the device allows.

On a CPU a step is what `Stepper` does. On a GPU the counts lie on the device if they fit, and a whole step, from the
row numbers of its cells to the moved weights, is captured as a CUDA graph and replayed: a few launches in place of
some thousand. Where capturing fails, steps are taken one operation after the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..data.counts import Batch, Cells
from ..data.loaders import DeviceCells, ahead
from ..nn.network import TopicNetwork
from .schedules import Settings
from .step import Stepper, Told

logger = logging.getLogger(__name__)

READ_EVERY = 50  # steps after which a GPU is asked what they told, which waits for it
SHARE_OF_MEMORY = 0.5  # of what is free on a GPU, for the counts
WARM_UP = 3  # steps before a graph is captured, so that libraries have their workspaces


class Engine:
    """Takes steps on minibatches that are made on the host.

    Parameters
    ----------
    network, options, seed
        As of `Stepper`.
    cells
        Training cells.

    Attributes
    ----------
    waiting
        Seconds in which the model waited for minibatches, so far.
    """

    def __init__(self, network: TopicNetwork, cells: Cells, options: Mapping[str, Any], seed: int) -> None:
        self.stepper = Stepper(network, options, seed)
        self.network, self.cells, self.device = network, cells, network.device
        self.waiting = 0.0

    def epoch(self, order: np.ndarray, settings: Sequence[Settings]) -> Iterator[Told]:
        """Take one step for each row of `order`, S x B; yield what they tell, on a GPU many at once."""
        told: list[torch.Tensor] = []
        every = 1 if self.device.type == "cpu" else READ_EVERY
        batches = self._batches(order)
        for setting in self._settings(settings):
            asked = time.perf_counter()
            batch = next(batches)
            self.waiting += time.perf_counter() - asked
            told.append(self._step(batch, setting))
            if len(told) == every:
                yield from _read(told)
                told = []
        yield from _read(told)

    def _batches(self, order: np.ndarray) -> Iterator[Any]:
        def make(rows: np.ndarray) -> Batch:
            return self.cells.batch(rows).to(self.device)

        return ahead(make, order) if self._worth_a_thread() else map(make, order)

    def _worth_a_thread(self) -> bool:
        # Beside a CPU that computes, a thread takes what it gives; counts on the disk are read while nothing waits.
        return self.device.type != "cpu" or self.cells.counts.on_disk

    def _settings(self, settings: Sequence[Settings]) -> Iterator[Any]:
        if self.device.type == "cpu":
            return iter(settings)
        return iter(torch.tensor(settings, dtype=torch.float32).to(self.device))

    def _step(self, batch: Any, setting: Any) -> torch.Tensor:
        return self.stepper.step(batch, setting if isinstance(setting, Settings) else Settings(*setting.unbind()))

    def close(self) -> None:
        """Leave the network ready for evaluation."""
        self.stepper.close()


class DeviceEngine(Engine):
    """Takes steps on minibatches that are assembled on the GPU, captured as a graph where that works."""

    def __init__(
        self, network: TopicNetwork, cells: Cells, options: Mapping[str, Any], seed: int, *, graph: bool = True
    ) -> None:
        super().__init__(network, cells, options, seed)
        self.on_device = DeviceCells(cells, self.device)
        self.seed = seed
        self.graph: torch.cuda.CUDAGraph | None = None
        self.steps_to_capture = WARM_UP if graph else -1
        size = min(options["batch_size"], len(cells))
        self.rows = torch.zeros(size, dtype=torch.int64, device=self.device)
        self.setting = torch.zeros(len(Settings._fields), device=self.device)
        self.told = torch.zeros(len(Told._fields), device=self.device)

    def _batches(self, order: np.ndarray) -> Iterator[Any]:
        return iter(torch.from_numpy(order).to(self.device))

    def _step(self, batch: Any, setting: Any) -> torch.Tensor:
        self.rows.copy_(batch)
        self.setting.copy_(setting)
        if self.steps_to_capture == 0:
            self._capture()
        self.steps_to_capture -= 1
        if self.graph is not None:
            self.graph.replay()
        elif self.steps_to_capture >= 0:
            self._beside()
        else:
            self._body()
        return self.told.clone()

    def _body(self) -> None:
        told = self.stepper.step(self.on_device.batch(self.rows), Settings(*self.setting.unbind()))
        self.told.copy_(told)

    def _beside(self) -> None:
        """Take a step on another stream, as what is to be captured must have been run."""
        current, other = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        other.wait_stream(current)
        with torch.cuda.stream(other):
            self._body()
        current.wait_stream(other)

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            graph.register_generator_state(self.stepper.generator)
            with torch.cuda.device(self.device), torch.cuda.graph(graph):
                self._body()
            self.graph = graph
        except Exception as problem:
            logger.warning("steps are taken without a CUDA graph, which is slower: %s", problem)
            self.stepper.reseed(self.seed + 1)  # the generator may be left in mid-capture

    def close(self) -> None:
        """Leave the network ready for evaluation, and free the graph."""
        self.graph = None
        super().close()


def make_engine(network: TopicNetwork, cells: Cells, options: Mapping[str, Any], seed: int) -> Engine:
    """Return the fastest engine for where the network is."""
    device = network.device
    if device.type == "cuda" and DeviceCells.size(cells) < SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]:
        return DeviceEngine(network, cells, options, seed)
    return Engine(network, cells, options, seed)


def _read(told: list[torch.Tensor]) -> Iterator[Told]:
    return (Told(*numbers) for numbers in torch.stack(told).tolist()) if told else iter(())
