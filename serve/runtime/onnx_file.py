"""What an `.onnx` file says of itself, read from its bytes before any native code sees it.

A small reader walks the messages it needs and skips the rest, so a hostile file meets bounds checks of ours
first. Field numbers are those of onnx.proto.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path

from edgesmith.artifact import Signature, TensorSpec
from edgesmith.errors import ArtifactError, UnsupportedError
from edgesmith.files import storage_errors
from serve.runtime.protobuf_wire import WireError, WireReader, as_integer, as_message, as_text

__all__ = ["DTYPES", "ExternalData", "OnnxFile", "OnnxReader", "read_onnx", "walk_onnx"]

MAX_BYTES = (1 << 31) - 1  # protobuf's own limit
MAX_DEPTH = 40

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
"""TensorProto.DataType → NumPy's name."""


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
    reader = OnnxReader(path)
    walk_onnx(path, reader)
    return reader.found


def walk_onnx(path: Path, reader: OnnxReader) -> None:
    """Let a reader walk a model file.

    Raises:
        ArtifactError: See `read_onnx`.
        UnsupportedError: See `read_onnx`.
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
    try:
        reader.read_model(view)
    except (WireError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path}: is no ONNX model, or is damaged: {error}",
            mend="Get the model again from where it was made.",
        ) from error


class OnnxReader(WireReader):
    """Walks one file; every method takes the bytes of one message."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.found = OnnxFile()

    def read_model(self, view: memoryview) -> None:
        """ModelProto."""
        has_graph = False
        for number, value in self.fields(view):
            match number:
                case 7:
                    self.read_graph(as_message(value), depth=0, is_main=True)
                    has_graph = True
                case 8:
                    domain, version = "", 0
                    for key, part in self.fields(as_message(value)):
                        domain = as_text(part) if key == 1 else domain
                        version = as_integer(part) if key == 2 else version
                    self.found.opsets["" if domain == "ai.onnx" else domain] = version
                case 14:
                    name, text = self.read_entry(as_message(value))
                    self.found.metadata[name] = text
                case 20:
                    raise UnsupportedError(f"{self.path}: holds training graphs; an inference model has none")
                case 25:
                    self.read_function(as_message(value))
        if not has_graph:
            raise WireError("there is no graph")
        if not self.found.opsets:
            raise WireError("it names no operator set")

    def read_function(self, view: memoryview) -> None:
        """FunctionProto."""
        name = domain = ""
        for number, value in self.fields(view):
            match number:
                case 1:
                    name = as_text(value)
                case 7:
                    self.read_node(as_message(value), depth=0)
                case 10:
                    domain = as_text(value)
                case 11:
                    self.read_attribute(as_message(value), depth=0)
        self.found.functions.add((domain, name))

    def read_graph(self, view: memoryview, *, depth: int, is_main: bool = False) -> None:
        """GraphProto; only the main graph's inputs and outputs are the model's."""
        if depth > MAX_DEPTH:
            raise WireError(f"graphs nested more than {MAX_DEPTH} deep")
        initializers: set[str] = set()
        inputs: list[memoryview] = []
        outputs: list[memoryview] = []
        for number, value in self.fields(view):
            match number:
                case 1:
                    self.read_node(as_message(value), depth=depth)
                case 5:
                    initializers.add(self.read_tensor(as_message(value)))
                case 11:
                    inputs.append(as_message(value))
                case 12:
                    outputs.append(as_message(value))
                case 15:
                    self.read_sparse(as_message(value))
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
                    operator = as_text(value)
                case 5:
                    self.read_attribute(as_message(value), depth=depth)
                case 7:
                    domain = as_text(value)
        self.found.operators.add(("" if domain == "ai.onnx" else domain, operator))

    def read_attribute(self, view: memoryview, *, depth: int) -> None:
        """AttributeProto: its tensors and graphs."""
        for number, value in self.fields(view):
            match number:
                case 5 | 10:
                    self.read_tensor(as_message(value))
                case 6 | 11:
                    self.read_graph(as_message(value), depth=depth + 1)
                case 22 | 23:
                    self.read_sparse(as_message(value))

    def read_sparse(self, view: memoryview) -> None:
        """SparseTensorProto: its values and indices."""
        for number, value in self.fields(view):
            if number in (1, 2):
                self.read_tensor(as_message(value))

    def read_tensor(self, view: memoryview) -> str:
        """TensorProto: its name; where its bytes are, if elsewhere."""
        name, entries, is_external = "", dict[str, str](), False
        for number, value in self.fields(view):
            match number:
                case 8:
                    name = as_text(value)
                case 13:
                    key, text = self.read_entry(as_message(value))
                    entries[key] = text
                case 14:
                    is_external = value == 1
        if is_external or entries:
            self.found.external.append(_external(name, entries))
        return name

    def read_entry(self, view: memoryview) -> tuple[str, str]:
        """StringStringEntryProto."""
        parts = {number: as_text(value) for number, value in self.fields(view) if number in (1, 2)}
        return parts.get(1, ""), parts.get(2, "")

    def read_value_info(self, view: memoryview) -> TensorSpec:
        """ValueInfoProto of a tensor."""
        parts = dict(self.fields(view))
        name = as_text(parts.get(1, memoryview(b"")))
        type_parts = dict(self.fields(as_message(parts.get(2, memoryview(b"")))))
        if 1 not in type_parts:
            raise UnsupportedError(f"{self.path}: {name!r} is no tensor, but a sequence, map or optional value")
        tensor = dict(self.fields(as_message(type_parts[1])))
        element = as_integer(tensor.get(1, 0))
        if element not in DTYPES:
            raise UnsupportedError(f"{self.path}: {name!r} has the ONNX data type {element}, which NumPy does not have")
        shape = [
            self.read_axis(as_message(value), f"{name}_axis{axis}")
            for axis, (number, value) in enumerate(self.fields(as_message(tensor.get(2, memoryview(b"")))))
            if number == 1
        ]
        return TensorSpec(name=name, dtype=DTYPES[element], shape=tuple(shape))

    def read_axis(self, view: memoryview, default: str) -> int | str:
        """TensorShapeProto.Dimension: a length, or the name of a free axis."""
        parts = dict(self.fields(view))
        if 1 in parts:
            return as_integer(parts[1])
        return as_text(parts[2]) if len(as_message(parts.get(2, memoryview(b"")))) else default


def _external(tensor: str, entries: dict[str, str]) -> ExternalData:
    try:
        length = int(entries["length"]) if entries.get("length") else None
        offset = int(entries.get("offset") or 0)
    except ValueError:
        raise WireError(f"the external data of {tensor!r} has a broken offset or length") from None
    return ExternalData(tensor, entries.get("location", ""), offset, length)
