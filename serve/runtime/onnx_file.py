"""What an `.onnx` file says of itself, read from its bytes before any native code sees it.

A small reader of the protobuf wire format: it walks the messages it needs and skips the rest, so a hostile
file meets bounds checks of ours first. Field numbers are those of onnx.proto.

Source: https://protobuf.dev/programming-guides/encoding/ and
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgesmith.artifact import Signature, TensorSpec
from edgesmith.errors import ArtifactError, UnsupportedError
from edgesmith.files import storage_errors

__all__ = ["ExternalData", "OnnxFile", "read_onnx"]

MAX_BYTES = (1 << 31) - 1  # protobuf's own limit
MAX_FIELDS = 4_000_000
MAX_DEPTH = 40

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# TensorProto.DataType → NumPy's name
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}

Value = int | memoryview


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Where a tensor's bytes are, outside the model file."""

    tensor: str
    location: str
    offset: int
    length: int | None


@dataclass(slots=True)
class OnnxFile:
    """What was found.

    Attributes:
        signature: Inputs that are no initializers, and outputs.
        opsets: Version by operator domain; the standard domain is the empty string.
        operators: Every (domain, operator) that a node names, in subgraphs and functions too.
        functions: (domain, name) of the functions that the file defines itself.
        external: Tensors stored in other files.
        metadata: The model's key-value properties.
    """

    signature: Signature = field(default_factory=lambda: Signature(inputs=(), outputs=()))
    opsets: dict[str, int] = field(default_factory=dict)
    operators: set[tuple[str, str]] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    external: list[ExternalData] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


def read_onnx(path: Path) -> OnnxFile:
    """Read signature, operator sets, operators and external data of a model file.

    Args:
        path: The `.onnx` file. Its weights are not read.

    Raises:
        ArtifactError: It is empty, larger than 2 GiB, truncated, or no ONNX model.
        UnsupportedError: An input or output is no tensor, or of a type that NumPy does not have.
        StorageError: It cannot be read.
    """
    with storage_errors(path), path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        if size_bytes == 0:
            raise ArtifactError(f"{path}: is empty", mend="Get the model again from where it was made.")
        if size_bytes > MAX_BYTES:
            raise ArtifactError(
                f"{path}: has {size_bytes:,} bytes; a model file has at most {MAX_BYTES:,}",
                mend="Store the weights as external data.",
            )
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    reader = _Reader(path)
    try:
        reader.read_model(view)
    except (_WireError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path}: is no ONNX model, or is damaged: {error}",
            mend="Get the model again from where it was made.",
        ) from error
    return reader.found


class _WireError(Exception):
    """The bytes do not follow the wire format."""


class _Reader:
    """Walks one file; every method takes the bytes of one message."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = OnnxFile()
        self.num_fields = 0

    def fields(self, view: memoryview) -> Iterator[tuple[int, Value]]:
        """Field numbers with their values: an integer, or the bytes of a string or message."""
        position, end = 0, len(view)
        while position < end:
            self.num_fields += 1
            if self.num_fields > MAX_FIELDS:
                raise _WireError(f"more than {MAX_FIELDS:,} fields")
            key, position = _varint(view, position)
            number, wire_type = key >> 3, key & 7
            value: Value
            match wire_type:
                case 0:
                    value, position = _varint(view, position)
                case 1 | 5:
                    size = 8 if wire_type == _FIXED64 else 4
                    if size > end - position:
                        raise _WireError(f"field {number} is cut off")
                    value = int.from_bytes(view[position : position + size], "little")
                    position += size
                case 2:
                    size, position = _varint(view, position)
                    if size > end - position:
                        raise _WireError(f"field {number} claims {size:,} bytes where {end - position:,} are left")
                    value = view[position : position + size]
                    position += size
                case _:
                    raise _WireError(f"field {number} has wire type {wire_type}")
            if number == 0:
                raise _WireError("field number 0")
            yield number, value

    def read_model(self, view: memoryview) -> None:
        """ModelProto."""
        has_graph = False
        for number, value in self.fields(view):
            match number:
                case 7:
                    self.read_graph(_message(value), depth=0, is_main=True)
                    has_graph = True
                case 8:
                    domain, version = "", 0
                    for key, part in self.fields(_message(value)):
                        domain = _text(part) if key == 1 else domain
                        version = _integer(part) if key == 2 else version
                    self.found.opsets["" if domain == "ai.onnx" else domain] = version
                case 14:
                    name, text = self.read_entry(_message(value))
                    self.found.metadata[name] = text
                case 20:
                    raise UnsupportedError(f"{self.path}: holds training graphs; an inference model has none")
                case 25:
                    self.read_function(_message(value))
        if not has_graph:
            raise _WireError("there is no graph")
        if not self.found.opsets:
            raise _WireError("it names no operator set")

    def read_function(self, view: memoryview) -> None:
        """FunctionProto."""
        name = domain = ""
        for number, value in self.fields(view):
            match number:
                case 1:
                    name = _text(value)
                case 7:
                    self.read_node(_message(value), depth=0)
                case 10:
                    domain = _text(value)
                case 11:
                    self.read_attribute(_message(value), depth=0)
        self.found.functions.add((domain, name))

    def read_graph(self, view: memoryview, *, depth: int, is_main: bool = False) -> None:
        """GraphProto; only the main graph's inputs and outputs are the model's."""
        if depth > MAX_DEPTH:
            raise _WireError(f"graphs nested more than {MAX_DEPTH} deep")
        initializers: set[str] = set()
        inputs: list[memoryview] = []
        outputs: list[memoryview] = []
        for number, value in self.fields(view):
            match number:
                case 1:
                    self.read_node(_message(value), depth=depth)
                case 5:
                    initializers.add(self.read_tensor(_message(value)))
                case 11:
                    inputs.append(_message(value))
                case 12:
                    outputs.append(_message(value))
                case 15:
                    self.read_sparse(_message(value))
        if is_main:
            taken = [spec for spec in map(self.read_value_info, inputs) if spec.name not in initializers]
            self.found.signature = Signature(
                inputs=tuple(taken), outputs=tuple(self.read_value_info(part) for part in outputs)
            )

    def read_node(self, view: memoryview, *, depth: int) -> None:
        """NodeProto."""
        domain = operator = ""
        for number, value in self.fields(view):
            match number:
                case 4:
                    operator = _text(value)
                case 5:
                    self.read_attribute(_message(value), depth=depth)
                case 7:
                    domain = _text(value)
        self.found.operators.add(("" if domain == "ai.onnx" else domain, operator))

    def read_attribute(self, view: memoryview, *, depth: int) -> None:
        """AttributeProto: its tensors and graphs."""
        for number, value in self.fields(view):
            match number:
                case 5 | 10:
                    self.read_tensor(_message(value))
                case 6 | 11:
                    self.read_graph(_message(value), depth=depth + 1)
                case 22 | 23:
                    self.read_sparse(_message(value))

    def read_sparse(self, view: memoryview) -> None:
        """SparseTensorProto: its values and indices."""
        for number, value in self.fields(view):
            if number in (1, 2):
                self.read_tensor(_message(value))

    def read_tensor(self, view: memoryview) -> str:
        """TensorProto: its name; where its bytes are, if elsewhere."""
        name, entries, is_external = "", dict[str, str](), False
        for number, value in self.fields(view):
            match number:
                case 8:
                    name = _text(value)
                case 13:
                    key, text = self.read_entry(_message(value))
                    entries[key] = text
                case 14:
                    is_external = value == 1
        if is_external or entries:
            self.found.external.append(_external(name, entries))
        return name

    def read_entry(self, view: memoryview) -> tuple[str, str]:
        """StringStringEntryProto."""
        parts = {number: _text(value) for number, value in self.fields(view) if number in (1, 2)}
        return parts.get(1, ""), parts.get(2, "")

    def read_value_info(self, view: memoryview) -> TensorSpec:
        """ValueInfoProto of a tensor."""
        parts = dict(self.fields(view))
        name = _text(parts.get(1, memoryview(b"")))
        type_parts = dict(self.fields(_message(parts.get(2, memoryview(b"")))))
        if 1 not in type_parts:
            raise UnsupportedError(f"{self.path}: {name!r} is no tensor, but a sequence, map or optional value")
        tensor = dict(self.fields(_message(type_parts[1])))
        element = _integer(tensor.get(1, 0))
        if element not in DTYPES:
            raise UnsupportedError(f"{self.path}: {name!r} has the ONNX data type {element}, which NumPy does not have")
        shape = [
            self.read_axis(_message(value), f"{name}_axis{axis}")
            for axis, (number, value) in enumerate(self.fields(_message(tensor.get(2, memoryview(b"")))))
            if number == 1
        ]
        return TensorSpec(name=name, dtype=DTYPES[element], shape=tuple(shape))

    def read_axis(self, view: memoryview, default: str) -> int | str:
        """TensorShapeProto.Dimension: a length, or the name of a free axis."""
        parts = dict(self.fields(view))
        if 1 in parts:
            return _integer(parts[1])
        return _text(parts[2]) if len(_message(parts.get(2, memoryview(b"")))) else default


def _external(tensor: str, entries: dict[str, str]) -> ExternalData:
    try:
        length = int(entries["length"]) if entries.get("length") else None
        offset = int(entries.get("offset") or 0)
    except ValueError:
        raise _WireError(f"the external data of {tensor!r} has a broken offset or length") from None
    return ExternalData(tensor, entries.get("location", ""), offset, length)


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """A base-128 integer of at most 10 bytes, and the position after it."""
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(view):
            raise _WireError("it ends inside a number")
        byte = view[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise _WireError("a number has more than 10 bytes")


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise _WireError("a number where a message belongs")
    return value


def _text(value: Value) -> str:
    return bytes(_message(value)).decode("utf-8")


def _integer(value: Value) -> int:
    """An int64: negative numbers are ten-byte varints."""
    if not isinstance(value, int):
        raise _WireError("a message where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value
