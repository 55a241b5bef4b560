"""What a training keeps on disk: its last whole state and its best weights, through any kill.

    ROOT/last/               weights, optimizer, schedule, position, history: written beside it, then swapped in
    ROOT/best-N.safetensors  the weights after update N, the best so far
    ROOT/finished.json       the training is over: the best weights are the result
    ROOT/tensorboard/        curves to look at while it runs

`last` names the best weights that belong to it, so a kill between the two writes mixes nothing up: what `last` does
not name is left over, and goes with the next write.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgesmith.errors import StorageError
from edgesmith.files import atomic_write, publish_folder, sha256_file, storage_errors, temporary_sibling
from edgesmith.units import format_bytes

__all__ = ["Checkpoints", "TrainingState", "load_weights_", "weights_of"]

_WEIGHTS, _STATE, _FINISHED = "model.safetensors", "training_state.json", "finished.json"


@dataclass
class TrainingState:
    """Where a training stands, beside the tensors."""

    fingerprint: str
    """Of everything that decides the result: a state of another training is never continued."""
    update: int = 0
    seconds: float = 0.0
    """Time taken so far, over all interrupted parts."""
    best_update: int | None = None
    best_metric: float | None = None
    """Of the weights that are kept."""
    best_distance: float = 0.0
    top_metric: float | None = None
    """The best of all evaluations; the kept weights are within its noise."""
    bad_evaluations: int = 0
    """Evaluations since the best one."""
    micro_batches: list[dict[str, int]] = field(default_factory=list)
    """How many rows were computed at once (`rows`) from which update on (`from_update`): memory may have halved it."""
    stopped_because: str = ""
    """Not empty once the training is over."""
    history: list[dict[str, Any]] = field(default_factory=list)
    pending: dict[str, float] = field(default_factory=dict)
    """Sums over the updates since the last entry of the history."""


class Checkpoints:
    """The folder of one training. One process writes to it; others may read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.last = root / "last"

    @property
    def has_state(self) -> bool:
        """Whether a training lies there, under way or finished."""
        return (self.last / _STATE).is_file() or (self.root / _FINISHED).is_file()

    def best(self, update: int) -> Path:
        """The file with the weights after an update."""
        return self.root / f"best-{update}.safetensors"

    def check_space(self, module: nn.Module) -> None:
        """Refuse to start where the disk cannot hold what will be written.

        Raises:
            StorageError: naming the folder, what is free and what is needed.
        """
        trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        weights = sum(tensor.nbytes for tensor in weights_of(module).values())
        # The last state is replaced by a new one, and the best weights by better ones: both lie there for a moment.
        needed = 2 * (weights + 8 * trained) + 2 * weights + (1 << 20)
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.root).free + sum(
                path.stat().st_size for path in self.root.rglob("*") if path.is_file()
            )
        if free < needed:
            raise StorageError(
                f"{self.root}: training needs {format_bytes(needed)} ({needed} bytes) for its checkpoints, and "
                f"{format_bytes(free)} are free",
                mend="Free disk space, or choose another place with --store.",
            )

    def find(self, fingerprint: str) -> TrainingState | None:
        """Read the last state; one that is damaged, or of another training, counts as missing."""
        try:
            content = json.loads((self.last / _STATE).read_text())
            files: Mapping[str, str] = content.pop("files")
            state = TrainingState(**content)
            whole = all(sha256_file(self.last / name) == digest for name, digest in files.items())
        except (OSError, ValueError, TypeError, KeyError, AttributeError, StorageError):
            return None
        if not whole or state.fingerprint != fingerprint:
            return None
        return state if state.best_update is None or self.best(state.best_update).is_file() else None

    def find_finished(self, fingerprint: str) -> TrainingState | None:
        """Read how the training ended, if it did."""
        try:
            state = TrainingState(**json.loads((self.root / _FINISHED).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        is_whole = state.best_update is not None and self.best(state.best_update).is_file()
        return state if is_whole and state.fingerprint == fingerprint else None

    def finish(self, state: TrainingState) -> None:
        """Say that the training is over, and free what only going on would need."""
        atomic_write(self.root / _FINISHED, json.dumps(asdict(state), indent=1) + "\n")
        shutil.rmtree(self.last, ignore_errors=True)

    def clear(self) -> None:
        """Remove what no state names: of a killed or of another training."""
        for path in self.root.glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def save(self, module: nn.Module, optimizer: Any, scheduler: Any, trainer_state: Any, state: TrainingState) -> None:
        """Replace the last state, and drop best weights that it does not name.

        Raises:
            StorageError: The disk is full; the state before is still whole.
        """
        folder = temporary_sibling(self.last)
        try:
            with self._writing(module):
                folder.mkdir(parents=True)
                save_file(weights_of(module), folder / _WEIGHTS)
                torch.save(optimizer.state_dict(), folder / "optimizer.pt")  # read by Trainer with weights_only=True
                torch.save(scheduler.state_dict(), folder / "scheduler.pt")
                trainer_state.save_to_json(str(folder / "trainer_state.json"))
                files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
                atomic_write(folder / _STATE, json.dumps({**asdict(state), "files": files}, indent=1) + "\n")
                publish_folder(folder, self.last)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        for path in self.root.glob("best-*.safetensors"):
            if state.best_update is None or path != self.best(state.best_update):
                path.unlink(missing_ok=True)

    def save_best(self, module: nn.Module, update: int) -> None:
        """Keep the weights of now beside those that the last state names.

        Raises:
            StorageError: The disk is full; nothing that was there is lost.
        """
        temporary = temporary_sibling(self.best(update))
        try:
            with self._writing(module):
                save_file(weights_of(module), temporary)
                temporary.replace(self.best(update))
        finally:
            temporary.unlink(missing_ok=True)

    def restore_last_(self, module: nn.Module) -> None:
        """Put the weights of the last state back."""
        load_weights_(module, self.last / _WEIGHTS)

    def restore_best_(self, module: nn.Module, update: int) -> None:
        """Put the weights back that were the best."""
        load_weights_(module, self.best(update))

    @contextmanager
    def _writing(self, module: nn.Module) -> Iterator[None]:
        """Torch and safetensors say a full disk in words of their own."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError, StorageError) as error:
            weights = sum(tensor.nbytes for tensor in weights_of(module).values())
            trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
            needed = weights + 8 * trained
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StorageError(
                f"{self.root}: a training checkpoint of {format_bytes(needed)} ({needed} bytes) cannot be written: "
                f"{reason}",
                mend="Free disk space and run the same command again: it goes on from the checkpoint before.",
            ) from error


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Name → tensor of all that a module keeps; tied weights under their first name only."""
    tied = _tied_names(module)
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items() if name not in tied}


def load_weights_(module: nn.Module, path: Path) -> None:
    """Load what `weights_of` gave.

    Raises:
        StorageError: The file is not of this module.
    """
    try:
        result = module.load_state_dict(load_file(path), strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be loaded: {error}") from error
    if set(result.missing_keys) - _tied_names(module) or result.unexpected_keys:
        raise StorageError(f"{path}: holds the weights of another model", mend="Remove the folder and train anew.")


def _tied_names(module: nn.Module) -> set[str]:
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in module.named_parameters()}
