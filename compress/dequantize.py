"""Turn a quantized checkpoint back into floating point, with the library that quantized it."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import torch
import transformers

from compress.checkpoint import Checkpoint, open_checkpoint
from compress.skeleton import load_config, quiet_transformers, resolve_model_class
from edgesmith.errors import UnsupportedError

__all__ = ["dequantize_checkpoint"]


def dequantize_checkpoint(checkpoint: Checkpoint, out: Path, quantization: str) -> Checkpoint:
    """Load a quantized checkpoint whole, have transformers dequantize it, and save it in float32.

    Needs memory for the whole model, once quantized and once in floating point.

    Args:
        checkpoint: The quantized base.
        out: A new folder for the floating-point weights.
        quantization: Its name, for messages.

    Raises:
        UnsupportedError: transformers cannot dequantize this format, or needs a library or device for it.
    """
    config = load_config(checkpoint)
    settings = checkpoint.config.get("quantization_config") or {}
    model_class = resolve_model_class(config, requested=None, task_types=[])
    options = {}
    if settings.get("quant_method") in ("fp8", "mxfp4"):
        wanted = {"fp8": transformers.FineGrainedFP8Config, "mxfp4": transformers.Mxfp4Config}
        options["quantization_config"] = wanted[settings["quant_method"]](dequantize=True)
    try:
        with warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")
            model = model_class.from_pretrained(
                str(checkpoint.folder), dtype=torch.float32, local_files_only=True, use_safetensors=True, **options
            )
            if not options:
                model = model.dequantize()
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model._weight_conversions = None  # else saving would turn them back into what was loaded
            model.to(torch.float32).save_pretrained(str(out))
            del model
            gc.collect()
    except (ImportError, RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, KeyError) as error:
        raise UnsupportedError(
            f"{checkpoint.folder}: {quantization} weights cannot be dequantized on this machine: {error}",
            mend="Install the library that the format needs (e.g. bitsandbytes), or merge into the full-precision "
            "base that was quantized.",
        ) from error
    return open_checkpoint(out)
