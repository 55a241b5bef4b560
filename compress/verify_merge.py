"""Compare a merged checkpoint with its base and adapters as PEFT runs them, on real inputs.

The reference is what was trained: the base in float32 with the adapters beside it, unmerged, loaded by PEFT
from the same folders. It shares no step with merging but PEFT itself.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from peft import PeftMixedModel, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from compress.adapter import Adapter, AdapterSpec, check_combination, open_adapter
from compress.carry import fit_to_adapters
from compress.checkpoint import Checkpoint, open_checkpoint, quantization_of
from compress.dequantize import dequantize_checkpoint
from compress.memory import PeakMemory
from compress.merge import merge_adapter
from compress.rounding import check_rounding
from compress.skeleton import TORCH_DTYPES, build_skeleton, load_config, quiet_transformers
from edgesmith.errors import CheckpointError, UsageError, VerificationError
from edgesmith.progress import SILENT, Progress

__all__ = ["MergeVerification", "verify_merge"]

Batch = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True, kw_only=True)
class MergeVerification:
    """How far a merged checkpoint is from its base and adapters."""

    max_abs_diff: float
    """Largest absolute difference of any output when all weights and all arithmetic are float32."""
    max_abs_diff_float64: float | None
    """The same with float64 arithmetic; only computed, and then judged, when float32 exceeds the tolerance: large
    outputs alone make two equal models differ by the rounding of float32."""
    mean_abs_diff: float
    """Mean absolute difference of all outputs, in float32."""
    tolerance: float
    """What the difference had to stay within."""
    max_abs_diff_saved: float
    """Largest difference of the checkpoint as it was saved. Equal to `max_abs_diff` when saved in float32."""
    saved_tolerance: float
    """What rounding to the saved type may explain: 4 units of it, relative to the largest output."""
    saved_dtype: str
    """The type that the checkpoint is saved in, as safetensors spells it."""
    max_abs_output: float
    """Largest absolute output of the reference: the scale that the differences are to be seen at."""
    num_rows: int
    """Rows compared."""
    outputs: tuple[str, ...]
    """Names of the outputs compared."""
    peak_memory_bytes: int
    """Peak of resident memory while comparing; two whole models are never held at once."""


def verify_merge(
    base: Path,
    adapters: Sequence[AdapterSpec],
    merged: Path,
    inputs: Sequence[Batch],
    *,
    tolerance: float = 1e-4,
    scratch: Path | None = None,
    progress: Progress = SILENT,
) -> MergeVerification:
    """Run base + adapters and the merged checkpoint on the same inputs, in float32, and compare all outputs.

    A checkpoint saved in a narrower type cannot be as close as its arithmetic was: rounding a weight changes
    the outputs. So the merge is repeated in float32 for the comparison within `tolerance`; every tensor as saved
    must be the repeated one rounded, bit for bit, and its outputs within what its type can explain.

    Args:
        base: What `merge_adapter` was given; a quantized one is dequantized again.
        adapters: What `merge_adapter` was given.
        merged: What `merge_adapter` wrote.
        inputs: Batches of real rows, as the tokenizer made them: name → array, e.g. input_ids [B, S] int64.
        tolerance: Largest absolute difference allowed in float32.
        scratch: Where a merge in float32 may be written when the checkpoint is saved in a narrower type; the
            system's folder for temporary files when None.
        progress: Where to report.

    Raises:
        UsageError: there are no inputs.
        VerificationError: a difference exceeds what is allowed, an output is no number, or a saved tensor is not
            the merged one rounded.
    """
    num_rows = sum(len(next(iter(batch.values()))) for batch in inputs if batch)
    if not num_rows:
        raise UsageError("no rows to compare the merged model on", mend="Give rows of the data it is made for.")
    memory = PeakMemory()
    checkpoint = open_checkpoint(merged)
    opened = [open_adapter(spec) for spec in adapters]
    check_combination(opened)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="verify-merge-") as folder:
        floating = _in_floating_point(base, Path(folder) / "base")
        sides = _Sides(floating, opened, merged, checkpoint, inputs, progress)
        exact = merged
        narrow = {entry.dtype for entry in checkpoint.entries.values() if entry.is_floating} - {"F32"}
        if narrow:
            exact = Path(folder) / "merged"
            _merge_in_float32(floating, adapters, exact, sides.model_class)
            check_rounding(checkpoint, open_checkpoint(exact))
        expected = sides.run_reference(torch.float32)
        found = sides.run_folder(exact, torch.float32)
        saved = found if exact is merged else sides.run_folder(merged, torch.float32)
        difference = _largest_difference(expected, found)
        exact_difference = None
        if difference > tolerance:
            exact_difference = _largest_difference(
                sides.run_reference(torch.float64), sides.run_folder(exact, torch.float64)
            )
    scale = float(np.max([np.abs(value).max(initial=0.0) for value in expected.values()]))
    result = MergeVerification(
        max_abs_diff=difference,
        max_abs_diff_float64=exact_difference,
        mean_abs_diff=_mean_difference(expected, found),
        tolerance=tolerance,
        max_abs_diff_saved=_largest_difference(expected, saved),
        saved_tolerance=max(tolerance, difference, 4 * _rounding_unit({*narrow, "F32"}) * scale),
        saved_dtype=checkpoint.dtype,
        max_abs_output=scale,
        num_rows=num_rows,
        outputs=tuple(expected),
        peak_memory_bytes=memory.peak_bytes,
    )
    _judge(merged, result)
    return result


def _judge(merged: Path, result: MergeVerification) -> None:
    difference, arithmetic = result.max_abs_diff, "float32"
    if result.max_abs_diff_float64 is not None:
        difference, arithmetic = result.max_abs_diff_float64, "float64"
    for found, allowed, what in (
        (difference, result.tolerance, f"computed in {arithmetic}"),
        (result.max_abs_diff_saved, result.saved_tolerance, f"as saved in {result.saved_dtype}"),
    ):
        if not found <= allowed:
            raise VerificationError(
                f"{merged}: differs from base + adapter by {found:.3g} {what} on {result.num_rows} rows, allowed "
                f"is {allowed:.3g} (largest output {result.max_abs_output:.3g})",
                mend="Do not use this checkpoint. Merge again; if it stays, the adapter was trained on another base "
                "or its kind does not merge exactly here.",
            )


def _merge_in_float32(base: Path, adapters: Sequence[AdapterSpec], out: Path, model_class: type[Any]) -> None:
    merge_adapter(base, adapters, out, model_class=model_class.__name__, dtype="float32", allow_other_base=True)


def _rounding_unit(dtypes: set[str]) -> float:
    return max(float(torch.finfo(TORCH_DTYPES[dtype]).eps) for dtype in dtypes if dtype in TORCH_DTYPES)


def _in_floating_point(base: Path, out: Path) -> Path:
    checkpoint = open_checkpoint(base)
    quantization = quantization_of(checkpoint.config)
    return dequantize_checkpoint(checkpoint, out, quantization).folder if quantization else base


class _Sides:
    """The two things to compare, each loaded, run and dropped again on demand."""

    def __init__(
        self,
        base: Path,
        adapters: Sequence[Adapter],
        merged: Path,
        checkpoint: Checkpoint,
        inputs: Sequence[Batch],
        progress: Progress,
    ) -> None:
        self._base = base
        self._adapters = adapters
        self._inputs = inputs
        self._progress = progress
        self._merged_config = load_config(checkpoint)
        architecture = (self._merged_config.architectures or [""])[0]
        found = getattr(transformers, architecture, None) if architecture.isidentifier() else None
        if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
            raise CheckpointError(
                f"{merged / 'config.json'}: architectures name no class of transformers",
                mend="Verify what merging wrote.",
            )
        self.model_class: type[Any] = found

    def run_reference(self, dtype: torch.dtype) -> Outputs:
        """Run the base with the adapters beside it."""
        config = load_config(open_checkpoint(self._base))
        fit = fit_to_adapters(config, build_skeleton(config, self.model_class), self._adapters)
        if fit.num_labels is not None:
            config.num_labels = fit.num_labels
        config.problem_type = getattr(self._merged_config, "problem_type", None)
        with warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")
            model = _load(self._base, self.model_class, dtype, config=config)
            if fit.vocab_size is not None:
                model.resize_token_embeddings(fit.vocab_size, mean_resizing=False)
            model = _attach(model, self._adapters).to(dtype)
        outputs = _run(model, self._inputs, "base + adapter", self._progress)
        del model
        gc.collect()  # a model is full of cycles, and the next one is about to be loaded
        return outputs

    def run_folder(self, folder: Path, dtype: torch.dtype) -> Outputs:
        """Run a merged checkpoint."""
        with warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")
            model, info = _load(folder, self.model_class, dtype, output_loading_info=True)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[problem]:
                raise CheckpointError(
                    f"{folder}: loading it reports {problem}: {sorted(info[problem])[:3]}",
                    mend="Do not use this checkpoint: merge again.",
                )
        return _run(model, self._inputs, "merged", self._progress)


def _attach(model: Any, adapters: Sequence[Adapter]) -> Any:
    names = [f"adapter{index}" for index in range(len(adapters))]
    wrapper = PeftMixedModel if len({adapter.kind for adapter in adapters}) > 1 else PeftModel
    attached = wrapper.from_pretrained(model, str(adapters[0].path), adapter_name=names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        attached.load_adapter(str(adapter.path), adapter_name=name)
    if len(names) > 1:
        attached.base_model.set_adapter(names)
    for name, adapter in zip(names, adapters, strict=True):
        for layer in attached.modules():
            if adapter.weight != 1 and isinstance(layer, BaseTunerLayer) and name in getattr(layer, "scaling", {}):
                layer.scaling[name] *= adapter.weight
    return attached


def _load(folder: Path, model_class: type[Any], dtype: torch.dtype, **options: Any) -> Any:
    return model_class.from_pretrained(str(folder), dtype=dtype, local_files_only=True, use_safetensors=True, **options)


def _run(model: Any, inputs: Sequence[Batch], description: str, progress: Progress) -> Outputs:
    """Run all batches; padding makes their lengths differ, so outputs are kept flat."""
    model.eval()
    collected: dict[str, list[NDArray[np.floating[Any]]]] = {}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in progress.track(inputs, f"run {description}"):
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
            outputs = model(**_with_decoder_start(model, tensors), return_dict=True)
            for name, value in outputs.items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    collected.setdefault(name, []).append(value.numpy().reshape(-1))
    joined = {name: np.concatenate(values) for name, values in collected.items()}
    for name, value in joined.items():
        if count := int(np.count_nonzero(~np.isfinite(value))):
            raise VerificationError(
                f"{description}: output {name!r} holds {count} NaN or infinite values out of {value.size}",
                mend="Do not use these weights: take an earlier checkpoint or adapter, or merge again.",
            )
    return joined


def _with_decoder_start(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An encoder-decoder needs something to decode from: its start token, unless the batch says otherwise."""
    start = getattr(model.config, "decoder_start_token_id", None)
    if not model.config.is_encoder_decoder or not model.can_generate() or start is None:
        return tensors
    if "decoder_input_ids" in tensors:
        return tensors
    num_rows = len(next(iter(tensors.values())))
    return tensors | {"decoder_input_ids": torch.full((num_rows, 1), start)}


def _largest_difference(expected: Outputs, found: Outputs) -> float:
    # Python's own `max` drops a NaN that is not first.
    return float(np.max([np.abs(_paired(expected, found, name)).max(initial=0.0) for name in expected]))


def _mean_difference(expected: Outputs, found: Outputs) -> float:
    count = sum(value.size for value in expected.values())
    return sum(float(np.abs(_paired(expected, found, name)).sum()) for name in expected) / max(1, count)


def _paired(expected: Outputs, found: Outputs, name: str) -> NDArray[np.float64]:
    other = found.get(name)
    if other is None or other.shape != expected[name].shape:
        raise VerificationError(
            f"output {name!r} of the merged model differs in shape or is missing",
            mend="The checkpoint is not a merge of this base: merge again.",
        )
    return expected[name].astype(np.float64) - other.astype(np.float64)
