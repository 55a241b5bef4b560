"""A Hugging Face checkpoint folder, opened with distrust and read one tensor at a time.

Only safetensors are read: a pickle runs code when it is loaded, and so does a model class that the folder
brings along. Both are refused, whatever else the folder holds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.tensor_file import TensorFile
from compress.tensor_header import TensorEntry
from edgesmith.errors import CheckpointError
from edgesmith.files import storage_errors

__all__ = [
    "Checkpoint",
    "check_inside",
    "open_checkpoint",
    "quantization_of",
    "read_json",
    "weights_digest",
]

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAME = "config.json"

_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"})
_PICKLE_MEND = (
    "Pickled weights can run code when they are opened: load the model where it comes from and save it with "
    "save_pretrained(..., safe_serialization=True)."
)
_JSON_LIMIT_BYTES = 64 << 20


class Checkpoint:
    """A folder with `config.json` and sound safetensors weights, in one file or in shards.

    Attributes:
        folder: The folder.
        config: What `config.json` holds.
        entries: Tensor name → where it lies; all shards together, in the order of the files.
    """

    def __init__(self, folder: Path, config: dict[str, Any], files: Sequence[TensorFile]) -> None:
        self.folder = folder
        self.config = config
        self.files = tuple(files)
        self.entries: dict[str, TensorEntry] = {}
        self._file_of: dict[str, TensorFile] = {}
        for file in files:
            for name, entry in file.entries.items():
                if name in self.entries:
                    raise CheckpointError(
                        f"{folder}: tensor {name!r} is in {self._file_of[name].path.name} and in {file.path.name}",
                        mend="Delete the folder and copy the checkpoint again: files of two versions are mixed.",
                    )
                self.entries[name] = entry
                self._file_of[name] = file

    @property
    def dtype(self) -> str:
        """The floating-point dtype that most of the bytes have."""
        totals: dict[str, int] = {}
        for entry in self.entries.values():
            if entry.is_floating:
                totals[entry.dtype] = totals.get(entry.dtype, 0) + entry.size_bytes
        return max(totals, key=lambda dtype: (totals[dtype], dtype), default="F32")

    def path_of(self, name: str) -> Path:
        """Name the file that holds a tensor."""
        return self._file_of[name].path

    def read(self, name: str) -> bytearray:
        """Read the bytes of one tensor."""
        return self._file_of[name].read(name)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor in pieces; each is overwritten by the next."""
        return self._file_of[name].chunks(name)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a Hugging Face checkpoint folder and check everything that can be checked without reading weights.

    Args:
        folder: Holds `config.json` and `model.safetensors` or shards with their index.

    Raises:
        CheckpointError: a file is missing, damaged or truncated; weights are only there as a pickle; the
            configuration asks for code of its own; the index names files outside the folder.
        StorageError: a file cannot be read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder", mend="Give a folder with config.json in it.")
    config = read_json(folder / CONFIG_NAME)
    _refuse_code(folder, config)
    _refuse_kernels(folder / CONFIG_NAME, config)
    index_path = folder / INDEX_NAME
    single_path = folder / WEIGHTS_NAME
    if single_path.exists():
        return Checkpoint(folder, config, [TensorFile(_inside(folder, WEIGHTS_NAME))])
    if index_path.exists():
        return Checkpoint(folder, config, _open_shards(folder, read_json(index_path)))
    raise _no_weights(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        CheckpointError: it is missing, larger than 64 MiB, or no JSON object.
        StorageError: it cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: missing", mend="A checkpoint is a folder as save_pretrained writes it.")
    with storage_errors(path):
        if path.stat().st_size > _JSON_LIMIT_BYTES:
            raise CheckpointError(
                f"{path}: {path.stat().st_size} bytes, the limit is {_JSON_LIMIT_BYTES}",
                mend="No JSON file of a checkpoint is that large: copy the checkpoint again.",
            )
        text = path.read_bytes()
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON in UTF-8 ({error})", mend="Copy the file again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path}: holds a {type(value).__name__}, expected an object", mend="Copy the file again."
        )
    return value


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """Say how the weights are quantized, e.g. `bitsandbytes 4-bit`; None when they are not."""
    settings = config.get("quantization_config")
    if settings is None:
        for key in ("text_config", "vision_config"):
            if isinstance(config.get(key), dict) and (found := quantization_of(config[key])):
                return found
        return None
    if not isinstance(settings, dict):
        return "unknown"
    method = str(settings.get("quant_method", "")).lower()
    if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
        return "bitsandbytes 4-bit"
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit") or method == "bitsandbytes":
        return "bitsandbytes 8-bit"
    bits = settings.get("bits")
    return f"{method or 'unknown'}{f' {bits}-bit' if bits else ''}"


def weights_digest(folder: Path) -> str:
    """Hash the names, dtypes, shapes and values of all tensors, however they are spread over files.

    Returns:
        `sha256:` and 64 hexadecimal digits.

    Raises:
        CheckpointError: see `open_checkpoint`.
    """
    checkpoint = open_checkpoint(folder)
    digest = hashlib.sha256()
    for name in sorted(checkpoint.entries):
        entry = checkpoint.entries[name]
        digest.update(json.dumps([name, entry.dtype, entry.shape, entry.size_bytes]).encode())
        for piece in checkpoint.chunks(name):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def _refuse_code(folder: Path, config: Mapping[str, Any]) -> None:
    """A checkpoint that names Python files of its own would run them on loading."""
    for file_name in (CONFIG_NAME, "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        path = folder / file_name
        settings = config if file_name == CONFIG_NAME else read_json(path) if path.exists() else {}
        if settings.get("auto_map"):
            raise CheckpointError(
                f"{path}: asks for code of its own (auto_map: {', '.join(map(str, settings['auto_map']))})",
                mend="Code of a checkpoint is never run here: use a model class that transformers has, and "
                "remove auto_map from the file if it is not needed.",
            )


def _refuse_kernels(path: Path, settings: Mapping[str, Any]) -> None:
    """An attention or experts implementation with a slash is a hub repository whose code would be run."""
    for key, value in settings.items():
        if isinstance(value, dict):
            _refuse_kernels(path, value)
        elif key.removesuffix("_internal").endswith("_implementation") and "/" in str(value):
            raise CheckpointError(
                f"{path}: asks for code from elsewhere ({key}: {value!r})",
                mend=f"Code that a checkpoint names is never run here: remove {key} from the file.",
            )


def _no_weights(folder: Path) -> CheckpointError:
    found = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    if found:
        return CheckpointError(f"{folder}: the weights are a pickle ({', '.join(found[:3])})", mend=_PICKLE_MEND)
    return CheckpointError(
        f"{folder}: holds neither {WEIGHTS_NAME} nor {INDEX_NAME}",
        mend="Give the folder that save_pretrained wrote; an adapter folder is given with --adapter.",
    )


def _open_shards(folder: Path, index: dict[str, Any]) -> list[TensorFile]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(
            f"{folder / INDEX_NAME}: weight_map must map tensor names to file names", mend="Copy the file again."
        )
    files = {name: TensorFile(_inside(folder, name)) for name in sorted(set(weight_map.values()))}
    for name, file_name in weight_map.items():
        if name not in files[file_name].entries:
            raise _index_error(folder, f"{name!r} is not in {file_name}")
    for file_name, file in files.items():
        if extra := [name for name in file.entries if weight_map.get(name) != file_name]:
            raise _index_error(folder, f"{file_name} holds {extra[0]!r}, which the index does not place there")
    return list(files.values())


def _index_error(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / INDEX_NAME}: {what}",
        mend="Delete the folder and copy the checkpoint again: files of two versions are mixed.",
    )


def _inside(folder: Path, file_name: str) -> Path:
    """Check a file name of the index, which comes with the checkpoint and may be hostile."""
    if not re.fullmatch(r"[\w.\-]+\.safetensors", file_name):
        raise CheckpointError(
            f"{folder / INDEX_NAME}: {file_name!r} is not the name of a safetensors file in this folder",
            mend="Do not use this checkpoint unless you trust its source: its index points elsewhere.",
        )
    path = folder / file_name
    if not path.exists():
        raise CheckpointError(f"{path}: missing shard", mend="Copy the checkpoint again, with all its files.")
    check_inside(folder, path)
    return path


def check_inside(folder: Path, path: Path) -> None:
    """Check that a file of a checkpoint is no link out of it.

    A model cache links its files to blobs beside the snapshot, so a link may leave the folder of a snapshot,
    but only into the blobs of the same cache.

    Raises:
        CheckpointError: it is.
    """
    root, target = folder.resolve(), path.resolve()
    cached = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    if not cached and not target.is_relative_to(root):
        raise CheckpointError(
            f"{path}: is a link to {target}, outside its folder", mend="Copy the file itself into the folder."
        )
