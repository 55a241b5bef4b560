"""Learning curves in TensorBoard's format, where tensorboard is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from edgesmith.progress import Progress

__all__ = ["Curves"]


class Curves:
    """Writes what the history holds into a folder that `tensorboard --logdir` reads.

    Args:
        folder: Where the logs go; None writes nothing.
        update: The update that the training goes on after; what an interrupted part wrote later is dropped.
        progress: Told where the curves are.
    """

    def __init__(self, folder: Path | None, update: int, progress: Progress) -> None:
        self._writer: Any = None
        if folder is None or importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=update + 1)
        progress.note(f"curves: tensorboard --logdir {folder}")

    def add(self, entry: dict[str, Any]) -> None:
        """Write the figures of one entry of the history."""
        if self._writer is None:
            return
        for name, value in entry.items():
            if name not in ("update", "epoch"):
                self._writer.add_scalar(name, value, entry["update"])

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
