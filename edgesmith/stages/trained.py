"""What stages that train have in common: a workplace that survives a kill, and processes that only help."""

from __future__ import annotations

import os
import shutil
import time
from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgesmith.artifact import Artifact, Kind
from edgesmith.errors import EdgesmithError, StorageError, UsageError
from edgesmith.files import hold_lock, storage_errors
from edgesmith.progress import SILENT, Progress
from edgesmith.stages.base import Stage

__all__ = ["TRAINING_FILE", "TrainedStage", "save_seconds"]

TRAINING_FILE = "training.json"
"""Of the artifact: `Trained.facts()`."""
_SAVE_SECONDS = 120.0
_KEEP_SECONDS = 14 * 24 * 3600.0
_LIBRARIES = ("accelerate", "numpy", "safetensors", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class TrainedStage(Stage):
    """Trains in a folder of its own, which the next run of the same step finds again.

    Subclasses fill `make_trained` instead of `make`, and call `leave_to_leader` after the training.
    """

    kind: ClassVar[Kind] = "checkpoint"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES
    is_of_this_machine: ClassVar[bool] = True  # a training adds up how its processor rounds

    workplace: Path
    """Folder below which the stage's own lies, named by its key; no part of the key."""

    @abstractmethod
    def make_trained(self, folder: Path, workplace: Path, progress: Progress) -> Artifact:
        """Do the work: train in `workplace`, fill the empty `folder` and `seal` it.

        Args:
            folder: Of the result.
            workplace: Of this stage alone; whatever an interrupted run left is in it.
            progress: Silent in processes that only help.
        """

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Do the work in the workplace, which stays until the result is published.

        Raises:
            UsageError: Another process is at the same training.
            StorageError: The workplace cannot be written.
        """
        from compress.train.processes import is_leader

        place = self.workplace / self.key.digest
        if not is_leader():
            made = self.make_trained(folder, place, SILENT)
            self.leave_to_leader()
            return made
        _sweep(self.workplace)
        with storage_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        try:
            with hold_lock(place, wait=False):
                made = self.make_trained(folder, place, progress)
                self.leave_to_leader()
        except BlockingIOError as error:
            raise UsageError(
                f"{place}: another process is at this very training", mend="Wait for it, or end it."
            ) from error
        return made

    def published(self) -> None:
        """Remove the workplace: until here, a kill or a full disk has cost no training."""
        with suppress(BlockingIOError, EdgesmithError):  # another process is at it, or a file it was made of is gone
            place = self.workplace / self.key.digest
            if place.is_dir():
                with hold_lock(place, wait=False):
                    shutil.rmtree(place, ignore_errors=True)

    def leave_to_leader(self) -> None:
        """End here, with success, in a process that only helped to train; the first one writes the result.

        Raises:
            SystemExit: in all processes but the first.
        """
        from compress.train.processes import is_leader, leave_group

        leave_group()
        if not is_leader():
            raise SystemExit(0)


def save_seconds() -> float:
    """Age of a training's last checkpoint at which a new one is written: `$EDGESMITH_SAVE_SECONDS`, or two minutes."""
    return float(os.environ.get("EDGESMITH_SAVE_SECONDS") or _SAVE_SECONDS)


def _sweep(root: Path) -> None:
    """Remove what trainings left that nobody has gone on with for two weeks."""
    for place in root.glob("*"):
        with suppress(OSError, StorageError):
            if place.is_dir() and time.time() - place.stat().st_mtime > _KEEP_SECONDS:
                with hold_lock(place, wait=False):
                    shutil.rmtree(place, ignore_errors=True)
