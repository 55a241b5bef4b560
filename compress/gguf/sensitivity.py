"""What each tensor costs in each type: bytes of the file, and mean KL divergence from the unquantized model.

Axes: E experts (1 for plain matrices), O rows (outputs), I columns (inputs), R rows that are tried.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.gguf.fisher import Fisher, FisherFactor
from compress.gguf.imatrix_data import Imatrix
from compress.gguf.quantize_plan import check_imatrix, check_source, matrices
from compress.gguf.round_trip import round_trip
from compress.gguf.tensor_factors import find_factors
from compress.gguf.tensor_kinds import NEVER_QUANTIZED, name_kinds
from compress.gguf.types import TENSOR_TYPES, TensorType, find_tensor_type
from edgesmith.errors import ArtifactError, UnsupportedError
from edgesmith.files import atomic_write, storage_errors
from edgesmith.progress import SILENT, Progress
from serve.runtime.gguf_file import GgufFile, GgufTensor, read_gguf

__all__ = ["CANDIDATES", "QUICK_CANDIDATES", "Choice", "FixedTensor", "Sensitivity", "TensorSensitivity",
           "measure_sensitivity"]  # fmt: skip

QUICK_CANDIDATES = ("Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0")
"""Types without tables of codes: the ones that old and small processors are quick at."""
CANDIDATES = (*QUICK_CANDIDATES, "IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL")
"""Three bits and more; types of two bits are tried when they are named, which takes many times as long."""

_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_UNMEASURED_TYPE = "Q8_0"
_SMALLEST_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """One tensor in one type."""

    type: str
    size_bytes: int
    damage: float
    """Predicted mean KL divergence per token, in nats, when all others are unquantized; they add up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSensitivity:
    """What can be chosen for one tensor."""

    name: str
    num_values: int
    choices: tuple[Choice, ...]
    is_measured: bool = True
    """Or no gradient is known for it, and errors are taken to cost what they cost in a feed-forward layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedTensor:
    """A tensor whose type is not chosen."""

    name: str
    type: str
    num_values: int
    size_bytes: int
    why: str
    """`vector`, `never quantized`, `odd columns`, or `not measured`: embeddings without a gradient, or no candidate
    fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The table that types are chosen from. It serves any number of budgets."""

    tensors: tuple[TensorSensitivity, ...]
    fixed: tuple[FixedTensor, ...]
    header_bytes: int
    """Of the unquantized file: all before the first tensor."""
    alignment: int
    """Tensors start at multiples of it."""
    num_tokens: int = 0
    """Of calibration text."""

    @property
    def num_values(self) -> int:
        """Of the whole model."""
        return sum(one.num_values for one in self.tensors) + sum(one.num_values for one in self.fixed)

    def save(self, path: Path) -> None:
        """Write it as JSON; the file appears when it is complete.

        Raises:
            StorageError: it cannot be written.
        """
        with storage_errors(path):
            atomic_write(path, json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Sensitivity:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is no such file.
            StorageError: it cannot be read.
        """
        with storage_errors(path):
            content = path.read_bytes()
        try:
            found = json.loads(content)
            tensors = tuple(
                TensorSensitivity(**one | {"choices": tuple(Choice(**choice) for choice in one["choices"])})
                for one in found["tensors"]
            )
            return Sensitivity(**found | {"tensors": tensors, "fixed": tuple(FixedTensor(**f) for f in found["fixed"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{path}: is no table of sensitivities", mend="Measure it again.") from error


def measure_sensitivity(
    source: Path,
    fisher: Fisher,
    *,
    imatrix: Imatrix | None = None,
    candidates: Sequence[str] = CANDIDATES,
    rows: int = 256,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Sensitivity:
    """Round rows of every matrix to every candidate type, and weigh the errors.

    One matrix at a time is read. Rows are drawn in proportion to their weight, so that a few hundred stand for all.
    What errors cost in matrices without gradients is estimated, see `find_factors`, and noted.

    Args:
        source: Unquantized GGUF file: f32, f16 or bf16.
        fisher: Collected from the same model.
        imatrix: The one to quantize with; without, types that need one are no candidates.
        candidates: Types to choose from; each matrix is tried in those that its columns fit.
        rows: Rows of each matrix that are tried.
        threads: Types tried at the same time.
        progress: Told of each tensor.

    Raises:
        UsageError: a type is not known, or `fisher` or `imatrix` is of another model.
        UnsupportedError: the file is quantized already, a value is not finite, or no matrix can be chosen for.
        ArtifactError: the file is damaged or hostile.
        MissingExtraError: llama-cpp-python is not installed.
    """
    file = read_gguf(source)
    check_source(source, file)
    if imatrix is not None:
        check_imatrix(source, file, imatrix)
    types = [find_tensor_type(name) for name in dict.fromkeys(candidates)]
    measured: list[TensorSensitivity] = []
    factors = find_factors(file, fisher, imatrix)
    if estimated := [name for name in factors if name not in fisher.factors]:
        progress.note(f"not measured, but estimated from feed-forward layers: {name_kinds(estimated)}")
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for tensor in progress.track([file.tensors[name] for name in factors], "Try types"):
            sample = _Sample.draw(source, tensor, factors[tensor.name], rows)
            entry = imatrix.entries.get(tensor.name) if imatrix is not None else None
            importance = None if entry is None else entry.means().reshape(-1, tensor.shape[0])
            fitting = [kind for kind in types if _fits(tensor, kind, has_imatrix=importance is not None)]
            damages = pool.map(lambda kind, at=sample, by=importance: at.damage(kind.name, by), fitting)
            choices = [Choice(kind.name, kind.size_bytes(math.prod(tensor.shape)), damage)
                       for kind, damage in zip(fitting, damages, strict=True)]  # fmt: skip
            if choices:
                measured.append(TensorSensitivity(
                    name=tensor.name, num_values=math.prod(tensor.shape), choices=_worth_having(choices),
                    is_measured=tensor.name in fisher.factors,
                ))  # fmt: skip
    if not measured:
        raise UnsupportedError(f"{source}: no matrix can be stored in any of {', '.join(candidates)}")
    return _table(file, measured, fisher)


def _fits(tensor: GgufTensor, kind: TensorType, *, has_imatrix: bool) -> bool:
    return tensor.shape[0] % kind.num_values == 0 and (has_imatrix or not kind.needs_imatrix)


def _worth_having(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Those that no smaller or equally large one beats, the smallest first."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda one: (one.size_bytes, one.damage)):
        if not kept or choice.damage < kept[-1].damage:
            kept.append(choice)
    return tuple(kept)


def _table(file: GgufFile, measured: Sequence[TensorSensitivity], fisher: Fisher) -> Sensitivity:
    chosen = {one.name for one in measured}
    quantizable = {one.name for one in matrices(file) if not one.name.endswith(NEVER_QUANTIZED)}
    alignment = file.metadata.get("general.alignment", _SMALLEST_BLOCK)
    return Sensitivity(
        tensors=tuple(measured),
        fixed=tuple(_fixed(one, quantizable) for one in file.tensors.values() if one.name not in chosen),
        header_bytes=min(one.start for one in file.tensors.values()),
        alignment=alignment if isinstance(alignment, int) else _SMALLEST_BLOCK,
        num_tokens=fisher.num_tokens,
    )


def _fixed(tensor: GgufTensor, quantizable: set[str]) -> FixedTensor:
    num_values = math.prod(tensor.shape)
    fixed = FixedTensor(
        name=tensor.name,
        type=tensor.block_type.name,
        num_values=num_values,
        size_bytes=tensor.size_bytes,
        why="vector" if len(tensor.shape) == 1 else "never quantized",
    )
    if tensor.name not in quantizable:
        return fixed
    odd = tensor.shape[0] % _SMALLEST_BLOCK != 0
    kind = TENSOR_TYPES["F16" if odd and fixed.type == "F32" else fixed.type if odd else _UNMEASURED_TYPE]
    return replace(
        fixed, type=kind.name, size_bytes=kind.size_bytes(num_values), why="odd columns" if odd else "not measured"
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sample:
    """Some rows of a matrix, and how much each stands for."""

    parts: tuple[tuple[NDArray[np.float32], NDArray[np.float64]], ...]
    """For each expert: rows of shape [R, I] and their weights of shape [R]."""
    factor: FisherFactor

    @staticmethod
    def draw(path: Path, tensor: GgufTensor, factor: FisherFactor, rows: int) -> _Sample:
        """Systematic sampling in proportion to the weights: a row of twice the weight is drawn twice as often."""
        shape_EOI = (*factor.rows.shape, factor.columns.shape[1])
        stored: NDArray[np.generic] = np.memmap(
            path, dtype=_FLOATS[tensor.block_type.name], mode="r", offset=tensor.start, shape=shape_EOI
        )
        wanted = max(1, rows // len(stored))
        parts = []
        for matrix_OI, weights_O in zip(stored, factor.rows, strict=True):
            numbers, shares = _draw(weights_O, wanted)
            values_RI = _to_float32(np.asarray(matrix_OI)[numbers])
            if not np.isfinite(values_RI).all():
                raise UnsupportedError(
                    f"{path}: {tensor.name} holds infinities or NaN", mend="Convert the checkpoint again, to f32."
                )
            parts.append((values_RI, shares))
        return _Sample(parts=tuple(parts), factor=factor)

    def damage(self, type_name: str, importance_EI: NDArray[np.float32] | None) -> float:
        """Mean KL divergence per token, in nats, of storing the whole matrix so."""
        total = 0.0
        for expert, (values_RI, shares_R) in enumerate(self.parts):
            importance_I = None if importance_EI is None else importance_EI[expert]
            change_RI = round_trip(values_RI, type_name, importance_I) - values_RI
            total += float(self.factor.damage_of_rows(change_RI, expert) @ shares_R)
        return total


def _draw(weights_O: NDArray[np.float64], wanted: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Rows, and the weight that each stands for; together they stand for all."""
    total = float(weights_O.sum())
    if len(weights_O) <= wanted or total <= 0:
        return np.arange(len(weights_O)), weights_O
    points = (np.arange(wanted) + 0.5) / wanted * total
    drawn = np.searchsorted(np.cumsum(weights_O), points).clip(max=len(weights_O) - 1)
    numbers, counts = np.unique(drawn, return_counts=True)
    return numbers.astype(np.intp), counts.astype(np.float64) * (total / wanted)


def _to_float32(stored: NDArray[np.generic]) -> NDArray[np.float32]:
    if stored.dtype == np.uint16:  # bfloat16: the upper half of a float32
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(stored, dtype=np.float32)
