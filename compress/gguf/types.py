"""The types that llama.cpp quantizes to: presets for whole files, and the block types that tensors are stored in.

Source: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h (llama_ftype) and ggml.h (ggml_type).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgesmith.errors import UsageError
from serve.runtime.gguf_file import BLOCK_TYPES

__all__ = ["FILE_TYPES", "TENSOR_TYPES", "FileType", "TensorType", "find_file_type", "find_tensor_type"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorType:
    """How a tensor can be stored."""

    name: str
    number: int
    """Of `ggml_type`."""
    num_values: int
    """Values in one block; the columns of a tensor must be a multiple of it."""
    block_bytes: int
    needs_imatrix: bool
    """Whether llama.cpp refuses it without an importance matrix. The embeddings and the head it lets pass."""
    uses_imatrix: bool
    """Whether an importance matrix changes what is written."""

    @property
    def bits_per_weight(self) -> float:
        """Scales and minima included."""
        return self.block_bytes * 8 / self.num_values

    @property
    def is_float(self) -> bool:
        """Whether values are stored one by one."""
        return self.num_values == 1

    def size_bytes(self, num_values: int) -> int:
        """Bytes of a tensor of so many values."""
        return num_values // self.num_values * self.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FileType:
    """A preset: which block type each kind of tensor gets."""

    name: str
    number: int
    """Of `llama_ftype`, written into the file as `general.file_type`."""
    tensor_type: str
    """What most matrices get; the preset gives some of them more."""
    needs_imatrix: bool
    """Whether it gives any matrix a type that needs an importance matrix."""

    @property
    def bits_per_weight(self) -> float:
        """Of the block type that most matrices get; a real file has more."""
        return TENSOR_TYPES[self.tensor_type].bits_per_weight


_FLOATS = ("F32", "F16", "BF16")
_NEEDING = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
# Rounded to the nearest whatever the columns weigh.
_UNWEIGHTED = frozenset({*_FLOATS, "Q8_0", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"})
# Types of the format that nothing can be quantized to: those of activations and of plain numbers.
_NOT_FOR_WEIGHTS = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})

TENSOR_TYPES: Mapping[str, TensorType] = {
    block.name: TensorType(
        name=block.name,
        number=number,
        num_values=block.num_values,
        block_bytes=block.size_bytes,
        needs_imatrix=block.name in _NEEDING,
        uses_imatrix=block.name not in _UNWEIGHTED,
    )
    for number, block in BLOCK_TYPES.items()
    if block.name not in _NOT_FOR_WEIGHTS
}
"""By name, those that the reader of GGUF files knows."""

# Name → number, what most matrices get, whether it needs an importance matrix. NVFP4 (39) is not among them: the
# quantizer takes it for single tensors only.
_FILE_TYPES: Mapping[str, tuple[int, str, bool]] = {
    "F32": (0, "F32", False), "F16": (1, "F16", False), "BF16": (32, "BF16", False),
    "Q8_0": (7, "Q8_0", False), "Q6_K": (18, "Q6_K", False),
    "Q5_K_M": (17, "Q5_K", False), "Q5_K_S": (16, "Q5_K", False),
    "Q5_1": (9, "Q5_1", False), "Q5_0": (8, "Q5_0", False),
    "Q4_K_M": (15, "Q4_K", False), "Q4_K_S": (14, "Q4_K", False),
    "Q4_1": (3, "Q4_1", False), "Q4_0": (2, "Q4_0", False),
    "IQ4_NL": (25, "IQ4_NL", False), "IQ4_XS": (30, "IQ4_XS", False),
    "MXFP4_MOE": (38, "MXFP4", False),
    "Q3_K_L": (13, "Q3_K", False), "Q3_K_M": (12, "Q3_K", False), "Q3_K_S": (11, "Q3_K", False),
    "IQ3_M": (27, "IQ3_S", False), "IQ3_S": (26, "IQ3_S", False),
    "IQ3_XS": (22, "IQ3_S", True), "IQ3_XXS": (23, "IQ3_XXS", True),
    "Q2_K": (10, "Q2_K", False), "Q2_K_S": (21, "Q2_K", True), "Q2_0": (41, "Q2_0", False),
    "IQ2_M": (29, "IQ2_S", True), "IQ2_S": (28, "IQ2_XS", True), "IQ2_XS": (20, "IQ2_XS", True),
    "IQ2_XXS": (19, "IQ2_XXS", True), "TQ2_0": (37, "TQ2_0", False), "TQ1_0": (36, "TQ1_0", False),
    "IQ1_M": (31, "IQ1_M", True), "IQ1_S": (24, "IQ1_S", True), "Q1_0": (40, "Q1_0", False),
}  # fmt: skip

FILE_TYPES: Mapping[str, FileType] = {
    name: FileType(name=name, number=number, tensor_type=tensor_type, needs_imatrix=needs)
    for name, (number, tensor_type, needs) in _FILE_TYPES.items()
    if tensor_type in TENSOR_TYPES
}
"""By name, the largest first."""

_ALIASES: Mapping[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}


def find_file_type(name: str) -> FileType:
    """Look a preset up; case does not matter, and `Q4_K` means `Q4_K_M`.

    Raises:
        UsageError: there is none of this name; the nearest is named.
    """
    upper = name.upper()
    found = FILE_TYPES.get(_ALIASES.get(upper, upper))
    if found is None:
        raise _unknown(f"{name!r} is no type that llama.cpp quantizes files to", upper, FILE_TYPES)
    return found


def find_tensor_type(name: str) -> TensorType:
    """Look a block type up; case does not matter.

    Raises:
        UsageError: nothing can be stored in a type of this name; the nearest is named.
    """
    found = TENSOR_TYPES.get(name.upper())
    if found is None:
        hint = "is a type for files, not for one tensor" if name.upper() in FILE_TYPES else "is no type for a tensor"
        raise _unknown(f"{name!r} {hint}", name.upper(), TENSOR_TYPES)
    return found


def _unknown(message: str, name: str, known: Iterable[str]) -> UsageError:
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    hint = f"Did you mean {nearest[0]}? " if nearest else ""
    return UsageError(message, mend=f"{hint}There are: {', '.join(names)}.")
