"""A model of which only the part that is being run has weights in memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from compress.checkpoint import Checkpoint, quantization_of
from compress.parameter_map import ParameterMap
from compress.prune.weights.blocks import find_blocks
from compress.skeleton import TORCH_DTYPES, load_config, quiet_transformers, resolve_model_class
from edgesmith.errors import CheckpointError, UnsupportedError

__all__ = ["BlockModel"]


class BlockModel:
    """A checkpoint's model, without weights, whose parts are read when they are needed.

    Args:
        checkpoint: Holds unquantized weights.

    Attributes:
        model: Parameters on the meta device, buffers in place; float32, evaluation mode.
        map: Which tensors of the checkpoint make up which parameters.
        blocks: The repeated blocks, in the order in which they are run.
        path: Name of the list of blocks.

    Raises:
        CheckpointError: the configuration describes no model, or the weights are not those of it.
        UnsupportedError: the weights are quantized, or the model has no repeated blocks.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        if found := quantization_of(checkpoint.config):
            raise UnsupportedError(
                f"{checkpoint.folder}: its weights are quantized ({found})",
                mend="Prune the unquantized checkpoint, and quantize what comes out.",
            )
        self.checkpoint = checkpoint
        self.model = _build(checkpoint)
        self.map = ParameterMap(checkpoint, self.model)
        self.path, self.blocks = find_blocks(self.model, str(checkpoint.folder))
        for index in range(len(self.blocks)):
            for name in self.parameters_of(f"{self.path}.{index}"):
                self._check(name)

    def block_name(self, index: int) -> str:
        """Name of a block in the model."""
        return f"{self.path}.{index}"

    def parameters_of(self, path: str) -> dict[str, nn.Parameter]:
        """Name, in the model, and parameter of all that a module owns."""
        module = self.model.get_submodule(path)
        return {f"{path}.{name}": parameter for name, parameter in module.named_parameters(remove_duplicate=False)}

    def block_bytes(self, index: int) -> int:
        """Bytes of a block's weights in float32."""
        shapes = [parameter.shape for parameter in self.parameters_of(self.block_name(index)).values()]
        return sum(4 * math.prod(shape) for shape in shapes)

    @contextmanager
    def loaded(self, index: int) -> Iterator[nn.Module]:
        """Hold a block's weights inside the block of code.

        Raises:
            CheckpointError: a weight is missing, of another shape, or no number.
        """
        block = self.blocks[index]
        try:
            for path, module in block.named_modules(prefix=self.block_name(index)):
                self._load(path, module)
            yield block
        finally:
            for module in block.modules():
                _unload(module)

    def others(self) -> list[tuple[str, nn.Module]]:
        """Name and module of all that is outside the blocks and has weights or buffers of its own."""
        inside = {module for block in self.blocks for module in block.modules()}
        return [
            (path, module)
            for path, module in self.model.named_modules()
            if module not in inside and any(True for _ in (*module.parameters(False), *module.buffers(False)))
        ]

    @contextmanager
    def loading_others(self) -> Iterator[None]:
        """Read the weights of every module outside the blocks when it is run inside the block of code, not before."""
        handles = []
        touched: list[nn.Module] = []

        def load(module: nn.Module, path: str) -> None:
            if module not in touched:
                touched.append(module)
                self._load(path, module)

        for path, module in self.others():
            handles.append(module.register_forward_pre_hook(lambda module, _, path=path: load(module, path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in touched:
                _unload(module)

    def _load(self, path: str, module: nn.Module) -> None:
        for own, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                name = f"{path}.{own}" if path else own
                self._check(name)
                module._parameters[own] = nn.Parameter(self.map.read(name), requires_grad=False)
        for own, buffer in module._buffers.items():
            name = f"{path}.{own}" if path else own
            if buffer is not None and buffer.is_floating_point() and self.map.base_shape(name) is not None:
                buffer.copy_(self.map.read(name))

    def _check(self, name: str) -> None:
        """Check that the checkpoint has a parameter, in the shape that its configuration says."""
        found, needed = self.map.base_shape(name), self.map.shapes[name]
        if found is None:
            raise CheckpointError(
                f"{self.checkpoint.folder}: lacks {name!r}, which {type(self.model).__name__} has",
                mend="Save the whole model with save_pretrained; an adapter alone is merged first.",
            )
        if found != needed:
            raise CheckpointError(
                f"{self.checkpoint.folder}: {name!r} has shape {list(found)}, its config.json says {list(needed)}",
                mend="config.json and weights are of two models: copy the checkpoint again.",
            )
        group = self.map.group_of.get(name)
        stored = self.checkpoint.entries[group.sources[0]].dtype if group else "F32"
        if stored not in TORCH_DTYPES:
            raise UnsupportedError(
                f"{self.checkpoint.folder}: {name!r} is stored as {stored}; prune reads {', '.join(TORCH_DTYPES)}",
                mend="Prune the checkpoint in a plain floating-point type.",
            )


def _build(checkpoint: Checkpoint) -> Any:
    config = copy.deepcopy(load_config(checkpoint))
    requested = None if config.architectures else "AutoModel"
    model_class = resolve_model_class(config, requested=requested, task_types=())
    for part in (config, config.get_text_config()):
        part.use_cache = False  # blocks are run on whole rows, one after the other
    try:
        with quiet_transformers(), _parameters_on_meta():
            model = model_class._from_config(config, dtype=torch.float32)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, ImportError) as error:
        raise CheckpointError(
            f"{checkpoint.folder}: no {model_class.__name__} can be built from its config.json: {error}",
            mend="Check the configuration against the model's documentation.",
        ) from error
    return model.eval().requires_grad_(False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Give modules that are made inside the block parameters without memory.

    Buffers are computed as usual, unlike under `torch.device("meta")`: no checkpoint stores those of rotary embeddings.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _unload(module: nn.Module) -> None:
    for own, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[own] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
