"""What an onnxruntime-genai folder says of itself, checked before any native code sees it.

`genai_config.json` names files, libraries and options that the native code obeys without asking. Only what a
text-generating model for the CPU needs is let through, by name; all else is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError, UnsupportedError
from edgesmith.files import storage_errors
from serve.runtime.onnx_engine import preflight
from serve.runtime.onnx_file import OnnxFile

__all__ = ["CONFIG_NAME", "GenaiFolder", "read_genai_folder"]

CONFIG_NAME = "genai_config.json"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_COUNT = 1 << 24
_MEND = "Build it again: edgesmith export CHECKPOINT --format genai -o OUT"
_TYPES = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "nemotron",
    "olmo",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)


@dataclass(frozen=True, kw_only=True)
class GenaiFolder:
    """A folder that may be opened."""

    path: Path
    model_file: Path
    context_length: int
    """The most tokens of one text."""
    num_vocabulary: int
    """Width of the logits."""
    ends: frozenset[int]
    """Tokens after which generation stops."""


Check: TypeAlias = Callable[[Any], bool]


def _count(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MAX_COUNT


def _token(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _tokens(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return 0 < len(listed) <= 64 and all(map(_token, listed))


def _number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)


def _name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 100 and value.replace(".%d.", ".").replace("_", "").replace(
        ".", ""
    ).isalnum()  # fmt: skip


def _file(value: Any) -> bool:
    """A plain name in the folder itself."""
    return isinstance(value, str) and value.endswith(".onnx") and not set(value) & set("/\\:\0") and value[0] != "."


def _is(*values: Any) -> Check:
    return lambda value: value in values


_Rule: TypeAlias = "Check | Mapping[str, _Rule]"

_NAMES = (
    "input_ids", "attention_mask", "position_ids", "past_key_names", "past_value_names", "logits",
    "present_key_names", "present_value_names",
)  # fmt: skip
_SHAPES = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
_SEARCH = (
    "chunk_size", "diversity_penalty", "do_sample", "early_stopping", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_beams", "num_return_sequences", "past_present_share_buffer", "random_seed",
    "repetition_penalty", "temperature", "top_k", "top_p",
)  # fmt: skip
_WINDOW: Mapping[str, _Rule] = {
    "window_size": _count,
    "slide_key_value_cache": _is(True, False),
    "slide_inputs": _is(True, False),
    "layers": lambda value: isinstance(value, list) and all(map(_token, value)),
    "cache_slack": _token,
}
_DECODER: Mapping[str, _Rule] = {
    "filename": _file,
    "session_options": {
        "log_id": lambda value: isinstance(value, str),
        # Each entry would load a provider, some of them from a library that the entry names.
        "provider_options": _is([]),
        "intra_op_num_threads": _token,
        "inter_op_num_threads": _token,
    },
    "inputs": dict.fromkeys(_NAMES, _name),
    "outputs": dict.fromkeys(_NAMES, _name),
    "sliding_window": _WINDOW,
    **dict.fromkeys(_SHAPES, _count),
}
_RULES: Mapping[str, _Rule] = {
    "model": {
        "type": _is(*_TYPES),
        "context_length": _count,
        "vocab_size": _count,
        "bos_token_id": lambda value: value is None or _tokens(value),
        "pad_token_id": _tokens,
        "eos_token_id": _tokens,
        **dict.fromkeys(("bot_token_id", "eot_token_id", "bor_token_id", "eor_token_id"), _token),
        "decoder": _DECODER,
    },
    "search": dict.fromkeys(_SEARCH, _number),
}
_REQUIRED = (
    "model.type", "model.context_length", "model.vocab_size", "model.eos_token_id", "model.decoder.filename",
    *(f"model.decoder.{name}" for name in _SHAPES), "model.decoder.inputs.input_ids", "model.decoder.outputs.logits",
)  # fmt: skip


def read_genai_folder(artifact: Artifact) -> GenaiFolder:
    """Check configuration and graph of a model folder.

    Raises:
        ArtifactError: A file is missing, damaged, or leads out of the folder; or graph and configuration are not of
            one model.
        UnsupportedError: The configuration asks for something that is not run here.
        StorageError: A file cannot be read.
    """
    path = artifact.file(CONFIG_NAME)
    config = _read(path)
    _check(config, _RULES, "", path)
    found = _flatten(config)
    for key in _REQUIRED:
        if key not in found:
            raise ArtifactError(f"{path}: {key} is missing", mend=_MEND)
    model_file = artifact.file(found["model.decoder.filename"])
    if path.is_symlink() or model_file.is_symlink():
        raise ArtifactError(f"{model_file}: is a link", mend="Put a copy of the file itself into the folder.")
    num_vocabulary = _check_graph(model_file, preflight(artifact, model_file), found)
    ends = found["model.eos_token_id"]
    return GenaiFolder(
        path=artifact.folder,
        model_file=model_file,
        context_length=found["model.context_length"],
        num_vocabulary=num_vocabulary,
        ends=frozenset(ends if isinstance(ends, list) else [ends]),
    )


def _read(path: Path) -> dict[str, Any]:
    with storage_errors(path):
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ArtifactError(f"{path}: has {path.stat().st_size:,} bytes; a configuration has at most 1 MiB")
        content = path.read_bytes()
    try:
        config = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: is damaged: {error}", mend=_MEND) from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: holds no object", mend=_MEND)
    return config


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that comes twice: two readers may take different ones."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return found


def _check(value: Any, rule: _Rule, where: str, path: Path) -> None:
    if not isinstance(rule, Mapping):
        if not rule(value):
            raise UnsupportedError(
                f"{path}: {where} is {json.dumps(value)[:100]}, which is not run here",
                mend="Do not trust a folder that asks for files, libraries or providers; a sound one for the CPU "
                "is built by `edgesmith export CHECKPOINT --format genai -o OUT`.",
            )
        return
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: {where or 'it'} is {json.dumps(value)[:100]}, expected an object", mend=_MEND)
    for key, part in value.items():
        if key not in rule:
            raise UnsupportedError(
                f"{path}: {where}{'.' if where else ''}{key[:100]} is not known here; nothing is passed to native code "
                "unread",
                mend=_MEND,
            )
        _check(part, rule[key], f"{where}.{key}" if where else key, path)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, part in value.items():
        found |= _flatten(part, f"{prefix}{key}.") if isinstance(part, dict) else {f"{prefix}{key}": part}
    return found


def _check_graph(path: Path, graph: OnnxFile, found: Mapping[str, Any]) -> int:
    """Compare inputs and outputs with what the configuration says they are called; the width of the logits."""
    inputs = {spec.name: spec for spec in graph.signature.inputs}
    outputs = {spec.name: spec for spec in graph.signature.outputs}
    layers = found["model.decoder.num_hidden_layers"]
    if layers > len(inputs):
        raise ArtifactError(f"{path}: has no caches for {layers} layers, as {CONFIG_NAME} says", mend=_MEND)
    for role, specs in (("inputs", inputs), ("outputs", outputs)):
        for key, name in found.items():
            if key.startswith(f"model.decoder.{role}."):
                for one in [name.replace("%d", str(layer)) for layer in range(layers)] if "%d" in name else [name]:
                    if one not in specs:
                        raise ArtifactError(f"{path}: {CONFIG_NAME} names {one!r}, which is none of its {role}")
    width = outputs[found["model.decoder.outputs.logits"]].shape[-1:]
    if width != (found["model.vocab_size"],):
        raise ArtifactError(
            f"{path}: the logits have the shape […, {', '.join(map(str, width))}], but {CONFIG_NAME} says "
            f"{found['model.vocab_size']}",
            mend=_MEND,
        )
    for layer in range(layers):
        name = found.get("model.decoder.inputs.past_key_names", "").replace("%d", str(layer))
        if name and inputs[name].shape[1:2] != (found["model.decoder.num_key_value_heads"],):
            raise ArtifactError(f"{path}: {name} is not of the heads that {CONFIG_NAME} says", mend=_MEND)
    return int(found["model.vocab_size"])
