"""What a quantization is to give, settled before it starts: what was asked for, what the quantizer makes of it."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compress.gguf.imatrix import Imatrix
from compress.gguf.types import FILE_TYPES, TENSOR_TYPES, FileType, find_tensor_type
from compress.gguf.worker_process import QuantizeJob
from edgesmith.errors import UnsupportedError, UsageError
from serve.runtime.gguf_file import GgufFile, GgufTensor

__all__ = [
    "PROGRESS_LINE",
    "Plan",
    "check_entries",
    "check_imatrix",
    "check_source",
    "exact_job",
    "odd_columns",
    "read_plan",
    "resolve_types",
]

FLOATS = ("F32", "F16", "BF16")
_SMALLEST_BLOCK = 32
# Lines of the quantizer's log: each tensor; each tensor with what it becomes; what it cannot become.
PROGRESS_LINE = re.compile(r"\[ *\d+/ *\d+\] \S+ +- \[")
_PLANNED = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.* MiB \((\w+)\)$")
_FELL_BACK = re.compile(r"warning: (\S+) .*required for type +(\w+)\).*falling back to +\w+")
# llama.cpp lets these pass without an importance matrix.
_EMBEDDINGS = ("token_embd.weight", "output.weight")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is to give."""

    types: Mapping[str, str]
    """Type of every tensor."""
    wanted: Mapping[str, str]
    """What tensors would have got, had their columns fitted."""


def check_source(path: Path, file: GgufFile) -> None:
    """Refuse weights that were rounded before.

    Raises:
        UnsupportedError: a tensor is quantized already, or no weight at all.
    """
    for name, tensor in file.tensors.items():
        if tensor.block_type.name not in FLOATS and len(tensor.shape) > 1:
            raise UnsupportedError(
                f"{path}: {name} is {tensor.block_type.name} already; a second rounding would add to the first",
                mend="Convert the checkpoint to an f16 or f32 file, and quantize that.",
            )


def matrices(file: GgufFile) -> list[GgufTensor]:
    """The tensors that can be quantized, as far as their names and shapes tell."""
    return [
        one
        for one in file.tensors.values()
        if len(one.shape) > 1 and one.name.endswith("weight") and not one.name.endswith("_norm.weight")
    ]


def odd_columns(file: GgufFile) -> list[GgufTensor]:
    """The matrices that fit no block type: the quantizer's own presets fail on them, or take F16."""
    return [one for one in matrices(file) if one.shape[0] % _SMALLEST_BLOCK]


def resolve_types(path: Path, file: GgufFile, asked: Mapping[str, str]) -> dict[str, str]:
    """Find the tensors that names and patterns mean.

    Returns:
        Type by tensor.

    Raises:
        UsageError: a pattern matches nothing that can be quantized, or columns do not fit the type.
    """
    known = {one.name: one for one in matrices(file)}
    resolved: dict[str, str] = {}
    for pattern, type_name in asked.items():
        found = [pattern] if pattern in known else fnmatch.filter(known, pattern)
        if not found:
            raise _no_match(path, pattern, file, known)
        resolved |= dict.fromkeys(found, find_tensor_type(type_name).name)
    for name, type_name in resolved.items():
        block = TENSOR_TYPES[type_name].num_values
        if known[name].shape[0] % block:
            raise UsageError(
                f"{path}: {name} has {known[name].shape[0]} columns, {type_name} needs a multiple of {block}",
                mend="Choose a type with smaller blocks for it, such as Q5_0, IQ4_NL or Q8_0.",
            )
    return resolved


def _no_match(path: Path, pattern: str, file: GgufFile, known: Collection[str]) -> UsageError:
    if fnmatch.filter(file.tensors, pattern):
        return UsageError(
            f"{path}: {pattern!r} matches only tensors that are never quantized",
            mend="Name matrices: vectors and norms stay as they are.",
        )
    nearest = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)
    hint = f"The nearest tensor is {nearest[0]}. " if nearest else ""
    return UsageError(
        f"{path}: no tensor is called {pattern!r}", mend=f"{hint}Shell patterns such as blk.*.ffn_down.weight work too."
    )


def check_imatrix(path: Path, file: GgufFile, imatrix: Imatrix) -> None:
    """Refuse the importance matrix of another model.

    Raises:
        UsageError: it has entries for tensors that the file lacks, of other lengths, or for some layers only.
    """
    mend = "Collect it from this very model."
    for name, entry in imatrix.entries.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            raise UsageError(f"the importance matrix is of another model: {path} has no tensor {name}", mend=mend)
        expected = tensor.shape[0] * math.prod(tensor.shape[2:])
        if entry.sums.size != expected:
            raise UsageError(
                f"the importance matrix is of another model: it has {entry.sums.size:,} values for {name}, "
                f"{path} has {expected:,} inputs there",
                mend=mend,
            )
    layers, seen = _layers(file.tensors), _layers(imatrix.entries)
    if seen and layers - seen:
        raise UsageError(
            f"the importance matrix is of another model: it has {len(seen)} layers, {path} has {len(layers)}", mend=mend
        )


def _layers(names: Iterable[str]) -> set[str]:
    return {found[1] for name in names if (found := re.match(r"blk\.(\d+)\.", name))}


def read_plan(path: Path, file: GgufFile, lines: Sequence[str]) -> Plan:
    """Understand what the quantizer logged in a dry run.

    Raises:
        UnsupportedError: it logs in another way than expected.
    """
    if sum(PROGRESS_LINE.match(line) is not None for line in lines) != len(file.tensors):
        raise UnsupportedError(
            f"{path}: this llama.cpp does not say what it does with each tensor as expected",
            mend="Install a version of llama-cpp-python that the project's constraints name.",
        )
    planned = {found[1]: found[2].upper() for line in lines if (found := _PLANNED.match(line))}
    return Plan(
        types={name: planned.get(name, one.block_type.name) for name, one in file.tensors.items()},
        wanted={found[1]: found[2].upper() for line in lines if (found := _FELL_BACK.search(line))},
    )


def check_entries(path: Path, file: GgufFile, preset: FileType, plan: Plan, imatrix: Imatrix | None) -> None:
    """Refuse types that are garbage without an importance matrix.

    Raises:
        UsageError: one would be used for a tensor that has no entry.
    """
    entries = imatrix.entries if imatrix is not None else {}
    for name, type_name in plan.types.items():
        needs = TENSOR_TYPES[type_name].needs_imatrix if type_name in TENSOR_TYPES else False
        needs |= preset.name == "Q2_K_S" and type_name == "Q2_K" and name not in _EMBEDDINGS
        if needs and name not in entries and file.tensors[name].block_type.name != type_name:
            has = "the importance matrix has no entry for it" if imatrix is not None else "there is none"
            raise UsageError(
                f"{path}: {name} would become {type_name}, which needs an importance matrix, and {has}",
                mend="Collect one that covers it, or choose a type of three bits or more for it.",
            )


def exact_job(job: QuantizeJob, preset: FileType, types: Mapping[str, str]) -> QuantizeJob:
    """Say for every tensor what it becomes, so that naming one changes no other.

    llama.cpp counts the tensors of a kind as it goes, and does not count those that are named. With a float preset
    it ignores the names, so a preset with blocks carries them.
    """
    carrier = FILE_TYPES["Q8_0"] if preset.tensor_type in FLOATS else preset
    return replace(
        job,
        file_type=carrier.number,
        values=dict(job.values) | {"general.file_type": preset.number},
        tensor_types=[exactly(name, type_name) for name, type_name in types.items() if type_name in TENSOR_TYPES],
    )


def exactly(name: str, type_name: str) -> tuple[str, int]:
    """A regular expression that one name matches, and a type's number."""
    return f"^{re.escape(name)}$", TENSOR_TYPES[type_name].number
