"""What a quantization is asked for, and what it gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from compress.gguf.quantize_plan import FLOATS
from compress.gguf.types import find_file_type, find_tensor_type

__all__ = ["GgufQuantConfig", "GgufQuantResult", "QuantizedTensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufQuantConfig:
    """How to quantize.

    Raises:
        UsageError: a type is not known.
    """

    type: str = "Q4_K_M"
    """The preset. With F32, F16 or BF16 only what `tensor_types` names is quantized."""
    tensor_types: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Name of a tensor or shell pattern → its block type, in place of the preset's; the last that matches counts."""
    pure: bool = False
    """Give every matrix the type that most get, embeddings and head too."""

    def __post_init__(self) -> None:
        find_file_type(self.type)
        for name in self.tensor_types.values():
            find_tensor_type(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedTensor:
    """One tensor of the new file."""

    name: str
    type: str
    num_values: int
    size_bytes: int
    source_type: str
    wanted: str | None = None
    """What the preset would have given it, had its columns been a multiple of that type's blocks."""
    used_imatrix: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether it is stored in blocks."""
        return self.type not in FLOATS


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufQuantResult:
    """What was written."""

    path: Path
    type: str
    """The preset."""
    size_bytes: int
    source_bytes: int
    tensors: tuple[QuantizedTensor, ...]
    without_imatrix: tuple[str, ...] = ()
    """Quantized tensors whose type uses an importance matrix, which has no entry for them."""

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors together."""
        return sum(one.size_bytes for one in self.tensors) * 8 / sum(one.num_values for one in self.tensors)

    @property
    def fallbacks(self) -> tuple[QuantizedTensor, ...]:
        """Tensors that could not have the type that the preset wanted for them."""
        return tuple(one for one in self.tensors if one.wanted is not None)

    def summary(self) -> str:
        """One line."""
        notes = [f"{len(self.fallbacks)} tensors in another type than wanted"] if self.fallbacks else []
        notes += [f"{len(self.without_imatrix)} without importance matrix"] if self.without_imatrix else []
        return ", ".join(
            [f"{self.type}: {self.size_bytes / 1e6:.1f} MB, {self.bits_per_weight:.2f} bits per weight", *notes]
        )
