"""What a language model has to read and multiply for one token, counted from its file."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.sizes.model_parts import is_lookup_table, part_of_gguf
from bench.strict import check_numbers
from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError, UnsupportedError
from edgesmith.files import storage_errors
from serve.runtime.gguf_file import GgufFile, GgufTensor, read_gguf
from serve.runtime.onnx_file import read_onnx
from serve.runtime.onnx_tensors import OnnxNode, OnnxTensor, OnnxTensors, read_onnx_tensors

__all__ = ["TokenWork", "count_token_work"]

_FLOAT_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
_KEY_VALUE_BYTES = 2
"""llama.cpp keeps keys and values as F16 unless it is told otherwise."""
_STEPS_BETWEEN = frozenset({"Reshape", "Transpose", "Cast", "DequantizeLinear", "Identity"})
_NUM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}


@dataclass(frozen=True, kw_only=True)
class TokenWork:
    """The least that one token takes, whatever computes it."""

    weight_bytes: int
    """Weights that every generated token needs, each read once; of tables only the rows looked up."""
    kv_bytes: int
    """Keys and values of one earlier token, of all layers; they are read for every token after it."""
    kv_window: int | None
    """Earlier tokens that are looked at, at the most; None for all. Where only some layers look no further, the
    others are taken to do the same: what is counted is never too much."""
    fp32_macs: int
    """Multiplications with addition by weights kept as floats, output layer left out."""
    int8_macs: int
    """The same by quantized weights, which runtimes multiply as integers."""
    head_macs: int
    """Of the output layer, which runs for generated tokens and for the last one of a prompt."""
    is_head_quantized: bool
    attention_macs: int
    """For one token and one earlier one, of all layers."""

    def __post_init__(self) -> None:
        check_numbers(asdict(self), _COUNTS, optional=("kv_window",))
        if not self.weight_bytes:
            raise ValueError("a model without weights")

    def bytes_at(self, position: float) -> float:
        """Bytes read to generate one token after `position` others."""
        return self.weight_bytes + self.kv_bytes * min(position, self.kv_window or position)

    def prompt_macs(self, num_tokens: float) -> tuple[float, float]:
        """Multiplications for a prompt: of floats, and of integers."""
        seen = min(num_tokens, self.kv_window or num_tokens)
        pairs = num_tokens * seen - seen * (seen - 1) / 2  # each token looks at those before it and at itself
        floats = self.fp32_macs * num_tokens + self.attention_macs * pairs
        integers = float(self.int8_macs * num_tokens)
        return (floats, integers + self.head_macs) if self.is_head_quantized else (floats + self.head_macs, integers)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TokenWork:
        """Read what `to_json` gave.

        Raises:
            TypeError: A figure is missing, unknown, or no number.
            ValueError: A figure is negative, or there are no weights.
        """
        return cls(**value)


_COUNTS = ("weight_bytes", "kv_bytes", "fp32_macs", "int8_macs", "head_macs", "attention_macs")


def count_token_work(artifact: Artifact) -> TokenWork:
    """Count what a language model reads and multiplies for a token.

    Args:
        artifact: Of kind `gguf` or `genai`.

    Raises:
        UnsupportedError: It is of another kind.
        ArtifactError: Its model file or configuration is damaged, or lacks what is counted.
    """
    match artifact.kind:
        case "gguf":
            path = _model_file(artifact)
            return _count_gguf(path, read_gguf(path))
        case "genai":
            return _count_genai(artifact)
        case _:
            raise UnsupportedError(f"{artifact.path}: the work for a token is counted of gguf and genai artifacts")


def _model_file(artifact: Artifact) -> Path:
    """The GGUF file at the top of an artifact: `model.gguf`, if there are several."""
    names = [entry.path for entry in artifact.manifest.files if entry.path.endswith(".gguf") and "/" not in entry.path]
    if not names:
        raise ArtifactError(f"{artifact.path}: has no .gguf file", mend="Export the model again.")
    return artifact.folder / min(names, key=lambda name: (name != "model.gguf", name))


def _count_gguf(path: Path, file: GgufFile) -> TokenWork:
    """Add up the tensors of a GGUF file.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (names and settings).
    """
    weight_bytes = 0.0
    macs = {"fp32": 0.0, "int8": 0.0, "head": 0.0}
    head = file.tensors.get("output.weight") or file.tensors.get("token_embd.weight")
    used = _used_experts(file)
    for name, tensor in file.tensors.items():
        if is_lookup_table(name, file):
            weight_bytes += tensor.size_bytes / math.prod(tensor.shape[1:])
            continue
        share = used if "_exps." in name else 1.0
        weight_bytes += share * tensor.size_bytes
        if len(tensor.shape) >= 2 and part_of_gguf(name) != "norms":
            kind = "head" if tensor is head else "fp32" if tensor.block_type.name in _FLOAT_TYPES else "int8"
            macs[kind] += share * math.prod(tensor.shape)
    key_values, queries = _widths(path, file)
    window = file.setting("attention.sliding_window")
    return TokenWork(
        weight_bytes=round(weight_bytes),
        kv_bytes=_KEY_VALUE_BYTES * key_values,
        kv_window=window if isinstance(window, int) and window > 0 else None,
        fp32_macs=round(macs["fp32"]),
        int8_macs=round(macs["int8"]),
        head_macs=round(macs["head"]),
        is_head_quantized=head is not None and head.block_type.name not in _FLOAT_TYPES,
        attention_macs=queries,
    )


def _used_experts(file: GgufFile) -> float:
    count, used = file.setting("expert_count"), file.setting("expert_used_count")
    return used / count if isinstance(count, int) and isinstance(used, int) and 0 < used <= count else 1.0


def _widths(path: Path, file: GgufFile) -> tuple[int, int]:
    """Values of one token's keys and values, and its multiplications with those of another, of all layers."""
    heads, width, layers = (
        _positive(path, file, key) for key in ("attention.head_count", "embedding_length", "block_count")
    )
    key_length = file.setting("attention.key_length")
    value_length = file.setting("attention.value_length")
    key_length = key_length if isinstance(key_length, int) else width // heads
    value_length = value_length if isinstance(value_length, int) else key_length
    stored = 0
    for layer in range(layers):
        parts = [file.tensors.get(f"blk.{layer}.attn_{name}.weight") for name in ("k", "v", "qkv")]
        stored += _stored_values(parts, heads * key_length)
    return stored, layers * heads * (key_length + value_length)


def _stored_values(parts: list[GgufTensor | None], query_width: int) -> int:
    """Width of the keys and values that a layer makes; 0 for one without attention."""
    key, value, fused = parts
    if key is not None:
        return key.shape[1] + (value or key).shape[1]
    return max(0, fused.shape[1] - query_width) if fused is not None and len(fused.shape) > 1 else 0


def _positive(path: Path, file: GgufFile, key: str) -> int:
    value = file.setting(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArtifactError(f"{path}: does not say its {key}", mend="Convert the model again.")
    return value


def _count_genai(artifact: Artifact) -> TokenWork:
    config, path = _read_config(artifact)
    model, signature = read_onnx_tensors(path), read_onnx(path).signature
    consumers = _consumers(model)
    weight_bytes, macs = 0.0, {"fp32": 0.0, "int8": 0.0, "head": 0.0}
    is_head_quantized = False
    for one in model.tensors:
        users = list(_users(one.name, consumers))
        if users and all(_takes_rows(node, name) for node, name in users):
            weight_bytes += one.size_bytes / max(1, one.shape[0] if one.shape else 1)
            continue
        share = _share_of_experts(one, users)
        weight_bytes += share * one.size_bytes
        for node, name in users:
            if (count := _macs_of(node, name, one)) and share:
                is_head, is_quantized = "logits" in node.outputs, node.operator != "MatMul"
                macs["head" if is_head else "int8" if is_quantized else "fp32"] += share * count
                is_head_quantized |= is_head and is_quantized
    stored = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_size"]
    dtypes = [spec.dtype for spec in signature.inputs if ".key" in spec.name or ".value" in spec.name]
    return TokenWork(
        weight_bytes=round(weight_bytes),
        kv_bytes=stored * _NUM_BYTES.get(dtypes[0] if dtypes else "float32", 4),
        kv_window=None,
        fp32_macs=round(macs["fp32"]),
        int8_macs=round(macs["int8"]),
        head_macs=round(macs["head"]),
        is_head_quantized=is_head_quantized,
        attention_macs=2 * config["num_hidden_layers"] * config["num_attention_heads"] * config["head_size"],
    )


def _read_config(artifact: Artifact) -> tuple[dict[str, int], Path]:
    """What `genai_config.json` says of the decoder, and its model file."""
    source = artifact.file("genai_config.json")
    names = ("num_hidden_layers", "num_key_value_heads", "num_attention_heads", "head_size")
    with storage_errors(source):
        content = source.read_bytes()
    try:
        decoder = json.loads(content)["model"]["decoder"]
        found = {name: int(decoder[name]) for name in names}
        filename = str(decoder["filename"])
        check_numbers(found, names)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{source}: does not describe a decoder ({type(error).__name__}: {error})", mend="Export the model again."
        ) from error
    return found, artifact.file(filename)


def _consumers(model: OnnxTensors) -> Mapping[str, list[OnnxNode]]:
    found = defaultdict(list)
    for node in model.nodes:
        for name in set(node.inputs):
            found[name].append(node)
    return found


def _users(name: str, consumers: Mapping[str, list[OnnxNode]], depth: int = 0) -> Iterator[tuple[OnnxNode, str]]:
    """The nodes that compute with a tensor, each with the name that it knows it by."""
    for node in consumers.get(name, ()):
        if node.operator in _STEPS_BETWEEN and node.inputs[0] == name and depth < len(_STEPS_BETWEEN):
            for output in node.outputs:
                yield from _users(output, consumers, depth + 1)
        else:
            yield node, name


def _takes_rows(node: OnnxNode, name: str) -> bool:
    """Whether a node reads some rows of a table: an embedding, or the angles of some positions."""
    is_angles = node.operator in ("GroupQueryAttention", "RotaryEmbedding") and name.endswith("_cache")
    return is_angles or (node.operator.startswith("Gather") and name in (node.inputs[0], *node.inputs[2:]))


def _share_of_experts(tensor: OnnxTensor, users: list[tuple[OnnxNode, str]]) -> float:
    """Experts that one token uses, of those that a tensor holds; 1 where there are none."""
    used = [node.integers.get("k", 1) for node, _ in users if node.operator in ("MoE", "QMoE")]
    return min(1.0, used[0] / tensor.shape[0]) if used and tensor.shape and tensor.shape[0] else 1.0


def _macs_of(node: OnnxNode, name: str, tensor: OnnxTensor) -> int:
    """Multiplications of a node by a tensor, for one token."""
    if len(node.inputs) < 2 or node.inputs[1] != name:
        return 0
    match node.operator:
        case "MatMulNBits":
            return node.integers.get("K", 0) * node.integers.get("N", 0)
        case "MatMul" | "MatMulInteger" | "DynamicQuantizeMatMul":
            return math.prod(tensor.shape)
        case _:
            return 0
