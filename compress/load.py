"""Load a checkpoint folder into torch: safetensors only, no code of its own, fp32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import transformers
from safetensors import SafetensorError

from compress.quiet import quiet_libraries
from edgesmith.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ModelKind", "load_model"]


class ModelKind(Protocol):
    """What loading asks about a task."""

    @property
    def name(self) -> str:
        """Of the task."""

    @property
    def model_class(self) -> str:
        """The transformers auto class that loads it."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs that are needed."""


def load_model(checkpoint: Path, task: ModelKind, *, attention: Literal["eager"] | None = None) -> PreTrainedModel:
    """Load the model of a task, in fp32 and evaluation mode.

    Args:
        checkpoint: Hugging Face folder with `config.json` and safetensors weights.
        task: Names the model class.
        attention: Attention implementation; by default the one that transformers chooses.

    Returns:
        The model, on the CPU, every weight from the checkpoint.

    Raises:
        CheckpointError: The folder has no safetensors weights, they are damaged, do not fit the configuration,
            or lack a weight that the task's outputs need.
        UnsupportedError: The architecture has no model for this task, or needs code from the checkpoint.
    """
    _check_folder(checkpoint)
    loader = getattr(transformers, task.model_class)
    try:
        with quiet_libraries():
            model, info = loader.from_pretrained(
                str(checkpoint),
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name,
            )
    except SafetensorError as error:
        raise CheckpointError(
            f"{checkpoint}: its weights cannot be read: {error}", mend="Get the checkpoint again from its source."
        ) from error
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint}: cannot be loaded: {_first_line(error)}") from error
    except (ValueError, ImportError, KeyError, AttributeError) as error:
        raise UnsupportedError(
            f"{checkpoint}: cannot be loaded as {task.model_class}: {_first_line(error)}",
            mend="Use a checkpoint whose architecture transformers itself has; code from a checkpoint is never run.",
        ) from error
    _check_weights(checkpoint, task, info)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def _check_folder(checkpoint: Path) -> None:
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint}: has no config.json", mend="Give a Hugging Face model folder.")
    if not any(checkpoint.glob("*.safetensors")):
        raise CheckpointError(
            f"{checkpoint}: has no .safetensors weights",
            mend="Save it with `model.save_pretrained(folder)`; pickled weights can run code and are never loaded.",
        )


def _check_weights(checkpoint: Path, task: ModelKind, info: Mapping[str, Any]) -> None:
    """Refuse a model with weights that were made up because the checkpoint has none."""
    for key, stored, expected in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"{checkpoint}: the weight {key} has shape {list(stored)}, but config.json asks for {list(expected)}",
            mend="The weights and config.json are not of one model: get both from one source.",
        )
    missing = sorted(str(key) for key in info["missing_keys"] if not _is_unused(str(key), task))
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise CheckpointError(
            f"{checkpoint}: lacks {len(missing)} weights that {task.name} needs: {shown}",
            mend="Fine-tune the model for this task first, or name the task it was trained for.",
        )


def _is_unused(key: str, task: ModelKind) -> bool:
    """Whether a weight has no part in the task's outputs: the pooler of an encoder whose states are asked for."""
    return "pooler." in key and task.output_names == ("last_hidden_state",)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
