"""What stands against a training, and what its result hangs on beside rows and options: known before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from compress.train.checkpoints import Checkpoints
from compress.train.processes import num_processes
from edgesmith.errors import DataError, UnsupportedError
from edgesmith.recipe.steps import TrainOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CHECKPOINTS", "check_training", "draws_dropout", "has_batch_norm", "what_differs"]

CHECKPOINTS = "training"
"""The folder of a training in its workplace; the caller may keep others beside it."""


def check_training(
    model: PreTrainedModel, options: TrainOptions, *, num_rows: int, compares_rows: bool, workplace: Path
) -> None:
    """Refuse a training that cannot be; cheap, so that it can be asked before long preparations.

    Args:
        model: What is to be trained.
        options: How.
        num_rows: Rows to train on.
        compares_rows: Whether a row's loss depends on the others of its micro-batch.
        workplace: As `train` takes it. Where it holds a training already, there is room.

    Raises:
        DataError: There are fewer rows than one batch has.
        StorageError: The disk cannot hold the checkpoints.
        UnsupportedError: Gradient checkpointing, of a model that has none; or several processes, of which each would
            compare its own rows only.
    """
    if num_rows < options.batch_size:
        raise DataError(
            f"{num_rows} rows to train on, fewer than one batch of {options.batch_size}",
            mend="Give more rows, or set train.batch_size to fewer.",
        )
    if options.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UnsupportedError(
            f"{type(model).__name__} has no gradient checkpointing",
            mend="Leave train.gradient_checkpointing out; a smaller train.micro_batch_size needs less memory too.",
        )
    if compares_rows and num_processes() > 1:
        raise UnsupportedError(
            f"the rows of a batch are compared with each other, and each of {num_processes()} processes would see "
            "its own only",
            mend="Train with one process: without torchrun.",
        )
    checkpoints = Checkpoints(workplace / CHECKPOINTS)
    if not checkpoints.has_state:
        checkpoints.check_space(model)


def draws_dropout(model: PreTrainedModel) -> bool:
    """Whether training draws random numbers: a dropout layer, or a share in the configuration."""
    if any(isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules()):
        return True
    shares = [value for name, value in model.config.to_dict().items() if "drop" in name]
    return any(isinstance(value, float) and value > 0 for value in shares)


def has_batch_norm(model: PreTrainedModel) -> bool:
    """Whether a row's outputs in training depend on the rows that are computed with it."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def what_differs(model: PreTrainedModel, *, compares_rows: bool) -> str:
    """Say what is another with another number of rows computed at once; empty where it is only how sums are rounded."""
    found = [
        "dropout is drawn otherwise" if draws_dropout(model) else "",
        "batch norm's statistics are of fewer rows" if has_batch_norm(model) else "",
        "rows are compared with fewer others" if compares_rows else "",
    ]
    return ", and ".join(text for text in found if text)
