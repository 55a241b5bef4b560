"""What a GGUF file says of its model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

__all__ = ["gguf_facts"]


def gguf_facts(path: Path) -> dict[str, Any]:
    """Read the architecture, the tokenizer and the types of the tensors; the weights are not read.

    Args:
        path: The `.gguf` file.

    Returns:
        JSON-able; None where the file does not say. `tensor_types` has the largest first.

    Raises:
        ArtifactError: it is damaged or hostile.
        UnsupportedError: it is of another version, or one part of several.
    """
    from serve.runtime.gguf_file import GgufArray, read_gguf

    found = read_gguf(path)
    said = found.metadata
    words = said.get("tokenizer.ggml.tokens")
    types: dict[str, dict[str, Any]] = {}
    for tensor in found.tensors.values():
        one = types.setdefault(tensor.block_type.name, {"num_tensors": 0, "num_values": 0, "size_bytes": 0})
        one["num_tensors"] += 1
        one["num_values"] += math.prod(tensor.shape)
        one["size_bytes"] += tensor.size_bytes
    for one in types.values():
        one["bits_per_weight"] = _bits(one["size_bytes"], one["num_values"])
    num_values, num_bytes = (sum(one[name] for one in types.values()) for name in ("num_values", "size_bytes"))
    facts: dict[str, Any] = {
        "type": said.get("general.type", "model"),
        "architecture": found.architecture,
        "name": said.get("general.name"),
        "context_length": found.setting("context_length"),
        "num_layers": found.setting("block_count"),
        "num_parameters": num_values,
        "bits_per_weight": _bits(num_bytes, num_values),
        "tokenizer": said.get("tokenizer.ggml.model"),
        "pre_tokenizer": said.get("tokenizer.ggml.pre"),
        "num_vocabulary": words.length if isinstance(words, GgufArray) else None,
        "has_chat_template": "tokenizer.chat_template" in said,
    }
    if facts["type"] == "adapter":
        facts |= {"adapter": said.get("adapter.type"), "alpha": said.get("adapter.lora.alpha")}
    listed = sorted(types.items(), key=lambda item: -item[1]["size_bytes"])
    return facts | {"tensor_types": [{"type": name, **one} for name, one in listed]}


def _bits(size_bytes: int, num_values: int) -> float | None:
    return 8 * size_bytes / num_values if num_values else None
