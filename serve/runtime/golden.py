"""Golden vectors: a few real inputs with their expected outputs, so that any device can check itself.

They are the folder `golden/` of an artifact: `golden.safetensors` holds `inputs.<name>` and `outputs.<name>`;
`golden.json` holds the texts they were made from and how far an engine may be from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError
from edgesmith.files import atomic_write, storage_errors
from serve.runtime import Engine

__all__ = ["Golden", "GoldenCheck", "check_golden", "read_golden", "write_golden"]

ARRAYS_FILE = "golden/golden.safetensors"
TEXTS_FILE = "golden/golden.json"


class _Texts(BaseModel):
    """The content of `golden.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: int = Field(default=1, ge=1, le=1)
    max_abs_difference: float = Field(ge=0.0, allow_inf_nan=False)
    texts: tuple[str | tuple[str, str], ...] = Field(strict=False)


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Golden vectors as read.

    Attributes:
        inputs: What an engine is given, by name.
        outputs: What it should give, by name.
        max_abs_difference: How far any element may be off.
        texts: What the inputs were encoded from; a pair is a tuple.
    """

    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]
    max_abs_difference: float
    texts: tuple[str | tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class GoldenCheck:
    """How an engine did on the golden vectors.

    Attributes:
        passed: Whether every output is there, finite, of the right shape and within the tolerance.
        max_abs_difference: The largest difference of any element; infinite where an output is missing,
            misshapen or not finite.
        tolerance: The largest difference allowed.
        num_rows: Rows compared.
        reason: What is wrong, in words; empty if nothing is.
    """

    passed: bool
    max_abs_difference: float
    tolerance: float
    num_rows: int
    reason: str = ""


def write_golden(
    folder: Path,
    *,
    inputs: Mapping[str, NDArray[Any]],
    outputs: Mapping[str, NDArray[Any]],
    max_abs_difference: float,
    texts: Sequence[str | tuple[str, str]],
) -> None:
    """Write `golden/` into an artifact's folder, the same bytes for the same arrays.

    Raises:
        StorageError: The folder cannot be written.
    """
    named = {f"inputs.{name}": np.ascontiguousarray(array) for name, array in sorted(inputs.items())}
    named |= {f"outputs.{name}": np.ascontiguousarray(array) for name, array in sorted(outputs.items())}
    meta = _Texts(max_abs_difference=max_abs_difference, texts=tuple(texts))
    atomic_write(folder / ARRAYS_FILE, save(named))
    atomic_write(folder / TEXTS_FILE, json.dumps(meta.model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n")


def read_golden(artifact: Artifact) -> Golden | None:
    """The golden vectors of an artifact; None if it has none (a model file made by someone else).

    Raises:
        ArtifactError: They are damaged or incomplete.
    """
    if not any(entry.path == ARRAYS_FILE for entry in artifact.manifest.files):
        return None
    arrays_path, texts_path = artifact.file(ARRAYS_FILE), artifact.file(TEXTS_FILE)
    with storage_errors(arrays_path):
        raw, text = arrays_path.read_bytes(), texts_path.read_bytes()
    try:
        arrays, meta = load(raw), _Texts.model_validate_json(text)
    except SafetensorError as error:
        raise ArtifactError(f"{arrays_path}: is damaged: {error}", mend="Make the artifact again.") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(f"{texts_path}: is damaged: {first['msg']}", mend="Make the artifact again.") from error
    golden = Golden(
        inputs=_with_prefix(arrays, "inputs."),
        outputs=_with_prefix(arrays, "outputs."),
        max_abs_difference=meta.max_abs_difference,
        texts=meta.texts,
    )
    if not golden.inputs or not golden.outputs:
        raise ArtifactError(f"{arrays_path}: holds no inputs or no outputs", mend="Make the artifact again.")
    return golden


def _with_prefix(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def check_golden(artifact: Artifact, engine: Engine) -> GoldenCheck | None:
    """Run an artifact's golden inputs and compare; None if it has no golden vectors.

    Raises:
        ArtifactError: The golden vectors are damaged.
        UsageError: The engine does not take the golden inputs.
    """
    golden = read_golden(artifact)
    if golden is None:
        return None
    actual = engine.run(golden.inputs)
    mask = golden.inputs.get("attention_mask")
    largest, reason = 0.0, ""
    for name, expected in golden.outputs.items():
        difference, fault = _largest_difference(expected, actual.get(name), mask)
        largest = max(largest, difference)
        if not reason and fault:
            reason = f"output {name!r} {fault}"
    if not reason and largest > golden.max_abs_difference:
        reason = f"off by {largest:.3g}, more than the {golden.max_abs_difference:.3g} allowed"
    num_rows = len(next(iter(golden.outputs.values())))
    return GoldenCheck(
        passed=not reason,
        max_abs_difference=largest,
        tolerance=golden.max_abs_difference,
        num_rows=num_rows,
        reason=reason,
    )


def _largest_difference(
    expected: NDArray[Any], actual: NDArray[Any] | None, mask: NDArray[Any] | None
) -> tuple[float, str]:
    """The largest difference and what is wrong beside it; states of padding tokens are not compared."""
    if actual is None:
        return float("inf"), "is missing"
    if actual.shape != expected.shape:
        return float("inf"), f"has shape {list(actual.shape)}, not {list(expected.shape)}"
    if mask is not None and expected.ndim == 3 and expected.shape[:2] == mask.shape:
        expected, actual = expected[mask > 0], actual[mask > 0]
    if not np.isfinite(actual).all():
        return float("inf"), "is not finite"
    gap = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    return float(gap.max(initial=0.0)), ""
