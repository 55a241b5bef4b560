"""How the weights of an onnxruntime-genai model become integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgesmith.errors import UsageError

__all__ = ["Algorithm", "GenaiQuantConfig", "Precision"]

Precision = Literal["int4", "int8", "fp16", "fp32"]
Algorithm = Literal["default", "rtn", "k_quant"]
Bits = Literal["int4", "int8"]

_BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class GenaiQuantConfig:
    """Weights of matrix multiplications in blocks along the input axis, each with its scale in float32.

    Raises:
        UsageError: A value is none of those that the builder knows.
    """

    method: Bits = "int4"
    """Bits of most weights."""
    block_size: int = 32
    """Weights that share a scale: fewer are nearer, more are smaller."""
    algorithm: Algorithm = "k_quant"
    """`k_quant` looks for the scale and offset that lose least, `rtn` and `default` take the range of the block."""
    is_symmetric: bool = True
    """Without an offset a block. `k_quant` always has one."""
    head: Bits | None = None
    """Bits of the last matrix, which the embeddings share where the model ties them; None is those of `method`."""
    sensitive: Bits | None = None
    """Bits of the layers that llama.cpp's mixed types raise: the first and last eighth, and every third between."""
    accuracy_level: int = 4
    """What activations become for the multiplication: 4 is int8, which is fast; 1 keeps float32."""

    def __post_init__(self) -> None:
        _one_of("method", self.method, get_args(Bits))
        _one_of("algorithm", self.algorithm, get_args(Algorithm))
        _one_of("block_size", self.block_size, _BLOCK_SIZES)
        _one_of("accuracy_level", self.accuracy_level, (0, 1, 2, 3, 4))
        for name in ("head", "sensitive"):
            _one_of(name, getattr(self, name), (None, *get_args(Bits)))
        if not isinstance(self.is_symmetric, bool):
            raise UsageError(f"is_symmetric is {self.is_symmetric!r}; it must be true or false")
        if self.algorithm == "default" and not self.is_symmetric:
            raise UsageError(
                "the algorithm `default` with offsets gives a model that cannot be opened where embeddings are shared",
                mend="Ask for the algorithm `rtn` or `k_quant`.",
            )

    @property
    def head_bits(self) -> int:
        """Bits of the last matrix."""
        return 8 if (self.head or self.method) == "int8" else 4

    def builder_options(self) -> dict[str, str]:
        """The same as the builder's own options."""
        mixed = {"last_matmul": self.head, "mixed_layers": self.sensitive}
        chosen = ",".join(f"{place}:{bits}" for place, bits in mixed.items() if bits and bits != self.method)
        return {
            "algo_config": self.algorithm,
            "block_size": str(self.block_size),
            "is_symmetric": str(self.is_symmetric).lower(),
            "accuracy_level": str(self.accuracy_level),
        } | ({"matmul_mixed_precision": chosen} if chosen else {})


def _one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if isinstance(value, bool) or value not in known:
        raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(map(str, known))}")
