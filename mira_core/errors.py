"""What can go wrong, by name. Every message says what must hold, what came, and what to do."""

from __future__ import annotations


class MiraError(Exception):
    """Base of all errors that this package raises on purpose."""


class OptionError(MiraError, ValueError):
    """An option of a model is unknown, of the wrong kind, out of bounds, or does not apply."""


class DataError(MiraError, ValueError):
    """Counts, layers, columns or features of the data are not what a model needs."""


class NotFitted(MiraError, RuntimeError):
    """Something was asked of a model that has not been trained."""


class TrainingError(MiraError, RuntimeError):
    """Training cannot go on, for example because the loss is no longer finite."""


class TuningError(MiraError, RuntimeError):
    """A study cannot go on: its storage is gone, nearly all its trials fail, or it is another study than was meant."""


class CheckpointError(MiraError, ValueError):
    """A file is not a saved model, or comes from a newer version."""


class JobError(MiraError, RuntimeError):
    """A job's folder is missing, damaged, or in use."""
