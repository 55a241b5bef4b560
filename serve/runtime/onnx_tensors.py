"""The tensors of an `.onnx` file with their bytes, and the nodes that use them; no weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serve.runtime.onnx_file import DTYPES, OnnxReader, walk_onnx
from serve.runtime.protobuf_wire import Value, as_integer, as_message, as_text, read_varint

__all__ = ["OnnxNode", "OnnxTensor", "OnnxTensors", "read_onnx_tensors"]

# Types that NumPy does not have.
_OTHER_DTYPES: Mapping[int, str] = {21: "uint4", 22: "int4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxTensor:
    """A constant of the model, wherever its bytes are."""

    name: str
    dtype: str
    """NumPy's name, `uint4` or `int4`; the number of any other type."""
    shape: tuple[int, ...]
    size_bytes: int
    location: str
    """The file that holds its bytes, from the model's folder; empty for the model file itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxNode:
    """An operation."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, int]
    """Its attributes that are one integer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxTensors:
    """What was found, of subgraphs and functions too."""

    tensors: list[OnnxTensor] = field(default_factory=list)
    nodes: list[OnnxNode] = field(default_factory=list)


def read_onnx_tensors(path: Path) -> OnnxTensors:
    """Read the tensors and nodes of a model file.

    Args:
        path: The `.onnx` file; files with external data are not looked at.

    Raises:
        ArtifactError: It is empty, larger than 2 GiB, truncated, or no ONNX model.
        UnsupportedError: See `serve.runtime.onnx_file.read_onnx`.
        StorageError: It cannot be read.
    """
    reader = _TensorReader(path)
    walk_onnx(path, reader)
    return reader.all


class _TensorReader(OnnxReader):
    """Notes every tensor and every node as it passes them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.all = OnnxTensors()

    def read_tensor(self, view: memoryview) -> str:
        """TensorProto: data are fields 4–7, 9–11."""
        name = super().read_tensor(view)
        shape, element, num_bytes, is_external = list[int](), 0, 0, False
        for number, value in self.fields(view):
            match number:
                case 1:
                    shape += _dimensions(value)
                case 2:
                    element = as_integer(value)
                case 4 | 5 | 6 | 7 | 9 | 10 | 11:
                    num_bytes += len(value) if isinstance(value, memoryview) else 8
                case 14:
                    is_external = value == 1
        location = self.found.external[-1].location if is_external else ""
        self.all.tensors.append(
            OnnxTensor(
                name=name,
                dtype=DTYPES.get(element) or _OTHER_DTYPES.get(element, str(element)),
                shape=tuple(shape),
                size_bytes=self.found.external[-1].length or 0 if is_external else num_bytes,
                location=location,
            )
        )
        return name

    def read_node(self, view: memoryview, *, depth: int) -> None:
        """NodeProto: its operator, inputs, outputs and integers."""
        super().read_node(view, depth=depth)
        operator, inputs, outputs, integers = "", list[str](), list[str](), dict[str, int]()
        for number, value in self.fields(view):
            match number:
                case 1:
                    inputs.append(as_text(value))
                case 2:
                    outputs.append(as_text(value))
                case 4:
                    operator = as_text(value)
                case 5:
                    parts = dict(self.fields(as_message(value)))
                    if isinstance(parts.get(3), int):
                        integers[as_text(parts.get(1, memoryview(b"")))] = as_integer(parts[3])
        self.all.nodes.append(
            OnnxNode(operator=operator, inputs=tuple(inputs), outputs=tuple(outputs), integers=integers)
        )


def _dimensions(value: Value) -> Iterator[int]:
    """One dimension, or several that are packed."""
    if isinstance(value, int):
        yield value
        return
    position = 0
    while position < len(value):
        number, position = read_varint(value, position)
        yield number
