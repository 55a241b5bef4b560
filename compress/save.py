"""Save a model that was changed as the checkpoint that it came from would have been saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.carry import carry_side_files, write_config
from compress.checkpoint import open_checkpoint
from compress.quiet import quiet_libraries
from compress.skeleton import TORCH_DTYPES, load_config
from edgesmith.files import storage_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["changed_settings", "save_model"]

_OF_LOADING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def save_model(model: PreTrainedModel, source: Path, out: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model as a checkpoint: weights, the source's `config.json` where nothing changed, its other files.

    Args:
        model: Made from the checkpoint in `source`. Not modified.
        source: Checkpoint folder.
        out: Exists; weights and configuration in it are written over.
        dtype: Of the floating-point weights; as `source` has most of its own when None.

    Raises:
        CheckpointError: a file of `source` is a link out of its folder.
        StorageError: a file cannot be written.
    """
    checkpoint = open_checkpoint(source)
    kept = dtype or TORCH_DTYPES[checkpoint.dtype]
    state: dict[str, Any] = {}
    cast: dict[int, torch.Tensor] = {}  # tied weights stay one tensor
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in cast:
            cast[id(value)] = value.detach().to(kept) if value.is_floating_point() else value.detach()
        state[name] = cast[id(value)]
    with storage_errors(out), quiet_libraries():
        model.save_pretrained(str(out), state_dict=state)
    config = dict(checkpoint.config) | changed_settings(load_config(checkpoint), model.config)
    config["architectures"] = [type(model).__name__]
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
    write_config(out, config)
    for path in out.glob("*.safetensors"):
        shutil.copymode(out / "config.json", path)  # safetensors lets only the owner read what it writes
    carry_side_files(source, out)


def changed_settings(before: Any, after: Any) -> dict[str, Any]:
    """Find the values of a configuration that differ from another's, under the names that its file has."""
    old, new = before.to_dict(), after.to_dict()
    changed = {name: new[name] for name in new if name not in _OF_LOADING and new[name] != old.get(name)}
    return {name: value for name, value in changed.items() if not name.startswith("_")}
