"""Write a GGUF file a piece at a time: no tensor is held whole unless its rows change places.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from compress.checkpoint import Checkpoint
from compress.memory import release_free_memory
from edgesmith.files import storage_errors, temporary_sibling
from edgesmith.progress import Progress
from export.gguf.encode import encode
from export.gguf.metadata import Metadata, Value
from export.gguf.tensor_plan import FloatType, PlannedTensor

__all__ = ["write_file"]

_TYPES: Mapping[FloatType, GGMLQuantizationType] = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
}
_FILE_TYPES: Mapping[FloatType, gguf.LlamaFileType] = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
}


def write_file(
    path: Path,
    architecture: str,
    metadata: Metadata,
    *,
    checkpoint: Checkpoint,
    planned: Sequence[PlannedTensor],
    extra: Mapping[str, NDArray[np.float32]],
    dtype: FloatType,
    progress: Progress,
) -> int:
    """Write the whole file or nothing; the same arguments give the same bytes.

    Args:
        path: The new file; one that is there is replaced when the new one is complete.
        architecture: As llama.cpp calls it.
        metadata: Everything but the architecture and the type of the file.
        checkpoint: Where the weights are.
        planned: What to take from there, in this order.
        extra: Tensors that are made, not read. They come first.
        dtype: Of matrices.
        progress: Told of each tensor.

    Returns:
        Size of the file in bytes.

    Raises:
        CheckpointError: a weight is no number, or too large for the type.
        StorageError: the file cannot be written.
    """
    temporary = temporary_sibling(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = GGUFWriter(temporary, architecture)
        try:
            _add_metadata(writer, {**metadata, "general.file_type": int(_FILE_TYPES[dtype])})
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _write_tensors(writer, temporary, checkpoint, planned, extra, progress)
            size_bytes = temporary.stat().st_size
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return size_bytes


def _add_metadata(writer: GGUFWriter, metadata: Metadata) -> None:
    for key, value in metadata.items():
        kind, element = _value_types(value)
        writer.add_key_value(key, value, kind, element)


def _value_types(value: Value) -> tuple[GGUFValueType, GGUFValueType | None]:
    match value:
        case bool():
            return GGUFValueType.BOOL, None
        case int():
            return GGUFValueType.UINT32, None
        case float():
            return GGUFValueType.FLOAT32, None
        case str():
            return GGUFValueType.STRING, None
        case bytes():
            return GGUFValueType.ARRAY, GGUFValueType.UINT8
        case list():
            return GGUFValueType.ARRAY, None


def _write_tensors(
    writer: GGUFWriter,
    path: Path,
    checkpoint: Checkpoint,
    planned: Sequence[PlannedTensor],
    extra: Mapping[str, NDArray[np.float32]],
    progress: Progress,
) -> None:
    for name, values in extra.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for tensor in planned:
        kind = _TYPES[tensor.dtype]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab", buffering=0) as file:
        _pad(file, writer.data_alignment)
        for values in extra.values():
            _write_padded(file, [values.tobytes()], writer.data_alignment)
        for tensor in progress.track(planned, "Write GGUF"):
            _write_padded(file, encode(checkpoint, tensor), writer.data_alignment)
            release_free_memory()
        os.fsync(file.fileno())


def _write_padded(file: FileIO, pieces: Iterable[bytes | memoryview], alignment: int) -> None:
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[file.write(view) :]
    _pad(file, alignment)


def _pad(file: FileIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
