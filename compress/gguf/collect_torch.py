"""Collect an importance matrix from the torch model: what each linear layer is fed with, on real text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from compress.checkpoint import Checkpoint, open_checkpoint, quantization_of
from compress.gguf.imatrix_data import Imatrix, ImatrixSums
from compress.gguf.tensor_kinds import NEVER_QUANTIZED, name_kinds
from compress.gguf.windows import check_windows
from compress.skeleton import quiet_transformers
from edgesmith.errors import CheckpointError, UnsupportedError, UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["collect_imatrix_torch"]


def collect_imatrix_torch(
    checkpoint: Path,
    names: Mapping[str, str],
    windows: Sequence[Sequence[int]],
    *,
    dataset: str = "",
    threads: int = 1,
    progress: Progress = SILENT,
) -> Imatrix:
    """Read windows of text with the model, adding up the squares of the inputs of its matrices.

    No logits are computed, and a window's activations are gone when the next one is read: beside the model, memory
    holds two numbers for each input.

    Args:
        checkpoint: Hugging Face folder, not quantized.
        names: Parameter → GGUF tensor, from `export.gguf.tensor_names`.
        windows: Numbers of tokens; each window is read on its own.
        dataset: What to call the text in the matrix.
        threads: Of torch.
        progress: Told of each window.

    Returns:
        Sums and counts for every matrix that is a linear layer, the head included. Matrices that have none, such as
        those of experts, which the model keeps in one parameter, are noted: `collect_imatrix_runtime` has them.

    Raises:
        CheckpointError: the checkpoint is damaged, or its weights do not fit its configuration.
        UnsupportedError: it is quantized, or its architecture is unknown to transformers.
        UsageError: there is no text, a window is too long or has a token that the model lacks, or the inputs are
            not finite.
    """
    model = _load(open_checkpoint(checkpoint))
    limit = getattr(model.config, "max_position_embeddings", None)
    check_windows(windows, num_vocabulary=int(model.get_input_embeddings().num_embeddings), context_length=limit)
    watch = _Watch(model, names)
    if watch.unseen:
        progress.note(
            f"no inputs are collected for {name_kinds(watch.unseen)}: no linear layers of the torch model; "
            "collect from the GGUF file to have them"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), watch.hooked():
            for window in progress.track(windows, "Collect importance matrix"):
                watch.read(window)
    finally:
        torch.set_num_threads(before)
    return watch.sums.result(dataset=dataset, num_windows=len(windows), window_length=max(map(len, windows)))


def _load(checkpoint: Checkpoint) -> PreTrainedModel:
    if found := quantization_of(checkpoint.config):
        raise UnsupportedError(
            f"{checkpoint.folder}: its weights are quantized ({found})", mend="Collect from the unquantized model."
        )
    generates = any(str(name).endswith(("CausalLM", "LMHeadModel")) for name in checkpoint.config["architectures"])
    loader = transformers.AutoModelForCausalLM if generates else transformers.AutoModel
    try:
        with quiet_transformers():
            model, info = loader.from_pretrained(
                str(checkpoint.folder),
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint.folder}: cannot be loaded: {error}") from error
    except (ValueError, ImportError, KeyError, AttributeError) as error:
        raise UnsupportedError(f"{checkpoint.folder}: transformers cannot load it: {error}") from error
    if missing := sorted(name for name in info["missing_keys"] if "pooler." not in name):
        raise CheckpointError(
            f"{checkpoint.folder}: lacks {len(missing)} weights of the model: {', '.join(missing[:5])}",
            mend="Save the whole model with save_pretrained; an adapter alone is merged first.",
        )
    return model.eval().requires_grad_(False)


class _Watch:
    """Listens at the linear layers of a model that have a place in the GGUF file."""

    def __init__(self, model: PreTrainedModel, names: Mapping[str, str]) -> None:
        self.sums = ImatrixSums()
        self._model = model
        self._layers: dict[nn.Module, str] = {}
        head = model.get_output_embeddings()
        self._head: str | None = None
        for path, module in model.named_modules():
            name = _find(names, f"{path}.weight")
            if module is head:
                self._head = name or _name_of_head(names)
            elif name is None or isinstance(module, nn.Embedding):
                continue
            elif isinstance(module, nn.Linear | Conv1D):
                self._layers[module] = name
        seen = {*self._layers.values(), self._head}
        self.unseen = [name for name in dict.fromkeys(names.values()) if name not in seen and _is_multiplied(name)]
        if not self._layers:
            raise UsageError(
                f"none of the {len(names)} names is a linear layer of the model",
                mend="Take the names from the checkpoint that is read here.",
            )
        # Layers that share their input follow each other: its squares are added up once.
        self._last: tuple[torch.Tensor, np.ndarray[Any, np.dtype[np.float64]]] | None = None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Listen inside the block."""
        handles = [layer.register_forward_pre_hook(self._hear) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = None

    def read(self, window: Sequence[int]) -> None:
        """Run the model on one window, up to the states that the head reads."""
        ids = torch.tensor([list(window)])
        recurrent = {} if self._head is None else {"use_cache": False}
        states = self._model.base_model(input_ids=ids, return_dict=True, **recurrent).last_hidden_state
        if self._head is not None:
            self._add(self._head, states)

    def _hear(self, layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self._add(self._layers[layer], arguments[0])

    def _add(self, name: str, inputs: torch.Tensor) -> None:
        if self._last is None or self._last[0] is not inputs:
            self._last = inputs, inputs.reshape(-1, inputs.shape[-1]).double().square_().sum(0).numpy()
        self.sums.add_squares(name, self._last[1], inputs.numel() // inputs.shape[-1])


def _is_multiplied(name: str) -> bool:
    """Whether an importance matrix can serve the tensor, as far as its name tells."""
    if not name.endswith(".weight") or name.endswith(("_norm.weight", *NEVER_QUANTIZED)):
        return False
    return name != "token_embd.weight"  # rows of it are looked up; where it is the head too, that is seen


def _name_of_head(names: Mapping[str, str]) -> str | None:
    """The tensor that the runtime multiplies with last, where the checkpoint calls the head by another name."""
    return next((name for name in ("output.weight", "token_embd.weight") if name in names.values()), None)


def _find(names: Mapping[str, str], parameter: str) -> str | None:
    """Look a parameter up; the checkpoint may be of the model with or without its outermost module."""
    if parameter in names:
        return names[parameter]
    found = {name for key, name in names.items() if key.endswith(f".{parameter}") or parameter.endswith(f".{key}")}
    return found.pop() if len(found) == 1 else None
