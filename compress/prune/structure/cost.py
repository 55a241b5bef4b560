"""What a model costs: parameters, multiply-accumulates of one row, time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from compress.prune.batches import Batch, outputs_of
from compress.quiet import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["count_macs", "count_matrix_macs", "count_params", "one_row", "time_model"]

_REPEATS = 5


def one_row(batch: Batch) -> dict[str, Tensor]:
    """The first row of a batch."""
    return {name: value[:1] for name, value in batch.items()}


def count_params(model: PreTrainedModel) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: PreTrainedModel, row: Batch) -> int:
    """Multiply-accumulates of all matrix products and convolutions for one row, attention's included.

    They are counted as they run; element-wise work and looking up embeddings have none.
    """
    counter = FlopCounterMode(display=False)
    with _plain_attention(model), torch.no_grad(), counter:
        outputs_of(model, row)
    return int(counter.get_total_flops()) // 2


def count_matrix_macs(model: PreTrainedModel, row: Batch) -> dict[str, int]:
    """Multiply-accumulates for one row of every weight: name → how many.

    Together they are fewer than `count_macs` says, by attention's products of queries, keys and values.
    """
    found: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, _: object, output: Tensor) -> None:
            weight = module.get_parameter("weight")
            channels = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
            found[name] = found.get(name, 0) + weight.numel() * (output.numel() // channels)

        return hook

    kinds = nn.Linear | Conv1D | nn.Conv2d
    modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    handles = [module.register_forward_hook(watch(f"{name}.weight")) for name, module in modules.items()]
    try:
        with torch.inference_mode():
            outputs_of(model, row)
    finally:
        for handle in handles:
            handle.remove()
    return found


def time_model(model: PreTrainedModel, row: Batch) -> float:
    """Seconds for one row, the best of a few times."""
    times = []
    with torch.inference_mode(), quiet_libraries():
        model(**row)
        for _ in range(_REPEATS):
            start = time.perf_counter()
            model(**row)
            times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Compute attention as products that can be counted, not in one fused operator."""
    before: Mapping[str, Any] | str | None = model.config._attn_implementation
    if before not in ("sdpa", "flash_attention_2"):
        yield
        return
    with quiet_libraries():
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
