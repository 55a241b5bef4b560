"""What an artifact's bytes are spent on: embeddings, weights by type or part, scales, graph, tokenizer and the rest.

Read from the files' bytes alone, without any library of a model format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bench.raw import damage_errors, pretty_json, read_json
from bench.sizes.model_parts import find_embeddings, find_scales, part_of_gguf, part_of_onnx
from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError
from edgesmith.files import atomic_write
from serve.runtime.gguf_file import read_gguf
from serve.runtime.onnx_tensors import OnnxTensors, read_onnx_tensors

__all__ = ["TENSOR_SIZES", "LargeTensor", "TensorSizes", "measure_tensor_sizes"]

TENSOR_SIZES = "tensor_sizes.json"
_MAX_LARGEST = 12
_MIN_LISTED_BYTES = 1024
_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}
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
_ORDER = (
    "embeddings",
    "attention",
    "feed-forward",
    "output layer",
    "norms",
    "weights",
    "scales",
    "constants",
    "graph",
    "metadata",
    "model",
    "tokenizer",
    "golden",
    "other",
)


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
        artifact: Of any kind; the tensors of ONNX and GGUF models are told apart, other model files count as a whole.

    Raises:
        ArtifactError: A model file is damaged.
        StorageError: A file cannot be read.
    """
    kinds: Counter[str] = Counter()
    tensors: list[LargeTensor] = []
    read_elsewhere: Counter[str] = Counter()
    for entry in artifact.manifest.files:
        if not entry.path.endswith((".onnx", ".gguf")) or entry.path.startswith("golden/"):
            continue
        path = artifact.folder / entry.path
        is_graph = entry.path.endswith(".onnx")
        found = _read_graph(path, is_language_model=artifact.kind == "genai") if is_graph else _read_gguf(path)
        for tensor, location in found:
            kinds[tensor.kind] += tensor.num_bytes
            if location:
                read_elsewhere[(PurePosixPath(entry.path).parent / location).as_posix()] += tensor.num_bytes
        inside = sum(tensor.num_bytes for tensor, location in found if not location)
        kinds["graph" if is_graph else "metadata and vocabulary"] += entry.size_bytes - inside
        tensors += [tensor for tensor, _ in found]
    for entry in artifact.manifest.files:
        if not entry.path.endswith((".onnx", ".gguf")) or entry.path.startswith("golden/"):
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


def _read_gguf(path: Path) -> list[tuple[LargeTensor, str]]:
    """List the tensors of a GGUF file, each under its part of the model and its type."""
    return [
        (
            LargeTensor(
                name=name,
                kind=f"{part_of_gguf(name)}, {tensor.block_type.name}",
                shape=tensor.shape[::-1],
                num_bytes=tensor.size_bytes,
            ),
            "",
        )
        for name, tensor in read_gguf(path).tensors.items()
    ]


def _read_graph(path: Path, *, is_language_model: bool) -> list[tuple[LargeTensor, str]]:
    """List a model's tensors with their kinds; beside each, the file that holds its bytes if it is another one."""
    model = read_onnx_tensors(path)
    embeddings, scales, bits = find_embeddings(model), find_scales(model), _packed_bits(model)
    found = []
    for one in model.tensors:
        dtype = f"int{bits[one.name]}" if one.name in bits else _SHORT.get(one.dtype, one.dtype)
        if one.name in scales:
            kind = "scales and zero points"
        elif one.name in embeddings:
            kind = f"embeddings, {dtype}"
        elif dtype in ("int64", "int32", "bool", "string"):
            kind = "constants"
        elif is_language_model:
            kind = f"{part_of_onnx(one.name)}, {dtype}"
        else:
            kind = f"{dtype} weights"
        large = LargeTensor(name=one.name, kind=kind, shape=one.shape, num_bytes=one.size_bytes)
        found.append((large, one.location))
    return found


def _packed_bits(model: OnnxTensors) -> dict[str, int]:
    """Bits of the values that are packed into bytes, by the name of their tensor."""
    places = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
    return {
        node.inputs[places[node.operator]]: node.integers.get("bits", 4)
        for node in model.nodes
        if node.operator in places and len(node.inputs) > 1
    }
