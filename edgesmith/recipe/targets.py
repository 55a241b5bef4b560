"""The artifacts that a recipe can ask for, by format."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgesmith.gates import Gates
from edgesmith.recipe.strict import Positive, Strict

__all__ = [
    "FORMATS",
    "FloatType",
    "GenaiQuantizeOptions",
    "GenaiTarget",
    "GgufQuantizeOptions",
    "GgufTarget",
    "OnnxTarget",
    "OptimizeFor",
    "QuantizeMethod",
    "QuantizeOptions",
    "Target",
]

QuantizeMethod = Literal["dynamic-int8", "static-int8"]
OptimizeFor = Literal["onnxruntime-cpu", "portable"]
FloatType = Literal["f32", "f16", "bf16"]


class QuantizeOptions(Strict):
    """How a graph's weights and activations become 8-bit integers."""

    method: QuantizeMethod
    """`dynamic-int8` takes activation ranges from each input, `static-int8` from calibration rows."""
    smoothing: bool | None = None
    """Scale down the few activation channels that are many times larger than the rest: several times nearer to fp32
    for some speed. Needs data.calibration. Left out, static-int8 does it and dynamic-int8 does not."""
    reduce_range: bool = False
    """7-bit weights: needed to be right on x86 processors without VNNI, at some loss elsewhere."""
    exclude: tuple[str, ...] = ()
    """Shell patterns of node and weight names that stay in float."""
    clusters: Annotated[int | None, Field(ge=2, le=128)] = None
    """Let the weights of a tensor share so many values: the file stays as large and as fast, but is fetched in fewer
    bits a weight, at most the logarithm of this to base 2. 64 or 32 cost little; below, look at the gates."""

    @property
    def is_smoothed(self) -> bool:
        """Whether activation channels are scaled first."""
        return self.method == "static-int8" if self.smoothing is None else self.smoothing

    @property
    def needs_calibration(self) -> bool:
        """Whether real rows are needed."""
        return self.method == "static-int8" or self.is_smoothed


class _Target(Strict):
    """What every target can have."""

    gates: Gates | None = None
    """What this target must hold: its gates take the place of the recipe's of the same kinds."""


class OnnxTarget(_Target):
    """A graph for ONNX Runtime."""

    format: Literal["onnx"]
    """What runs it."""
    quantize: QuantizeOptions | None = None
    """Leave out for fp32."""
    optimize_for: OptimizeFor = "onnxruntime-cpu"
    """`portable` uses only standard ONNX operators, for other runtimes than ONNX Runtime."""
    opset: Annotated[int | None, Field(ge=18, le=23)] = None
    """ONNX opset; chosen by `optimize_for` when left out."""
    max_length: Annotated[int | None, Field(ge=8)] = None
    """Longest input in tokens; longer ones are cut. The model's own limit when left out."""

    @property
    def calibrates(self) -> str | None:
        """What needs data.calibration; None where nothing does."""
        if self.quantize is None or not self.quantize.needs_calibration:
            return None
        return "smoothing" if self.quantize.method == "dynamic-int8" else "static-int8"


class GgufQuantizeOptions(Strict):
    """How many bits a GGUF file's weights keep: a preset of llama.cpp, or a budget that is spent where it counts."""

    type: str | None = None
    """llama.cpp's name of a mix of types, such as `Q4_K_M`, `IQ4_XS` or `Q8_0`."""
    bits_per_weight: Annotated[float | None, Field(ge=1.5, le=16, allow_inf_nan=False)] = None
    """Instead of a type: each tensor's type is chosen by its measured damage, within this mean."""
    max_mb: Positive | None = None
    """Instead of a type: the same within a file of so many megabytes of 1,000,000 bytes."""
    max_mean_kld: Positive | None = None
    """Instead of a type: the smallest file whose predictions stay so near to the checkpoint's, in nats a token."""
    imatrix: bool | str | None = None
    """Weigh rounding errors by how strongly real text uses each column. `true` measures that on data.calibration, a
    path names an importance matrix in llama.cpp's format. Left out, it is measured where data.calibration is set."""
    tensor_types: dict[str, str] = {}  # noqa: RUF012
    """Shell pattern of tensor names → type, such as `token_embd*: Q8_0`; later ones win."""

    @model_validator(mode="after")
    def _has_one_aim(self) -> GgufQuantizeOptions:
        aims = ("type", "bits_per_weight", "max_mb", "max_mean_kld")
        given = [name for name in aims if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs just one of {', '.join(aims)}; it has {' and '.join(given) or 'none'}")
        if self.is_allocated and self.tensor_types:
            raise ValueError(f"tensor_types fixes types that {given[0]} is to choose; it goes with type")
        return self

    @property
    def is_allocated(self) -> bool:
        """Whether each tensor's type is chosen by its measured damage."""
        return self.type is None

    @property
    def name(self) -> str:
        """In a few words."""
        if self.bits_per_weight is not None:
            return f"{self.bits_per_weight:g} bits a weight"
        if self.max_mb is not None:
            return f"at most {self.max_mb:g} MB"
        if self.max_mean_kld is not None:
            return f"mean KLD at most {self.max_mean_kld:g}"
        return str(self.type)


class GgufTarget(_Target):
    """One file for llama.cpp."""

    format: Literal["gguf"]
    """What runs it."""
    quantize: GgufQuantizeOptions | None = None
    """Leave out for floats."""
    dtype: FloatType | None = None
    """Of the weights that are not quantized, and of what is quantized; the checkpoint's own when left out."""
    converter: str | None = None
    """For families that edgesmith does not convert: a llama.cpp checkout, or an executable with its converter's
    options. What it writes is verified in the same way."""

    @property
    def calibrates(self) -> str | None:
        """What needs data.calibration; None where nothing does."""
        if self.quantize is None:
            return None
        if self.quantize.is_allocated:
            return "the choice of types by measured damage"
        return "imatrix: true" if self.quantize.imatrix is True else None


class GenaiQuantizeOptions(Strict):
    """How an onnxruntime-genai model's weights become integers."""

    method: Literal["int4", "int8"]
    """Bits of the weights of matrix multiplications."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights that share a scale: fewer are nearer, more are smaller."""
    head: Literal["int4", "int8"] = "int8"
    """Bits of the last matrix, which the embeddings share where the model ties them."""
    sensitive: Literal["int4", "int8"] = "int8"
    """Bits of the layers that rounding harms most: the first and last eighth, and every third between."""


class GenaiTarget(_Target):
    """A folder for onnxruntime-genai."""

    format: Literal["genai"]
    """What runs it."""
    quantize: GenaiQuantizeOptions | None = None
    """Leave out for floats."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Of a model that is not quantized."""

    @property
    def calibrates(self) -> str | None:
        """Nothing needs data.calibration."""
        return None

    @model_validator(mode="after")
    def _is_one_precision(self) -> GenaiTarget:
        if self.quantize is not None and self.precision != "fp32":
            raise ValueError("precision is of a model that is not quantized; leave it out beside quantize")
        return self


Target = Annotated[OnnxTarget | GgufTarget | GenaiTarget, Field(discriminator="format")]
FORMATS = ("onnx", "gguf", "genai")
"""The values of `format`."""
