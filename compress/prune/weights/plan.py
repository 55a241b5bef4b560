"""What will be pruned and what stays dense: decided, and refused where it cannot be, before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from compress.prune.weights.block_model import BlockModel
from compress.prune.weights.blocks import Matrix, matrices_of
from compress.prune.weights.result import LeftDense
from compress.prune.weights.selection import Selection, check_fits, selection_of
from compress.skeleton import embeddings_of
from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.recipe import PruneOptions

__all__ = ["PrunePlan", "plan_pruning"]


@dataclass(frozen=True)
class PrunePlan:
    """What happens to each tensor."""

    method: str
    selection: Selection
    matrices: tuple[tuple[Matrix, ...], ...]
    """Of each block."""
    source_of: Mapping[str, str]
    """Matrix → tensor of the checkpoint."""
    stored: Mapping[str, bool]
    """Tensor that is pruned → whether it is stored as [inputs, outputs]."""
    left_dense: tuple[LeftDense, ...]
    num_vocabulary: int | None
    context_length: int | None

    def check_batches(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Refuse calibration data that the model cannot read.

        Raises:
            UsageError: a batch is empty or too long, or has a token that is not in the vocabulary.
        """
        for number, batch in enumerate(batches):
            if not batch or any(tensor.numel() == 0 for tensor in batch.values()):
                raise UsageError(f"calibration batch {number} is empty")
            ids = batch.get("input_ids")
            if ids is None:
                continue
            if self.context_length is not None and ids.shape[1] > self.context_length:
                raise UsageError(
                    f"calibration batch {number} has rows of {ids.shape[1]:,} tokens, the model reads at most "
                    f"{self.context_length:,}",
                    mend="Cut the text into shorter windows.",
                )
            if self.num_vocabulary is not None and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_vocabulary:
                raise UsageError(
                    f"calibration batch {number} has tokens from {int(ids.min())} to {int(ids.max())}, the model has "
                    f"{self.num_vocabulary:,}",
                    mend="Use the model's own tokenizer.",
                )


def plan_pruning(model: BlockModel, options: PruneOptions) -> PrunePlan:
    """Decide what is pruned.

    Raises:
        UsageError: the sparsity or pattern cannot be had, or does not fit a matrix.
        UnsupportedError: matrices share their weights, or are not stored as they are.
    """
    selection = selection_of(options)
    folder = model.checkpoint.folder
    matrices = tuple(tuple(matrices_of(block, model.block_name(index))) for index, block in enumerate(model.blocks))
    source_of: dict[str, str] = {}
    stored: dict[str, bool] = {}
    owners: dict[int, str] = {}
    for matrix in (one for block in matrices for one in block):
        num_outputs, num_inputs = matrix.weight().shape
        check_fits(f"{folder}: {matrix.name}", num_outputs, num_inputs, selection)
        other = owners.setdefault(id(matrix.module._parameters["weight"]), matrix.name)
        source_of[matrix.name] = source = _source_of(model, matrix.name, other)
        stored[source] = matrix.is_transposed
    limit = getattr(model.model.config.get_text_config(), "max_position_embeddings", None)
    embeddings, _ = embeddings_of(model.model)
    return PrunePlan(
        method=options.method,
        selection=selection,
        matrices=matrices,
        source_of=source_of,
        stored=stored,
        left_dense=_left_dense(model, set(stored)),
        num_vocabulary=getattr(embeddings, "num_embeddings", None),
        context_length=limit if isinstance(limit, int) else None,
    )


def _source_of(model: BlockModel, name: str, other: str) -> str:
    """Name the one tensor of the checkpoint that a matrix is."""
    aliases = [alias for alias in model.map.aliases(name) if alias != name]
    if other != name or aliases:
        raise UnsupportedError(
            f"{model.checkpoint.folder}: {name} and {other if other != name else aliases[0]} share their weights, and "
            "each would be pruned for its own inputs",
            mend="Prune structures instead (method structured), or a model whose layers have weights of their own.",
        )
    group = model.map.group_of[name]
    if group.converter is not None:
        raise UnsupportedError(
            f"{model.checkpoint.folder}: {name} is stored as {', '.join(group.sources[:3])}, which is put together "
            "when the model is loaded",
            mend="Prune structures instead: method structured.",
        )
    return group.sources[0]


def _left_dense(model: BlockModel, pruned: set[str]) -> tuple[LeftDense, ...]:
    """Group the tensors that stay, each by the reason why."""
    parameter_of = {source: group.targets[0] for group in model.map.groups for source in group.sources}
    embeddings, head = embeddings_of(model.model)
    path_of = {module: path for path, module in model.model.named_modules()}
    reasons: dict[str, list[str]] = {}
    for source, entry in model.checkpoint.entries.items():
        if source in pruned:
            continue
        name = parameter_of.get(source)
        owner = name.rpartition(".")[0] if name else ""
        if name is None:
            reason = f"no part of {type(model.model).__name__}"
        elif name.startswith(f"{model.path}."):
            is_matrix = len([size for size in entry.shape if size > 1]) > 1
            reason = "in a block, but of no linear layer" if is_matrix else "norms and biases of the blocks"
        elif embeddings is not None and owner == path_of[embeddings]:
            reason = "embeddings" + (", which are the head too" if _is_tied(model, name) else "")
        elif head is not None and owner == path_of[head]:
            reason = "the head"
        else:
            reason = "before or after the blocks"
        reasons.setdefault(reason, []).append(source)
    entries = model.checkpoint.entries
    return tuple(
        LeftDense(
            reason=reason,
            num_tensors=len(names),
            num_weights=sum(math.prod(entries[name].shape) for name in names),
            examples=tuple(names[:3]),
        )
        for reason, names in reasons.items()
    )


def _is_tied(model: BlockModel, name: str) -> bool:
    return len(model.map.aliases(name)) > 1
