"""What an artifact's bytes are spent on: embeddings, integer and float weights, scales, graph, tokenizer and the rest.

Read from the files' bytes alone, without any library of a model format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bench.raw import damage_errors, pretty_json, read_json
from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError
from edgesmith.files import atomic_write
from serve.runtime.onnx_file import DTYPES, _integer, _message, _Reader, _text, _varint, read_onnx

__all__ = ["TENSOR_SIZES", "LargeTensor", "TensorSizes", "measure_tensor_sizes"]

TENSOR_SIZES = "tensor_sizes.json"
_MAX_LARGEST = 12
_MIN_LISTED_BYTES = 1024
_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64", 21: "uint4", 22: "int4"}
_SCALED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_TOKENIZER_FILES = frozenset(
    {
        "added_tokens",
        "merges",
        "sentencepiece",
        "special_tokens_map",
        "spiece",
        "tokenizer",
        "tokenizer_config",
        "vocab",
    }
)
_ORDER = ("embeddings", "weights", "scales", "constants", "graph", "model", "tokenizer", "golden", "other")


@dataclass(frozen=True, kw_only=True)
class LargeTensor:
    """One of the largest tensors."""

    name: str
    kind: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class TensorSizes:
    """Bytes by kind; together they are all bytes of the artifact's files."""

    artifact_digest: str
    kinds: Mapping[str, int]
    """Such as `embeddings, int8` or `tokenizer` → bytes; kinds of the same sort stand together."""
    largest: tuple[LargeTensor, ...]
    """The largest tensors, the largest first."""

    @property
    def total_bytes(self) -> int:
        """Of all kinds."""
        return sum(self.kinds.values())

    def summary(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "artifact_digest": self.artifact_digest,
            "total_bytes": self.total_bytes,
            "kinds": dict(self.kinds),
            "largest": [
                {"name": one.name, "kind": one.kind, "shape": list(one.shape), "num_bytes": one.num_bytes}
                for one in self.largest
            ],
        }

    def save(self, folder: Path) -> None:
        """Write `tensor_sizes.json` into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        atomic_write(folder / TENSOR_SIZES, pretty_json({"schema_version": 1} | self.summary()))

    @classmethod
    def load(cls, folder: Path) -> TensorSizes:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no such file.
            ArtifactError: It is damaged.
        """
        value = read_json(folder / TENSOR_SIZES, mend="Make one with `edgesmith run`.")
        with damage_errors(folder / TENSOR_SIZES):
            kinds = {str(kind): int(num_bytes) for kind, num_bytes in dict(value["kinds"]).items()}
            if sum(kinds.values()) != value["total_bytes"] or any(num_bytes < 0 for num_bytes in kinds.values()):
                raise ValueError(f"the kinds add up to {sum(kinds.values()):,} of {value['total_bytes']:,} bytes")
            largest = tuple(
                LargeTensor(name=one["name"], kind=one["kind"], shape=tuple(one["shape"]), num_bytes=one["num_bytes"])
                for one in value["largest"]
            )
            return cls(artifact_digest=value["artifact_digest"], kinds=kinds, largest=largest)


def measure_tensor_sizes(artifact: Artifact) -> TensorSizes:
    """Add up an artifact's bytes by kind.

    Args:
        artifact: Of any kind; the tensors of ONNX models are told apart, other model files count as a whole.

    Raises:
        ArtifactError: A model file is damaged.
        StorageError: A file cannot be read.
    """
    kinds: Counter[str] = Counter()
    tensors: list[LargeTensor] = []
    read_elsewhere: Counter[str] = Counter()
    for entry in artifact.manifest.files:
        if entry.path.endswith(".onnx") and not entry.path.startswith("golden/"):
            found = _read_tensors(artifact.folder / entry.path)
            tensors += [tensor for tensor, _ in found]
            for tensor, location in found:
                kinds[tensor.kind] += tensor.num_bytes
                read_elsewhere[location] += tensor.num_bytes
            kinds["graph"] += entry.size_bytes - sum(tensor.num_bytes for tensor, location in found if not location)
    for entry in artifact.manifest.files:
        if not entry.path.endswith(".onnx") or entry.path.startswith("golden/"):
            kinds[_kind_of_file(entry.path)] += entry.size_bytes - read_elsewhere[entry.path]
    if broken := [kind for kind, num_bytes in kinds.items() if num_bytes < 0]:
        raise ArtifactError(f"{artifact.path}: its tensors claim more bytes than its files have ({broken[0]})")
    tensors.sort(key=lambda tensor: (-tensor.num_bytes, tensor.name))
    ordered = sorted((kind for kind, num_bytes in kinds.items() if num_bytes), key=_place)
    listed = [tensor for tensor in tensors if tensor.num_bytes >= _MIN_LISTED_BYTES]
    return TensorSizes(
        artifact_digest=artifact.digest,
        kinds={kind: kinds[kind] for kind in ordered},
        largest=tuple(listed[:_MAX_LARGEST]),
    )


def _place(kind: str) -> tuple[int, str]:
    sort = next((index for index, name in enumerate(_ORDER) if name in kind), len(_ORDER))
    return sort, kind


def _kind_of_file(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.parts[0] == "golden":
        return "golden vectors"
    if pure.stem in _TOKENIZER_FILES or pure.suffix == ".model":
        return "tokenizer"
    if path.endswith((".data", ".gguf", ".safetensors", ".ort", ".pte", ".tflite", ".engine")):
        return "model"
    return "other files"


def _read_tensors(path: Path) -> list[tuple[LargeTensor, str]]:
    """List a model's tensors with their kinds; beside each, the file that holds its bytes if it is another one."""
    read_onnx(path)  # refuses a damaged or hostile file with an error of its own
    reader = _TensorReader(path)
    view = memoryview(path.read_bytes())
    reader.read_model(view)
    embeddings, scales = reader.roles()
    found = []
    for name, dtype, shape, num_bytes, location in reader.tensors:
        if name in scales:
            kind = "scales and zero points"
        elif name in embeddings:
            kind = f"embeddings, {dtype}"
        elif dtype in ("int64", "int32", "bool", "string"):
            kind = "constants"
        else:
            kind = f"{dtype} weights"
        found.append((LargeTensor(name=name, kind=kind, shape=shape, num_bytes=num_bytes), location))
    return found


class _TensorReader(_Reader):
    """Notes every tensor with its type, shape and bytes, and who uses it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.tensors: list[tuple[str, str, tuple[int, ...], int, str]] = []
        self.nodes: list[tuple[str, list[str], list[str]]] = []

    def read_tensor(self, view: memoryview) -> str:
        """TensorProto: data are fields 4–7, 9–11."""
        name, shape, element, num_bytes, is_external = "", list[int](), 0, 0, False
        entries = dict[str, str]()
        for number, value in self.fields(view):
            match number:
                case 1:
                    shape += _dimensions(value)
                case 2:
                    element = _integer(value)
                case 4 | 5 | 6 | 7 | 9 | 10 | 11:
                    num_bytes += len(value) if isinstance(value, memoryview) else 8
                case 8:
                    name = _text(value)
                case 13:
                    key, text = self.read_entry(_message(value))
                    entries[key] = text
                case 14:
                    is_external = value == 1
        location = entries.get("location", "") if is_external else ""
        num_bytes = int(entries.get("length") or 0) if is_external else num_bytes
        dtype = DTYPES.get(element, str(element))
        short = _SHORT.get(element, _SHORT.get(dtype, dtype))
        self.tensors.append((name, short, tuple(shape), num_bytes, location))
        return name

    def read_node(self, view: memoryview, *, depth: int) -> None:
        """NodeProto: its operator, inputs and outputs."""
        super().read_node(view, depth=depth)
        operator, inputs, outputs = "", list[str](), list[str]()
        for number, value in self.fields(view):
            match number:
                case 1:
                    inputs.append(_text(value))
                case 2:
                    outputs.append(_text(value))
                case 4:
                    operator = _text(value)
        self.nodes.append((operator, inputs, outputs))

    def roles(self) -> tuple[set[str], set[str]]:
        """Names of the tensors that rows are gathered from, and of those that scale others."""
        matrices = {name for name, _, shape, num_bytes, _ in self.tensors if len(shape) == 2 and num_bytes > 4096}
        gathered = {inputs[0] for operator, inputs, _ in self.nodes if operator.startswith("Gather") and inputs}
        behind = {
            inputs[0]
            for operator, inputs, outputs in self.nodes
            if operator in _SCALED and inputs and gathered.intersection(outputs)
        }
        scales = {name for operator, inputs, _ in self.nodes if operator in _SCALED for name in inputs[1:] if name}
        scales |= {name for name, *_ in self.tensors if name.endswith(("_scale", "_zero_point", "_scales"))}
        return (gathered | behind) & matrices, scales


def _dimensions(value: int | memoryview) -> Iterator[int]:
    """One dimension, or several that are packed."""
    if isinstance(value, int):
        yield value
        return
    position = 0
    while position < len(value):
        number, position = _varint(value, position)
        yield number
