"""Which part of a language model a tensor belongs to, by the names that the formats' converters give."""

from __future__ import annotations

import re
from collections.abc import Mapping

from serve.runtime.gguf_file import GgufFile
from serve.runtime.onnx_tensors import OnnxTensors

__all__ = ["PARTS", "find_embeddings", "find_scales", "is_lookup_table", "part_of_gguf", "part_of_onnx"]

PARTS = ("embeddings", "attention", "feed-forward", "output layer", "norms")
"""In the order in which a text passes them."""

_LOOKUPS = re.compile(r"(token_embd|position_embd|token_types|per_layer_token_embd)\.weight$")
_GGUF = (
    ("norms", re.compile(r"norm")),  # before attention: `blk.0.attn_norm`
    ("embeddings", re.compile(r"^(token_embd|position_embd|token_types|per_layer_)")),
    ("output layer", re.compile(r"^(output|cls)\b")),
    ("attention", re.compile(r"attn|ssm_|shortconv|rope_")),
    ("feed-forward", re.compile(r"ffn|exp_probs")),
)
_ONNX = (
    ("norms", re.compile(r"norm", re.IGNORECASE)),
    ("embeddings", re.compile(r"embed_tokens|embed_in|\bwte\b|\bwpe\b", re.IGNORECASE)),
    ("output layer", re.compile(r"lm_head|embed_out", re.IGNORECASE)),
    ("attention", re.compile(r"attn|attention|cos_cache|sin_cache", re.IGNORECASE)),
    ("feed-forward", re.compile(r"mlp|ffn|feed_forward|moe|experts", re.IGNORECASE)),
)
_SCALED: Mapping[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "MatMulNBits": (2, 3),
    "GatherBlockQuantized": (2, 3),
}
"""Operator → its inputs that scale and shift others."""
_MIN_TABLE_BYTES = 4096


def part_of_gguf(name: str) -> str:
    """Name the part that a tensor of a GGUF file belongs to; `other weights` for none of `PARTS`.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#standardized-tensor-names
    """
    return next((part for part, pattern in _GGUF if pattern.search(name)), "other weights")


def part_of_onnx(name: str) -> str:
    """Name the part that a tensor of an exported language model belongs to; `other weights` for none of `PARTS`."""
    return next((part for part, pattern in _ONNX if pattern.search(name)), "other weights")


def is_lookup_table(name: str, file: GgufFile) -> bool:
    """Whether only some rows of a GGUF tensor are read: a table of embeddings that is no output layer as well."""
    if not _LOOKUPS.search(name):
        return False
    return name != "token_embd.weight" or "output.weight" in file.tensors


def find_embeddings(model: OnnxTensors) -> set[str]:
    """Names of the matrices that rows are gathered from, be it after a step between, and that multiply nothing."""
    matrices = {one.name for one in model.tensors if len(one.shape) >= 2 and one.size_bytes > _MIN_TABLE_BYTES}
    gathered = {node.inputs[0] for node in model.nodes if node.operator.startswith("Gather") and node.inputs}
    behind = {
        node.inputs[0]
        for node in model.nodes
        if node.operator in ("QuantizeLinear", "DequantizeLinear", "Reshape") and gathered.intersection(node.outputs)
    }
    multiplied = {name for node in model.nodes if node.operator.startswith("MatMul") for name in node.inputs[1:2]}
    return ((gathered | behind) & matrices) - multiplied


def find_scales(model: OnnxTensors) -> set[str]:
    """Names of the tensors that scale and shift quantized ones."""
    found = {
        node.inputs[index]
        for node in model.nodes
        for index in _SCALED.get(node.operator, ())
        if index < len(node.inputs) and node.inputs[index]
    }
    return found | {one.name for one in model.tensors if one.name.endswith(("_scale", "_zero_point", "_scales"))}
