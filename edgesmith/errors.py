"""Every error that edgesmith raises on purpose, one class a cause, each with its exit code.

A message names the file, the number and what was expected; `mend` says what to do about it. The command
line prints both without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ArtifactError",
    "CheckpointError",
    "DataError",
    "EdgesmithError",
    "MergeError",
    "MissingExtraError",
    "RecipeError",
    "ServerError",
    "StorageError",
    "TrainingError",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
]


class EdgesmithError(Exception):
    """Root of all errors of this project; on its own an internal error.

    Args:
        message: What is wrong, with the file and the numbers.
        mend: What the user can do about it, as an imperative sentence; empty if nothing is known.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.mend}" if self.mend else self.message


class UsageError(EdgesmithError):
    """A command, flag, path or option that cannot be obeyed."""


class RecipeError(UsageError):
    """A recipe that does not follow the schema."""


class MissingExtraError(UsageError):
    """A library that this command needs is not installed; the mend names the extra."""


class ServerError(EdgesmithError):
    """A server that cannot be reached, or that speaks no protocol known here."""


class StorageError(EdgesmithError):
    """The disk is full, or a folder cannot be read or written."""


class TrainingError(EdgesmithError):
    """Training that cannot go on: its loss is no number any more, or it does not fit into memory."""


class DataError(EdgesmithError):
    """A data file whose rows do not fit the task; the message names the file and the line."""

    exit_code = 4


class CheckpointError(EdgesmithError):
    """A checkpoint or adapter that is damaged, unsafe or not what it says it is."""

    exit_code = 4


class MergeError(EdgesmithError):
    """An adapter that does not fit its base or cannot be merged exactly."""

    exit_code = 4


class ArtifactError(EdgesmithError):
    """An artifact that is damaged, was altered, or is hostile."""

    exit_code = 4


class UnsupportedError(EdgesmithError):
    """A valid input that this version cannot handle; the message says what can be handled."""

    exit_code = 4


class VerificationError(EdgesmithError):
    """An artifact whose outputs differ from its reference by more than its precision explains."""

    exit_code = 1
