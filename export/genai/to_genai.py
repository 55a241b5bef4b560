"""Build the folder that onnxruntime-genai runs out of a Hugging Face checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from compress.checkpoint import Checkpoint, open_checkpoint, quantization_of, read_json
from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.files import publish_folder, storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress
from export.genai.families import check_architecture
from export.genai.quant_config import GenaiQuantConfig, Precision, check_blocks
from export.genai.run_builder import require_builder, run_builder
from export.gguf.tokenizer_file import TokenizerFile

__all__ = ["GenaiExport", "to_genai"]

CONFIG = "genai_config.json"
# Taken from the checkpoint as they are: what the builder writes instead says the same in another form.
_CARRIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_MATRICES_A_LAYER = 5  # queries with keys and values, output, and three of the feed-forward part


@dataclass(frozen=True, kw_only=True)
class GenaiExport:
    """What was built."""

    folder: Path
    architecture: str
    """As the checkpoint calls it."""
    precision: Precision
    quantize: GenaiQuantConfig | None
    """None for floats."""
    files: dict[str, int]
    """Name → bytes, sorted by name."""
    model_bytes: int
    """Of graph and weights."""
    context_length: int
    """The most tokens of one text."""
    peak_bytes: int
    """Memory of the builder's process at the peak, libraries included; all of it is given back."""
    notes: tuple[str, ...]
    """What the builder warned of, and what was changed after it."""
    left_out: tuple[str, ...]
    """What of the checkpoint is not in the folder, or not done by the runtime."""


def to_genai(
    checkpoint: Path,
    out_folder: Path,
    *,
    precision: Precision = "int4",
    quantize: GenaiQuantConfig | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> GenaiExport:
    """Build a model for the CPU. The same checkpoint gives the same bytes with the same libraries.

    Args:
        checkpoint: Hugging Face folder with safetensors weights and `tokenizer.json`.
        out_folder: The new folder; it appears when it is complete, in place of one that was there.
        precision: Of the weights; arithmetic is float32, with int8 activations where weights are integers.
        quantize: How weights become integers; by default as `GenaiQuantConfig` has it for this precision. None for
            floats.
        threads: For the builder.
        progress: Told of each layer and matrix.

    Returns:
        What was written, and what is left out.

    Raises:
        CheckpointError: The checkpoint is damaged, unsafe, or lacks a tokenizer.
        UnsupportedError: The builder does not know the architecture, or the weights are quantized already.
        UsageError: Precision and quantization contradict each other.
        MissingExtraError: The builder is not installed.
        StorageError: The folder cannot be written.
        EdgesmithError: The builder failed.
    """
    quantize = _quantize_options(precision, quantize)
    opened = _open(checkpoint)
    tokenizer = TokenizerFile(checkpoint)
    if quantize is not None:
        check_blocks(opened, quantize)
    require_builder()
    work = temporary_sibling(out_folder)
    try:
        with storage_errors(work):
            for name in ("out", "cache"):
                (work / name).mkdir(parents=True)
        run = run_builder(
            _request(opened, work, precision, quantize),
            work=work,
            num_steps=_num_steps(opened.config, quantize),
            threads=threads,
            progress=progress,
        )
        _carry(checkpoint, work / "out")
        config, limits = _write_config(work / "out", tokenizer)
        publish_folder(work / "out", out_folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    files = {path.name: path.stat().st_size for path in sorted(out_folder.iterdir())}
    return GenaiExport(
        folder=out_folder,
        architecture=str(opened.config["architectures"][0]),
        precision=precision,
        quantize=quantize,
        files=files,
        model_bytes=sum(size for name, size in files.items() if name.startswith("model.onnx")),
        context_length=int(config["model"]["context_length"]),
        peak_bytes=run.peak_bytes,
        notes=run.notes,
        left_out=(*_left_out(checkpoint, files), *limits),
    )


def _quantize_options(precision: Precision, quantize: GenaiQuantConfig | None) -> GenaiQuantConfig | None:
    if precision not in get_args(Precision):
        raise UsageError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}")
    if quantize is None:
        match precision:
            case "int4":
                return GenaiQuantConfig()
            case "int8":
                return GenaiQuantConfig(method="int8")
        return None
    if quantize.method != precision:
        raise UsageError(f"precision is {precision}, but quantize says {quantize.method}", mend="Name one of them.")
    return quantize


def _open(folder: Path) -> Checkpoint:
    opened = open_checkpoint(folder)
    if found := quantization_of(opened.config):
        raise UnsupportedError(
            f"{folder}: its weights are quantized ({found}); a second rounding would add to the first",
            mend="Merge the adapter into the unquantized base, and build that.",
        )
    check_architecture(folder, opened.config)
    return opened


def _num_steps(config: dict[str, Any], quantize: GenaiQuantConfig | None) -> int:
    """Lines that the builder prints as it goes on: of layers, and of matrices by one of the algorithms."""
    found = config.get("num_hidden_layers")
    layers = found if type(found) is int and found > 0 else 1
    says_matrices = quantize is not None and quantize.chosen_algorithm == "default"
    return layers + 3 + (layers * _MATRICES_A_LAYER + 1 if says_matrices else 0)


def _request(
    opened: Checkpoint, work: Path, precision: Precision, quantize: GenaiQuantConfig | None
) -> dict[str, object]:
    options = {"hf_token": "false", "hf_remote": "false"} | (quantize.builder_options() if quantize else {})
    return {
        "checkpoint": str(opened.folder.resolve()),
        "out": str((work / "out").resolve()),
        "cache": str((work / "cache").resolve()),
        "precision": precision,
        "is_tied": "lm_head.weight" not in opened.entries,
        # The builder's float16 is for graphics cards: on a CPU its graph fails at the second token.
        "builder_precision": "fp32" if precision == "fp16" else precision,
        "options": options,
    }


def _carry(source: Path, out: Path) -> None:
    for name in _CARRIED:
        path, target = source / name, out / name
        with storage_errors(target):
            if path.is_file():
                shutil.copyfile(path, target)


def _write_config(out: Path, tokenizer: TokenizerFile) -> tuple[dict[str, Any], list[str]]:
    """Put the configuration into one form, with every end token of the checkpoint; what that leaves out."""
    path = out / CONFIG
    config = read_json(path)
    model, left_out = config["model"], list[str]()
    stated = tokenizer.generation.get("eos_token_id")
    if isinstance(stated, (int, list)):
        model["eos_token_id"] = stated
    window = model["decoder"].get("sliding_window")
    if window and len(window["layers"]) in (0, model["decoder"]["num_hidden_layers"]):
        # Where the configuration names no layers, the builder's attention has no window, but its cache has one. Up to
        # the window's length there is no difference.
        size = min(window["window_size"], model["context_length"])
        left_out.append(
            f"texts of more than {size} tokens, of the {model['context_length']} that the model takes: the runtime "
            "cannot read what is longer than the window of all layers"
        )
        model["context_length"] = config["search"]["max_length"] = size
        del model["decoder"]["sliding_window"]
    with storage_errors(path):
        path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return config, left_out


def _left_out(checkpoint: Path, files: dict[str, int]) -> tuple[str, ...]:
    known = {*files, "model.safetensors", "model.safetensors.index.json", "manifest.json"}
    names = [path.name for path in sorted(checkpoint.iterdir()) if path.is_file() and path.name not in known]
    return tuple(f"{name}: not carried over" for name in names if not name.endswith(".safetensors"))
