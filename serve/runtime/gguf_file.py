"""What a `.gguf` file says of itself, read from its bytes before any native code sees it.

Every length is checked against the file and every count against a limit, so a hostile file meets bounds checks
of ours first. Weights are not read.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from edgesmith.errors import ArtifactError, UnsupportedError
from edgesmith.files import storage_errors

__all__ = ["GgufArray", "GgufFile", "GgufTensor", "most_bytes", "read_gguf"]

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = (1 << 16) - 1
MAX_STRING_BYTES = 1 << 24
MAX_ELEMENTS = 1 << 24
MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4
MAX_VALUES = 1 << 40  # of one tensor
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32
VERSIONS = (2, 3)

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Value type → struct format.
_SCALARS: Mapping[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip


class BlockType(NamedTuple):
    """How values of a type are stored."""

    name: str
    num_values: int
    """Values in one block."""
    size_bytes: int
    """Bytes of one block."""


# ggml_type → blocks. Numbers that are missing were given up by the format.
BLOCK_TYPES: Mapping[int, BlockType] = {
    number: BlockType(*block)
    for number, block in {
        0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
        16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
        20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
        24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
        29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
        39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of the metadata, whose elements were walked but not kept."""

    element_type: int
    length: int


Value: TypeAlias = bool | int | float | str | GgufArray


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor's bytes lie."""

    name: str
    block_type: BlockType
    shape: tuple[int, ...]
    """As the file has it: the fastest axis first."""
    start: int
    """From the start of the file."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """What was found."""

    version: int
    metadata: dict[str, Value] = field(default_factory=dict)
    tensors: dict[str, GgufTensor] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it."""
        return str(self.metadata["general.architecture"])

    @property
    def main_type(self) -> str:
        """The type that most of the bytes of its tensors are stored in; empty without tensors."""
        return most_bytes((one.block_type.name, one.size_bytes) for one in self.tensors.values())

    def setting(self, key: str) -> Value | None:
        """Look up a setting below the architecture's name, such as `context_length`."""
        return self.metadata.get(f"{self.architecture}.{key}")


def most_bytes(sizes: Iterable[tuple[str, int]]) -> str:
    """Name the type that takes most bytes, of the types and sizes of tensors; empty if there are none."""
    totals: dict[str, int] = {}
    for name, size_bytes in sizes:
        totals[name] = totals.get(name, 0) + size_bytes
    return max(totals, key=lambda name: totals[name], default="")


def read_gguf(path: Path) -> GgufFile:
    """Read the header, the metadata and the places of all tensors.

    Args:
        path: The `.gguf` file. Its weights are not read.

    Raises:
        ArtifactError: It is empty, truncated, damaged or hostile.
        UnsupportedError: It is of another version or byte order, or one part of several.
        StorageError: It cannot be read.
    """
    with storage_errors(path), path.open("rb") as file:
        if file.seek(0, 2) == 0:
            raise ArtifactError(f"{path}: is empty", mend="Get the model again from where it was made.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _Reader(path, content).read()
            except (_FormatError, UnicodeDecodeError) as error:
                raise ArtifactError(
                    f"{path}: is no GGUF file, or is damaged: {error}",
                    mend="Get the model again from where it was made.",
                ) from error


def _check_templates(metadata: Mapping[str, Value]) -> None:
    """Refuse hostile chat templates. Without Jinja nothing here could render them, nor is llama-cpp-python there."""
    templates = [value for key, value in metadata.items() if key.startswith("tokenizer.chat_template.")]
    templates.append(metadata.get("tokenizer.chat_template", ""))
    if find_spec("jinja2") is None:
        return
    from serve.runtime.chat_template import check_template

    for template in templates:
        if isinstance(template, str) and template:
            try:
                check_template(template)
            except ArtifactError as error:
                raise _FormatError(error.message) from error


class _FormatError(Exception):
    """The bytes do not follow the format."""


class _Reader:
    """Walks one file from its start."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path = path
        self.content = content
        self.size = len(content)
        self.position = 0

    def read(self) -> GgufFile:
        """The whole file."""
        version = self.read_version()
        num_tensors = self.count("tensors", MAX_TENSORS)
        num_keys = self.count("keys", MAX_KEYS)
        found = GgufFile(version=version)
        for _ in range(num_keys):
            key = self.string("a key", MAX_KEY_BYTES)
            if key in found.metadata:
                raise _FormatError(f"the key {key!r} appears twice")
            found.metadata[key] = self.value(key, self.number("<I"))
        if not isinstance(found.metadata.get("general.architecture"), str):
            raise _FormatError("general.architecture is missing or no text")
        parts = found.metadata.get("split.count")
        if isinstance(parts, int) and parts > 1:
            raise UnsupportedError(f"{self.path}: is one of {parts} parts", mend="Join them into one file first.")
        _check_templates(found.metadata)
        infos = [self.tensor_info() for _ in range(num_tensors)]
        self.place(found, infos)
        return found

    def read_version(self) -> int:
        """The magic number and the version."""
        if self.take(4, "the magic number") != b"GGUF":
            raise _FormatError("it does not start with GGUF")
        version = int(self.number("<I"))
        if version & 0xFFFF == 0:
            raise UnsupportedError(f"{self.path}: is for machines with the most significant byte first")
        if version not in VERSIONS:
            raise UnsupportedError(
                f"{self.path}: is of GGUF version {version}, not {' or '.join(map(str, VERSIONS))}",
                mend="Convert the model again with a current converter.",
            )
        return version

    def take(self, size: int, what: str) -> bytes:
        """The next bytes."""
        if size > self.size - self.position:
            raise _FormatError(f"{what} claims {size:,} bytes where {self.size - self.position:,} are left")
        start, self.position = self.position, self.position + size
        return self.content[start : self.position]

    def number(self, layout: str) -> Any:
        """The next number."""
        return struct.unpack(layout, self.take(struct.calcsize(layout), "a number"))[0]

    def count(self, what: str, limit: int) -> int:
        """A count; a negative one reads as an absurd one."""
        value = int(self.number("<Q"))
        if value > limit:
            raise _FormatError(f"it claims {value:,} {what}, the limit is {limit:,}")
        return value

    def string(self, what: str, limit: int) -> str:
        """A text with its length before it."""
        return self.take(self.count(f"bytes for {what}", limit), what).decode("utf-8")

    def value(self, key: str, kind: int) -> Value:
        """The value of a key."""
        if kind == _STRING:
            return self.string(f"the value of {key!r}", MAX_STRING_BYTES)
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _SCALARS:
            raise _FormatError(f"{key!r} has the unknown type {kind}")
        value = self.number(_SCALARS[kind])
        if kind == _BOOL and value > 1:
            raise _FormatError(f"{key!r} is neither true nor false but {value}")
        return bool(value) if kind == _BOOL else value

    def array(self, key: str) -> GgufArray:
        """An array of numbers or texts; its elements are walked, not kept."""
        kind = int(self.number("<I"))
        length = self.count(f"elements in {key!r}", MAX_ELEMENTS)
        if kind in _SCALARS:
            width = struct.calcsize(_SCALARS[kind])
            self.skip(length * width, key)
        elif kind == _STRING:
            self.walk_strings(key, length)
        else:
            raise _FormatError(f"{key!r} is an array of the type {kind}")
        return GgufArray(kind, length)

    def skip(self, size: int, key: str) -> None:
        """Pass over bytes that must be there."""
        if size > self.size - self.position:
            raise _FormatError(f"{key!r} claims {size:,} bytes where {self.size - self.position:,} are left")
        self.position += size

    def walk_strings(self, key: str, length: int) -> None:
        """Pass over texts; a loop of its own, for there are hundreds of thousands."""
        read_length = struct.Struct("<Q").unpack_from
        content, position, last = self.content, self.position, self.size - 8
        for index in range(length):
            if position > last:
                raise _FormatError(f"{key!r} ends at element {index:,} of {length:,}")
            size = read_length(content, position)[0]
            if size > MAX_STRING_BYTES or size > last - position:
                raise _FormatError(f"element {index:,} of {key!r} claims {size:,} bytes")
            position += 8 + size
        self.position = position

    def tensor_info(self) -> tuple[str, BlockType, tuple[int, ...], int]:
        """Name, type, shape, and offset in the data."""
        name = self.string("the name of a tensor", MAX_NAME_BYTES)
        num_dimensions = int(self.number("<I"))
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise _FormatError(f"{name!r} has {num_dimensions:,} dimensions, not 1 to {MAX_DIMENSIONS}")
        shape = tuple(int(self.number("<Q")) for _ in range(num_dimensions))
        if min(shape) == 0 or max(shape) > MAX_VALUES or math.prod(shape) > MAX_VALUES:
            raise _FormatError(f"{name!r} has the impossible shape {list(shape)}")
        kind = int(self.number("<I"))
        block = BLOCK_TYPES.get(kind)
        if block is None:
            raise _FormatError(f"{name!r} has the unknown type {kind}")
        if shape[0] % block.num_values:
            raise _FormatError(
                f"{name!r} has rows of {shape[0]} values, {block.name} needs a multiple of {block.num_values}"
            )
        return name, block, shape, int(self.number("<Q"))

    def place(self, found: GgufFile, infos: list[tuple[str, BlockType, tuple[int, ...], int]]) -> None:
        """Find the bytes of the tensors, which follow each other without holes."""
        alignment = found.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise _FormatError(f"the alignment is {alignment!r}, not a power of two from 8 to {MAX_ALIGNMENT}")
        data_start = self.position + -self.position % alignment
        expected = 0
        for name, block, shape, offset in infos:
            if name in found.tensors:
                raise _FormatError(f"the tensor {name!r} appears twice")
            if offset != expected:
                raise _FormatError(f"{name!r} is at byte {offset:,} of the data, expected {expected:,}")
            size = math.prod(shape) // block.num_values * block.size_bytes
            if data_start + offset + size > self.size:
                raise _FormatError(
                    f"{name!r} ends at byte {data_start + offset + size:,}, the file has {self.size:,}: truncated"
                )
            found.tensors[name] = GgufTensor(name, block, shape, data_start + offset, size)
            expected = offset + size + -size % alignment
