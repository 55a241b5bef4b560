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
from compress.checkpoint import open_checkpoint
from compress.memory import PeakMemory
from compress.merge import merge_adapter
from compress.skeleton import TORCH_DTYPES, build_skeleton, load_config, quiet_transformers
from edgesmith.errors import CheckpointError, UsageError, VerificationError
from edgesmith.progress import SILENT, Progress

__all__ = ["MergeVerification", "verify_merge"]

Batch = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class MergeVerification:
    """How far a merged checkpoint is from its base and adapters."""

    max_abs_diff: float
    """Largest absolute difference of any output when all weights are kept in float32."""
    mean_abs_diff: float
    """Mean absolute difference of all outputs, in float32."""
    tolerance: float
    """What `max_abs_diff` had to stay within."""
    max_abs_diff_saved: float
    """Largest difference of the checkpoint as it was saved. Equal to `max_abs_diff` when saved in float32."""
    saved_tolerance: float
    """What rounding to the saved type may explain: 16 units of it, relative to the largest output."""
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
    the outputs. So the merge is repeated in float32 for the comparison within `tolerance`, and the checkpoint as
    saved is compared too, within what its type can explain.

    Args:
        base: What `merge_adapter` was given; not quantized.
        adapters: What `merge_adapter` was given.
        merged: What `merge_adapter` wrote.
        inputs: Batches of real rows, as the tokenizer made them: name → array, e.g. input_ids [B, S] int64.
        tolerance: Largest absolute difference allowed in float32.
        scratch: Where a merge in float32 may be written when the checkpoint is saved in a narrower type; the
            system's folder for temporary files when None.
        progress: Where to report.

    Raises:
        UsageError: there are no inputs.
        VerificationError: a difference exceeds what is allowed, or an output is no number.
    """
    num_rows = sum(len(next(iter(batch.values()))) for batch in inputs if batch)
    if not num_rows:
        raise UsageError("no rows to compare the merged model on", mend="Give rows of the data it is made for.")
    memory = PeakMemory()
    checkpoint = open_checkpoint(merged)
    opened = [open_adapter(spec) for spec in adapters]
    check_combination(opened)
    config = load_config(checkpoint)
    model_class = getattr(transformers, (config.architectures or [""])[0])
    expected = _run_reference(base, opened, model_class, config, inputs, progress)
    gc.collect()  # a model is full of cycles, and the next one is about to be loaded
    saved = _run_folder(merged, model_class, inputs, progress)
    if checkpoint.dtype == "F32":
        exact = saved
    else:
        exact = _run_in_float32(base, adapters, model_class, inputs, scratch, progress)
    scale = max(float(np.abs(value).max(initial=0.0)) for value in expected.values())
    epsilon = torch.finfo(TORCH_DTYPES[checkpoint.dtype]).eps
    result = MergeVerification(
        max_abs_diff=_largest_difference(expected, exact),
        mean_abs_diff=_mean_difference(expected, exact),
        tolerance=tolerance,
        max_abs_diff_saved=_largest_difference(expected, saved),
        saved_tolerance=max(tolerance, 16 * epsilon * scale),
        saved_dtype=checkpoint.dtype,
        max_abs_output=scale,
        num_rows=num_rows,
        outputs=tuple(expected),
        peak_memory_bytes=memory.peak_bytes,
    )
    _judge(merged, result)
    return result


def _judge(merged: Path, result: MergeVerification) -> None:
    for difference, allowed, what in (
        (result.max_abs_diff, result.tolerance, "in float32"),
        (result.max_abs_diff_saved, result.saved_tolerance, f"as saved in {result.saved_dtype}"),
    ):
        if not difference <= allowed:
            raise VerificationError(
                f"{merged}: differs from base + adapter by {difference:.3g} {what} on {result.num_rows} rows, allowed "
                f"is {allowed:.3g} (largest output {result.max_abs_output:.3g})",
                mend="Do not use this checkpoint. Merge again; if it stays, the adapter was trained on another base "
                "or its kind does not merge exactly here.",
            )


def _run_reference(
    base: Path,
    adapters: Sequence[Adapter],
    model_class: type[Any],
    merged_config: Any,
    inputs: Sequence[Batch],
    progress: Progress,
) -> Outputs:
    checkpoint = open_checkpoint(base)
    config = load_config(checkpoint)
    fit = fit_to_adapters(config, build_skeleton(config, model_class), adapters)
    if fit.num_labels is not None:
        config.num_labels = fit.num_labels
    config.problem_type = getattr(merged_config, "problem_type", None)
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        model = _load(base, model_class, config=config)
        if fit.vocab_size is not None:
            model.resize_token_embeddings(fit.vocab_size, mean_resizing=False)
        model = _attach(model, adapters)
    return _run(model, inputs, "base + adapter", progress)


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


def _run_folder(folder: Path, model_class: type[Any], inputs: Sequence[Batch], progress: Progress) -> Outputs:
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        model, info = _load(folder, model_class, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise CheckpointError(f"{folder}: loading it reports {problem}: {sorted(info[problem])[:3]}")
    return _run(model, inputs, "merged", progress)


def _run_in_float32(
    base: Path,
    adapters: Sequence[AdapterSpec],
    model_class: type[Any],
    inputs: Sequence[Batch],
    scratch: Path | None,
    progress: Progress,
) -> Outputs:
    with tempfile.TemporaryDirectory(dir=scratch, prefix="merge-float32-") as folder:
        out = Path(folder) / "merged"
        merge_adapter(
            base, adapters, out, model_class=model_class.__name__, dtype="float32", allow_other_base=True
        )  # fmt: skip
        return _run_folder(out, model_class, inputs, progress)


def _load(folder: Path, model_class: type[Any], **options: Any) -> Any:
    return model_class.from_pretrained(
        str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True, **options
    )


def _run(model: Any, inputs: Sequence[Batch], description: str, progress: Progress) -> Outputs:
    """Run all batches; padding makes their lengths differ, so outputs are kept flat."""
    model.eval()
    collected: dict[str, list[NDArray[np.float32]]] = {}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in progress.track(inputs, f"run {description}"):
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
            outputs = model(**_with_decoder_start(model, tensors), return_dict=True)
            for name, value in outputs.items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    collected.setdefault(name, []).append(value.float().numpy().reshape(-1))
    return {name: np.concatenate(values) for name, values in collected.items()}


def _with_decoder_start(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An encoder-decoder needs something to decode from: its start token, unless the batch says otherwise."""
    start = getattr(model.config, "decoder_start_token_id", None)
    if not model.config.is_encoder_decoder or start is None or "decoder_input_ids" in tensors:
        return tensors
    num_rows = len(next(iter(tensors.values())))
    return tensors | {"decoder_input_ids": torch.full((num_rows, 1), start)}


def _largest_difference(expected: Outputs, found: Outputs) -> float:
    return max(float(np.abs(_paired(expected, found, name)).max(initial=0.0)) for name in expected)


def _mean_difference(expected: Outputs, found: Outputs) -> float:
    count = sum(value.size for value in expected.values())
    return sum(float(np.abs(_paired(expected, found, name)).sum()) for name in expected) / max(1, count)


def _paired(expected: Outputs, found: Outputs, name: str) -> NDArray[np.float64]:
    other = found.get(name)
    if other is None or other.shape != expected[name].shape:
        raise VerificationError(f"output {name!r} of the merged model differs in shape or is missing")
    return expected[name].astype(np.float64) - other.astype(np.float64)
