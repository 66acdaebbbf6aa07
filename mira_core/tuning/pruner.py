"""Which trials end before their time."""

from __future__ import annotations

import math

import optuna
from optuna.trial import FrozenTrial, TrialState

from .study import standing


def rungs_of(num_epochs: int) -> list[int]:
    """Return the epochs at which successive halving looks at a trial, and the last one."""
    first = max(1, num_epochs // 3)
    rungs = [first * 2**k for k in range(num_epochs.bit_length()) if first * 2**k < num_epochs]
    return [*rungs, num_epochs]


class Halving(optuna.pruners.SuccessiveHalvingPruner):
    """Successive halving that can't leave a study without a model.

    What a trial scored at a rung counts though it was stopped or died later. Where such a one was the best, all others
    could be pruned; so, until one is completed, the first of those that run goes on to its end, and where that fails
    when all others are pruned, `study.spent` lets another begin. (Successive halving: Li et al., MLSys 2020.)

    Parameters
    ----------
    num_epochs
        Of a whole trial.
    """

    def __init__(self, num_epochs: int) -> None:
        super().__init__(min_resource=rungs_of(num_epochs)[0], reduction_factor=2)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Say whether a trial is to end now."""
        if not super().prune(study, trial):
            return False
        if math.isnan(trial.intermediate_values[trial.last_step]):  # type: ignore[index]
            return True
        hopes = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        return any(
            t.state == TrialState.COMPLETE or (t.number < trial.number and standing(t) == "alive") for t in hopes
        )
