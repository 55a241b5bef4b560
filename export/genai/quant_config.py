"""How the weights of an onnxruntime-genai model become integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from compress.checkpoint import Checkpoint
from edgesmith.errors import UnsupportedError, UsageError

__all__ = ["Algorithm", "GenaiQuantConfig", "Precision", "check_blocks"]

Precision = Literal["int4", "int8", "fp16", "fp32"]
Algorithm = Literal["default", "rtn", "k_quant"]
Bits = Literal["int4", "int8"]

_BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class GenaiQuantConfig:
    """Weights of matrix multiplications in blocks along the input axis, each with its scale in float32.

    The defaults are what SmolLM2-135M spoke for, on 6 × 256 tokens of prose (mean KLD to fp32; graph and weights):
    all int4 0.455 nats, 89 MB; head int8 0.369, 103 MB; sensitive layers int8 too 0.230, 114 MB; blocks of 16 0.317,
    108 MB; all int8 0.0047, 154 MB. Float activations (`accuracy_level` 1) gain 2 % and take 19 times as long.

    Raises:
        UsageError: A value is none of those that the builder knows.
    """

    method: Bits = "int4"
    """Bits of most weights."""
    block_size: int = 32
    """Weights that share a scale: fewer are nearer, more are smaller."""
    algorithm: Algorithm | None = None
    """`k_quant` looks for the scale and offset that lose least, `rtn` and `default` take the range of the block. None
    is `k_quant` for int4, where it matters, and `default` for int8."""
    is_symmetric: bool = True
    """Without an offset a block. `k_quant` always has one."""
    head: Bits = "int8"
    """Bits of the last matrix, which the embeddings share where the model ties them."""
    sensitive: Bits = "int8"
    """Bits of the layers that llama.cpp's mixed types raise: the first and last eighth, and every third between."""
    accuracy_level: int = 4
    """What activations become for the multiplication: 4 is int8, which is fast; 1 keeps float32."""

    def __post_init__(self) -> None:
        _one_of("method", self.method, get_args(Bits))
        _one_of("algorithm", self.algorithm, (None, *get_args(Algorithm)))
        _one_of("block_size", self.block_size, _BLOCK_SIZES)
        _one_of("accuracy_level", self.accuracy_level, (0, 1, 2, 3, 4))
        for name in ("head", "sensitive"):
            _one_of(name, getattr(self, name), get_args(Bits))
        if not isinstance(self.is_symmetric, bool):
            raise UsageError(f"is_symmetric is {self.is_symmetric!r}; it must be true or false")
        is_mixed = self.method == "int4" and "int8" in (self.head, self.sensitive)
        if self.algorithm == "default" and (is_mixed or not self.is_symmetric):
            raise UsageError(
                "the algorithm `default` with offsets, or with matrices of other bits, gives a model that cannot be "
                "opened where embeddings are shared",
                mend="Ask for the algorithm `rtn` or `k_quant`.",
            )
        if self.method == "int8" and "int4" in (self.head, self.sensitive):
            raise UsageError("head and sensitive are at least as fine as method", mend="Leave them out for int8.")

    @property
    def chosen_algorithm(self) -> Algorithm:
        """The algorithm, chosen where it is left open."""
        return self.algorithm or ("k_quant" if self.method == "int4" else "default")

    @property
    def has_offsets(self) -> bool:
        """Whether each block has an offset beside its scale."""
        return self.chosen_algorithm == "k_quant" or not self.is_symmetric

    def builder_options(self) -> dict[str, str]:
        """The same as the builder's own options."""
        mixed = {"last_matmul": self.head, "mixed_layers": self.sensitive}
        chosen = ",".join(f"{place}:{bits}" for place, bits in mixed.items() if bits != self.method)
        return {
            "algo_config": self.chosen_algorithm,
            "block_size": str(self.block_size),
            "is_symmetric": str(self.is_symmetric).lower(),
            "accuracy_level": str(self.accuracy_level),
        } | ({"matmul_mixed_precision": chosen} if chosen else {})


def _one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if isinstance(value, bool) or value not in known:
        raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(map(str, known))}")


def check_blocks(checkpoint: Checkpoint, config: GenaiQuantConfig) -> None:
    """Refuse blocks that the quantizer packs wrongly: two 4-bit offsets share a byte, and must share a row.

    Raises:
        UnsupportedError: A matrix has an odd number of blocks in a row; the message has the numbers.
    """
    if config.method == "int8" or not config.has_offsets:
        return
    for name, entry in sorted(checkpoint.entries.items()):
        if len(entry.shape) != 2:
            continue
        blocks = -(-entry.shape[1] // config.block_size)
        if blocks % 2:
            raise UnsupportedError(
                f"{checkpoint.folder}: {name} has {entry.shape[1]} columns, {blocks} blocks of {config.block_size}; "
                f"{config.chosen_algorithm} needs an even number of blocks",
                mend="Halve block_size, or ask for `algorithm: rtn` without offsets.",
            )
