"""Writing the weights of a checkpoint tensor by tensor, in one file or in shards."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from compress.checkpoint import INDEX_NAME, WEIGHTS_NAME
from compress.tensor_file import TensorFileWriter
from compress.tensor_header import DTYPE_BITS
from edgesmith.files import atomic_write

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Writes the weights of a checkpoint into a folder, tensor by tensor, in any order.

    Args:
        folder: Exists and is empty of weights.
        tensors: Name → (dtype, shape) of every tensor that will come.
        max_shard_bytes: Weights above this size are split into shards with an index.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        *,
        max_shard_bytes: int = 5_000_000_000,
    ) -> None:
        self.folder = folder
        self._tensors = tensors
        shards = _split(tensors, max_shard_bytes)
        names = [WEIGHTS_NAME] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
        self._files: list[TensorFileWriter] = []
        self._file_of: dict[str, TensorFileWriter] = {}
        try:
            for file_name, shard in zip(names, shards, strict=True):
                file = TensorFileWriter(folder / file_name, {name: tensors[name] for name in shard})
                self._files.append(file)
                self._file_of |= dict.fromkeys(shard, file)
        except BaseException:
            self.abandon()
            raise

    def write(self, name: str, pieces: Iterable[memoryview | bytes | bytearray]) -> None:
        """Write one tensor; see `TensorFileWriter.write`."""
        self._file_of[name].write(name, pieces)

    def close(self) -> None:
        """Finish all files; write the index when there are several."""
        for file in self._files:
            file.close()
        if len(self._files) > 1:
            total = sum(_size_bytes(spec) for spec in self._tensors.values())
            weight_map = {name: self._file_of[name].path.name for name in sorted(self._tensors)}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            atomic_write(self.folder / INDEX_NAME, json.dumps(index, indent=2) + "\n")

    def abandon(self) -> None:
        """Close the files as they are."""
        for file in self._files:
            file.__exit__(RuntimeError, None, None)


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _size_bytes(spec: tuple[str, tuple[int, ...]]) -> int:
    return math.prod(spec[1]) * DTYPE_BITS[spec[0]] // 8


def _split(tensors: Mapping[str, tuple[str, tuple[int, ...]]], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in tensors.items():
        if shards[-1] and filled + _size_bytes(spec) > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += _size_bytes(spec)
    return shards
