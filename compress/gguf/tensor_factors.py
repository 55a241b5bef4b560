"""What errors cost in every matrix that can be chosen for: as gradients say, or as they cost in other matrices.

Axes: E experts (1 for plain matrices), O rows (outputs), I columns (inputs).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compress.gguf.fisher import Fisher, FisherFactor
from compress.gguf.imatrix_data import Imatrix
from compress.gguf.quantize_plan import matrices
from compress.gguf.tensor_kinds import EMBEDDINGS, NEVER_QUANTIZED
from edgesmith.errors import UsageError
from serve.runtime.gguf_file import GgufFile, GgufTensor

__all__ = ["find_factors"]


def find_factors(file: GgufFile, fisher: Fisher, imatrix: Imatrix | None) -> dict[str, FisherFactor]:
    """Find a factor for every matrix but embeddings that no gradient is known for.

    Where a matrix has no gradients, its errors are weighed by the mean squares of its inputs (all alike without an
    importance matrix), and cost as much as such an error costs on average in the feed-forward layers that have
    gradients; in all layers, if no feed-forward layer has.

    Args:
        file: The unquantized model.
        fisher: Collected from it.
        imatrix: Of the same model.

    Returns:
        Factors by tensor, in the order of the file.

    Raises:
        UsageError: `fisher` is of another model.
    """
    choosable = [one for one in matrices(file) if not one.name.endswith(NEVER_QUANTIZED)]
    measured = [one for one in choosable if one.name in fisher.factors]
    for tensor in measured:
        _check(tensor, fisher.factors[tensor.name])
    layers = [one for one in measured if one.name not in EMBEDDINGS]
    models = [one for one in layers if ".ffn_" in one.name] or layers
    factors = {}
    for tensor in choosable:
        if tensor.name in fisher.factors:
            factors[tensor.name] = fisher.factors[tensor.name]
        elif models and tensor.name not in EMBEDDINGS:
            factors[tensor.name] = _estimate(tensor, models, fisher, imatrix)
    return factors


def _check(tensor: GgufTensor, factor: FisherFactor) -> None:
    shape_EOI = (*factor.rows.shape, factor.columns.shape[1])
    if shape_EOI != _shape(tensor):
        raise UsageError(
            f"{tensor.name} has {list(shape_EOI)} experts, rows and columns in the model that was read, "
            f"{list(_shape(tensor))} in the GGUF file",
            mend="Read the very checkpoint that was converted.",
        )


def _shape(tensor: GgufTensor) -> tuple[int, int, int]:
    num_columns, num_rows, num_experts = (*tensor.shape, 1, 1)[:3]
    return num_experts, num_rows, num_columns


def _estimate(
    tensor: GgufTensor, models: Sequence[GgufTensor], fisher: Fisher, imatrix: Imatrix | None
) -> FisherFactor:
    """All rows of an expert alike, columns by their inputs."""
    entries = imatrix.entries if imatrix is not None and tensor.name in imatrix.entries else {}
    known = [one for one in models if one.name in entries]
    weighed = imatrix if known else None
    rate = float(np.mean([_rate(one, fisher.factors[one.name], weighed) for one in known or models]))
    squares_EI = _mean_squares(tensor, weighed)
    totals_E1 = squares_EI.sum(axis=1, keepdims=True)
    num_experts, num_rows, num_columns = _shape(tensor)
    return FisherFactor(
        rows=np.broadcast_to(rate * totals_E1, (num_experts, num_rows)).copy(),
        columns=np.divide(squares_EI, totals_E1, out=np.full_like(squares_EI, 1 / num_columns), where=totals_E1 > 0),
    )


def _rate(tensor: GgufTensor, factor: FisherFactor, imatrix: Imatrix | None) -> float:
    """Fisher information over the mean square of the inputs, on average over the matrix."""
    squares = float(_mean_squares(tensor, imatrix).sum()) * factor.rows.shape[1]
    return float(factor.rows.sum()) / squares if squares > 0 else 0.0


def _mean_squares(tensor: GgufTensor, imatrix: Imatrix | None) -> NDArray[np.float64]:
    """Of each expert's inputs, over all tokens, those that went to other experts included; of shape [E, I]."""
    num_experts, _, num_columns = _shape(tensor)
    if imatrix is None:
        return np.ones((num_experts, num_columns))
    return imatrix.entries[tensor.name].sums.reshape(num_experts, num_columns) / max(1, imatrix.num_tokens)
