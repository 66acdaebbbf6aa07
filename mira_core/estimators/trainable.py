"""What training needs of a model: a device, and a network drawn there."""

from __future__ import annotations

import secrets
from typing import Any, TypeVar

import torch

from .. import options as opt
from ..data import statistics
from ..data.counts import Cells
from ..errors import OptionError
from ..nn.network import TopicNetwork
from .fitted import Fitted, FittedModel

Self = TypeVar("Self", bound="TrainableModel")


class TrainableModel(FittedModel):
    """A model that knows where it is trained, and how a training begins."""

    _device: torch.device | None = None

    def _begin(self, cells: Cells) -> Fitted:
        """Learn the statistics of the cells, and draw the network on the device where it is to be trained."""
        options = self.get_params()
        seed = self.seed if self.seed is not None else secrets.randbits(32)
        learned = statistics.learn(cells, _lsi_components(options), seed)
        network = TopicNetwork(options, cells.endogenous, learned, cells.covariates.shape[1], cells.extra.shape[1])
        network.initialise(torch.Generator().manual_seed(seed))
        network.to(self._training_device())
        return Fitted(
            network, cells.features, cells.endogenous, cells.coding, learned, dict(self._given), options, seed
        )

    def _check_trainable(self) -> None:
        """Raise where the documented encoder of peaks would be trained without a GPU."""
        if problem := opt.device_problem(self.get_params(), self._training_device().type != "cpu"):
            raise OptionError(problem)

    # --- devices --------------------------------------------------------------------------------

    def _training_device(self) -> torch.device:
        if self._device is not None:
            return self._device
        return torch.device("cuda" if self.use_cuda and torch.cuda.is_available() else "cpu")

    def set_device(self: Self, device: str | torch.device) -> Self:
        """Move the model to a device, such as ``"cpu"`` or ``"cuda:1"``, and train there from now on.

        Raises
        ------
        OptionError
            If there is no such device.
        """
        try:
            wanted = torch.device(device)
            torch.empty(1, device=wanted).cpu()
        except (RuntimeError, AssertionError, TypeError) as problem:
            n = torch.cuda.device_count()
            raise OptionError(
                f"there is no device {str(device)!r}; there are the cpu and {n} CUDA device{'' if n == 1 else 's'}"
            ) from problem
        self._device = wanted
        if self._fit is not None:
            self._fit.network.to(wanted)
        return self

    def to_gpu(self: Self) -> Self:
        """Move the model to the first CUDA device, and train there from now on."""
        return self.set_device("cuda")

    def to_cpu(self: Self) -> Self:
        """Move the model to the CPU, and train there from now on."""
        return self.set_device("cpu")


def _lsi_components(options: dict[str, Any]) -> int:
    if options["feature_type"] != "accessibility" or options["atac_encoder"] != "fast":
        return 0
    return max(128, 3 * options["num_topics"])
