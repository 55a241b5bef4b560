"""What the names of GGUF tensors say about them."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["EMBEDDINGS", "NEVER_QUANTIZED", "name_kinds"]

EMBEDDINGS = ("token_embd.weight", "output.weight")
"""Tables with a row for every token; errors in them have nothing in common with errors in other matrices."""
NEVER_QUANTIZED = ("position_embd.weight", "token_types.weight", "ffn_gate_inp.weight")
"""Ends of the names of matrices that the runtime reads in f32 only, whatever is asked for."""


def name_kinds(names: Iterable[str]) -> str:
    """Name tensors of one kind in several layers once: `3 × blk.*.ffn_up_exps.weight, output.weight`."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"^blk\.\d+\.", "blk.*.", name), []).append(name)
    return ", ".join(found[0] if len(found) == 1 else f"{len(found)} × {kind}" for kind, found in kinds.items())
