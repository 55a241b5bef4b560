"""Prune single weights of a checkpoint in one shot, with one block of the model in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.carry import carry_side_files, write_config
from compress.checkpoint import Checkpoint, open_checkpoint
from compress.checkpoint_writer import CheckpointWriter
from compress.memory import PeakMemory, release_free_memory
from compress.prune.weights.block_model import BlockModel
from compress.prune.weights.blocks import Matrix
from compress.prune.weights.calibration import BlockInputs, capture_inputs
from compress.prune.weights.masks import magnitude_mask, wanda_mask
from compress.prune.weights.measure import measure_matrices
from compress.prune.weights.plan import PrunePlan, plan_pruning
from compress.prune.weights.result import SparsityResult
from compress.prune.weights.sparsegpt import DAMPING, InverseFactor, factor_inverse, prune_sparsegpt
from compress.prune.weights.statistics import InputStatistics, LayerInputs
from compress.skeleton import TORCH_DTYPES
from compress.tensor_file import count_nonfinite
from edgesmith.errors import CheckpointError, UsageError
from edgesmith.files import publish_folder, storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress
from edgesmith.recipe import PruneOptions

__all__ = ["Batch", "prune_weights"]

Batch: TypeAlias = Mapping[str, Tensor | NDArray[Any]]
"""Inputs of the model, by name: `{"input_ids": int64 [rows, length], …}`."""


def prune_weights(
    checkpoint: Path,
    out: Path,
    options: PruneOptions,
    batches: Sequence[Batch] = (),
    *,
    progress: Progress = SILENT,
) -> SparsityResult:
    """Set single weights of a checkpoint's linear layers to zero, and write the result as a checkpoint of its own.

    Each block of the model is read, run on the calibration data to see what its layers are fed with, pruned, run
    again to see what the next block will be fed with, written and forgotten. Embeddings, norms, biases and what comes
    after the blocks stay as they are, byte for byte.

    Args:
        checkpoint: Hugging Face folder with safetensors weights, not quantized.
        out: The new checkpoint; must not exist or be empty. It appears whole or not at all.
        options: Method and sparsity, or pattern. A sparsity is taken out of every matrix: of all of it by magnitude
            and SparseGPT (of every 128 columns together), out of each of its rows by Wanda; counts are rounded down.
            Weights that are zero already count.
        batches: Calibration data: wanda and sparsegpt need some. With magnitude they measure how far outputs move.
            Batches are run one by one, so a small one needs little memory.
        progress: Told of each block.

    Raises:
        UsageError: the sparsity or pattern cannot be had, there are no calibration data, or `out` is in use.
        UnsupportedError: the weights are quantized, or the model is no chain of blocks with linear layers.
        CheckpointError: the checkpoint is damaged, or its weights do not fit its configuration.
        DataError: the model computes no numbers from the calibration data.
        StorageError: the disk is full or a folder cannot be written.
    """
    memory = PeakMemory()
    _check_request(options, batches, out)
    model = BlockModel(open_checkpoint(checkpoint))
    plan = plan_pruning(model, options)
    tensors = [{name: torch.as_tensor(array) for name, array in batch.items()} for batch in batches]
    plan.check_batches(tensors)
    temporary = temporary_sibling(out)
    try:
        with storage_errors(out):
            temporary.mkdir(parents=True)
            (temporary / _SCRATCH).mkdir()
        run = _Run(model, plan, progress)
        run.write(temporary, tensors)
        shutil.rmtree(temporary / _SCRATCH)
        write_config(temporary, model.checkpoint.config)
        carry_side_files(checkpoint, temporary)
        matrices = measure_matrices(open_checkpoint(temporary), plan.stored, plan.selection, run.errors)
        result = SparsityResult(
            path=out,
            model_class=type(model.model).__name__,
            method=options.method,
            target=str(plan.selection),
            num_blocks=len(model.blocks),
            matrices=tuple(matrices),
            left_dense=plan.left_dense,
            num_calibration_tokens=run.num_tokens,
            block_bytes=max(map(model.block_bytes, range(len(model.blocks)))),
            calibration_bytes=run.calibration_bytes,
            model_bytes=sum(entry.size_bytes for entry in model.checkpoint.entries.values()),
            peak_memory_bytes=memory.peak_bytes,
            peak_memory_added_bytes=memory.added_bytes,
            notes=tuple(run.notes),
        )
        result.save(temporary)
        publish_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for note in result.notes:
        progress.note(note)
    return result


_SCRATCH = "hidden-states"


def _check_request(options: PruneOptions, batches: Sequence[Batch], out: Path) -> None:
    if options.method == "structured":
        raise UsageError("method structured takes out whole structures, no single weights")
    if options.method != "magnitude" and not batches:
        raise UsageError(
            f"{options.method} looks at what the layers are fed with, and there are no calibration data",
            mend="Give rows, of a language model a text; or choose magnitude, which needs none.",
        )
    with storage_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: exists and is not empty", mend="Give a new folder.")


class _Run:
    """One pass over the blocks."""

    def __init__(self, model: BlockModel, plan: PrunePlan, progress: Progress) -> None:
        self.errors: dict[str, float | None] = {}
        self.notes: list[str] = []
        self.num_tokens = 0
        self.calibration_bytes = 0
        self._model = model
        self._plan = plan
        self._progress = progress

    def write(self, folder: Path, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Compute and write all weights."""
        entries = self._model.checkpoint.entries
        specs = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
        writer = CheckpointWriter(folder, specs)
        try:
            for name in entries:
                if name not in self._plan.stored:
                    writer.write(name, self._model.checkpoint.chunks(name))
            inputs = None
            if batches:
                inputs = capture_inputs(self._model, batches, folder / _SCRATCH, self._progress)
                self.calibration_bytes = inputs.size_bytes
                self.num_tokens = inputs.num_tokens
            release_free_memory()
            for index in self._progress.track(range(len(self._model.blocks)), f"prune by {self._plan.method}"):
                with self._model.loaded(index) as block, torch.inference_mode():
                    self._prune_block_(block, index, inputs, writer)
                release_free_memory()
            writer.close()
        except BaseException:
            writer.abandon()
            raise

    def _prune_block_(self, block: nn.Module, index: int, inputs: BlockInputs | None, writer: CheckpointWriter) -> None:
        matrices = self._plan.matrices[index]
        heard = None
        if inputs is not None:
            needs_gram = self._plan.method == "sparsegpt"
            heard = InputStatistics(matrices, num_batches=len(inputs), needs_gram=needs_gram)
            for batch in range(len(inputs)):
                with heard.listening(inputs.tokens[batch]):
                    inputs.run(block, index, batch)
        where = str(self._model.checkpoint.folder)
        factors: dict[int, InverseFactor] = {}
        for matrix in matrices:
            fed = heard.of(matrix, where) if heard else None
            self._prune_matrix_(matrix, fed, factors, writer)
        if inputs is not None and index + 1 < len(self._model.blocks):
            for batch in range(len(inputs)):
                inputs.replace(batch, inputs.run(block, index, batch))

    def _prune_matrix_(
        self, matrix: Matrix, fed: LayerInputs | None, factors: dict[int, InverseFactor], writer: CheckpointWriter
    ) -> None:
        weight_OI = matrix.weight()
        match self._plan.method:
            case "magnitude":
                pruned_OI = weight_OI.masked_fill(magnitude_mask(weight_OI, self._plan.selection), 0.0)
            case "wanda":
                assert fed is not None
                pruned_OI = weight_OI.masked_fill(wanda_mask(weight_OI, fed.norms, self._plan.selection), 0.0)
            case _:
                assert fed is not None
                pruned_OI = prune_sparsegpt(weight_OI, self._factor(matrix, fed, factors), self._plan.selection)
        source = self._plan.source_of[matrix.name]
        rounded, data = _encode(matrix.stored(pruned_OI), self._model.checkpoint, source)
        writer.write(source, [data])
        # The next block is to see what the written weights compute.
        written = rounded.to(torch.float32)
        self.errors[source] = (
            fed.relative_error(weight_OI, written.T if matrix.is_transposed else written) if fed else None
        )
        matrix.module._parameters["weight"] = nn.Parameter(written, requires_grad=False)

    def _factor(self, matrix: Matrix, fed: LayerInputs, factors: dict[int, InverseFactor]) -> InverseFactor:
        """Factorize once for all layers that share their inputs."""
        if id(fed) not in factors:
            assert fed.gram is not None
            factors.clear()  # those of other inputs are done with, as layers that share theirs follow each other
            factors[id(fed)] = factor = factor_inverse(fed.gram, name=matrix.name)
            if factor.damping > DAMPING:
                self.notes.append(f"{matrix.name}: its covariance needed damping by {factor.damping:g} of its mean")
        return factors[id(fed)]


def _encode(value: Tensor, checkpoint: Checkpoint, name: str) -> tuple[Tensor, memoryview]:
    """Round to the type in which a tensor is stored."""
    dtype = checkpoint.entries[name].dtype
    rounded = value.to(TORCH_DTYPES[dtype]).contiguous()
    data = rounded.reshape(-1).view(torch.uint8).numpy().data
    if count := count_nonfinite(data, dtype):
        raise CheckpointError(
            f"{checkpoint.folder}: {name!r} has {count} values after pruning that {dtype} cannot represent",
            mend="Store the checkpoint in a wider type first, float32 or bfloat16.",
        )
    return rounded, data
