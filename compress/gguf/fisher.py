"""How much each row and column of a language model's matrices matters to what the model says.

For a small change δ of the weights, the mean KL divergence per token is ½ δᵀFδ, F the Fisher information: the mean
square of the gradient of log p(y) for labels y sampled from the model itself. Sampled labels are independent given
the text, so one backward pass over a whole window gives the sum over its tokens, what a weight does through later
tokens included. Of F only the diagonal is kept, as one weight for each row times one for each column: rounding
errors of different weights are as good as independent.

Axes: E experts (1 for plain matrices), O rows (outputs), I columns (inputs).

Source: Martens, "New Insights and Perspectives on the Natural Gradient Method", 2020, sections 5 and 9 (the quadratic
form); Kunstner et al., "Limitations of the Empirical Fisher Approximation", 2019 (why labels are sampled); Shazeer
and Stern, "Adafactor", 2018, section 3 (rows times columns).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress

__all__ = ["Fisher", "FisherFactor", "collect_fisher"]

# transformers keeps the matrices of all experts of a layer in one parameter, gate above up.
_FUSED_EXPERTS = re.compile(r"(?:^|\.)layers\.(\d+)\..*\.experts\.(gate_up_proj|down_proj)")
_EXPERTS_PARTS: Mapping[str, tuple[str, ...]] = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FisherFactor:
    """What errors in one matrix cost: a row's weight times a column's."""

    rows: NDArray[np.float64]
    """Per token, of shape [E, O], in the order of the GGUF tensor's rows."""
    columns: NDArray[np.float64]
    """Of shape [E, I]; they sum to one for each expert."""

    def damage_of_rows(self, change_RI: NDArray[np.float32], expert: int = 0) -> NDArray[np.float64]:
        """What a change of single rows costs, if their weight were one.

        Args:
            change_RI: Changed minus unchanged values of any rows, float32 of shape [R, I].
            expert: Whose rows.

        Returns:
            Mean KL divergence per token, in nats, over the row's weight; of shape [R].
        """
        damage_R: NDArray[np.float64] = np.square(change_RI) @ self.columns[expert] / 2
        return damage_R


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fisher:
    """What was collected."""

    factors: Mapping[str, FisherFactor]
    """By GGUF tensor. A head that is also the embeddings has one for both uses."""
    num_tokens: int
    num_windows: int


@dataclass(slots=True)
class _Sums:
    rows: torch.Tensor
    columns: torch.Tensor

    def factor(self, num_tokens: int, order: NDArray[np.intp] | None) -> FisherFactor:
        rows_EO = self.rows.numpy()
        columns_EI = self.columns.numpy()
        totals_E1 = columns_EI.sum(axis=1, keepdims=True)
        return FisherFactor(
            rows=(rows_EO if order is None else rows_EO[:, order]) / num_tokens,
            columns=np.divide(columns_EI, totals_E1, out=np.zeros_like(columns_EI), where=totals_E1 > 0),
        )


def collect_fisher(
    model: torch.nn.Module,
    names: Mapping[str, str],
    windows: Sequence[Sequence[int]],
    *,
    row_orders: Mapping[str, NDArray[np.intp]] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Fisher:
    """Run a causal language model forward and backward over text, and keep what errors in its matrices cost.

    Needs room for the model, the activations of one window and the gradient of one matrix.

    Args:
        model: A transformers model in float32 that returns `logits`. Its weights are not changed.
        names: Parameter, or its module → GGUF tensor. Vectors are passed over; what the checkpoint names expert by
            expert and the model keeps in one parameter is found there.
        windows: Tokens of calibration text, each window read on its own; 16 of 256 tokens are enough, and shorter
            ones weigh what reaches later tokens too lightly.
        row_orders: GGUF tensor → which row of the parameter lies at each of its rows, where that differs.
        seed: Of the sampled labels.
        progress: Told of each window.

    Returns:
        Factors of all matrices that text reaches.

    Raises:
        UsageError: there is no window of two tokens or more, no name is a parameter's, or gradients are not finite.
    """
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise UsageError("there is no calibration text of two tokens or more", mend="Give more text to calibrate on.")
    wanted = {name.removesuffix(".weight"): tensor for name, tensor in names.items() if not name.endswith(".bias")}
    sums: dict[str, _Sums] = {}
    with _gradients(model, wanted, sums):
        generator = torch.Generator().manual_seed(seed)
        for window in progress.track(windows, "Weigh errors"):
            _read(model, torch.tensor(window), generator)
    num_tokens = sum(len(window) for window in windows)
    orders = row_orders or {}
    factors = {tensor: one.factor(num_tokens, orders.get(tensor)) for tensor, one in sums.items()}
    for tensor, factor in factors.items():
        if not np.isfinite(factor.rows).all():
            raise UsageError(
                f"the gradients of {tensor} are not finite on this text",
                mend="The model is broken, or overflows its type: load it in float32.",
            )
    return Fisher(factors=factors, num_tokens=num_tokens, num_windows=len(windows))


def _read(model: torch.nn.Module, tokens_T: torch.Tensor, generator: torch.Generator) -> None:
    """One window: labels are drawn from what the model says of each next token."""
    logits_TV = model(input_ids=tokens_T[None], use_cache=False).logits[0].float()
    log_p_TV = logits_TV.log_softmax(dim=-1)
    labels_T1 = torch.multinomial(log_p_TV.detach().exp(), num_samples=1, generator=generator)
    log_p_TV.gather(1, labels_T1).sum().backward()


@contextmanager
def _gradients(model: torch.nn.Module, wanted: Mapping[str, str], sums: dict[str, _Sums]) -> Iterator[None]:
    """Inside the block, gradients of the matrices that have a place in the file are added up and dropped."""
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training = model.training
    handles = []
    model.eval()
    try:
        for name, parameter in model.named_parameters():
            owner = model.get_submodule(name.rpartition(".")[0])
            tensors = _tensors_of(name, owner, wanted)
            parameter.requires_grad_(bool(tensors) and parameter.ndim in (2, 3))
            if parameter.requires_grad:
                transposed = type(owner).__name__ == "Conv1D"  # of transformers
                register: Any = parameter.register_post_accumulate_grad_hook
                handles.append(register(_adder(sums, tensors, transposed)))
        if not handles:
            raise UsageError(
                "none of the names is a matrix of the model", mend="The names must be of this very checkpoint."
            )
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, before in required.items():
            parameter.requires_grad_(before)
        model.train(training)


def _tensors_of(name: str, owner: torch.nn.Module, wanted: Mapping[str, str]) -> tuple[str, ...]:
    """The tensors whose rows follow each other in a parameter; none if it has no place in the file."""
    if (tensor := wanted.get(name.removesuffix(".weight"))) is not None:
        return (tensor,)
    found = _FUSED_EXPERTS.search(name)
    if found is None or getattr(owner, "is_transposed", False) or not getattr(owner, "is_concatenated", True):
        return ()
    tensors = tuple(f"blk.{found[1]}.ffn_{part}_exps.weight" for part in _EXPERTS_PARTS[found[2]])
    return tensors if set(tensors) <= set(wanted.values()) else ()


def _adder(sums: dict[str, _Sums], tensors: Sequence[str], transposed: bool) -> Callable[[torch.Tensor], None]:
    def add(parameter: torch.Tensor) -> None:
        gradient: Any = parameter.grad
        parameter.grad = None
        squares_EOI = gradient.square_()
        squares_EOI = squares_EOI.T if transposed else squares_EOI
        squares_EOI = squares_EOI if squares_EOI.ndim == 3 else squares_EOI[None]
        for tensor, part_EOI in zip(tensors, squares_EOI.chunk(len(tensors), dim=1), strict=True):
            rows_EO, columns_EI = part_EOI.sum(2).double(), part_EOI.sum(1).double()
            known = sums.get(tensor)
            if known is None:
                sums[tensor] = _Sums(rows_EO, columns_EI)
            else:
                known.rows += rows_EO
                known.columns += columns_EI

    return add
