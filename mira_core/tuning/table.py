"""How a study goes, shown while it does."""

from __future__ import annotations

import time

import optuna
from optuna.trial import FrozenTrial, TrialState

from .study import Plan, best_of, trials_of

EVERY = 1.0  # seconds


class Table:
    """Shows how a study goes: one line that changes."""

    def __init__(self, study: optuna.Study, plan: Plan) -> None:
        from tqdm.auto import tqdm

        self.study = study
        self._shown = 0.0
        self.bar = tqdm(total=plan.max_trials, unit="trial", desc=study.study_name)

    def __enter__(self) -> Table:
        self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, trial: FrozenTrial) -> None:
        """Show that a trial has ended."""
        self._draw()

    def refresh(self) -> None:
        """Show how many trials have ended, and the best of them; reads the storage, so not more than every second."""
        if time.monotonic() - self._shown > EVERY:
            self._draw()

    def _draw(self) -> None:
        self._shown = time.monotonic()
        trials = trials_of(self.study)
        count = {s: sum(t.state == s for t in trials) for s in TrialState}
        self.bar.n = len(trials) - count[TrialState.RUNNING]
        best = best_of(trials)
        told = [f"{count[TrialState.COMPLETE]} completed", f"{count[TrialState.PRUNED]} pruned"]
        if count[TrialState.FAIL]:
            told.append(f"{count[TrialState.FAIL]} failed")
        if best is not None:
            told.append(f"best {best.value:.2f} nats/cell with {best.params['num_topics']} topics")
        self.bar.set_postfix_str(", ".join(told))

    def say(self, why: str) -> None:
        """Say why the tuning ended."""
        self._draw()
        self.bar.write(f"{self.study.study_name}: ended, as {why}")
