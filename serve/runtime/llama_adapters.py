"""LoRA adapters beside a GGUF model: checked by us, loaded once, scaled at run time."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from edgesmith.errors import ArtifactError, UnsupportedError, UsageError
from edgesmith.files import storage_errors
from serve.runtime.gguf_file import GgufFile, GgufTensor, read_gguf
from serve.runtime.llama_library import LlamaModel, last_error, load_library

__all__ = ["LlamaAdapters", "check_adapter_file"]

_TYPES = ("F32", "F16", "BF16", "Q8_0")
_FLOAT32, _STRING = 6, 8
_KEY_TYPES = {
    "general.type": _STRING,
    "general.architecture": _STRING,
    "adapter.type": _STRING,
    "adapter.lora.alpha": _FLOAT32,
}
_MAX_SCALE = 1000.0
_MEND = "Convert the adapter again from what PEFT wrote, for this base."


class _Room(Protocol):
    """A context of the library, which adapters are put on."""

    def set_adapters(self, adapters: Sequence[tuple[object, float]]) -> None: ...


class LlamaAdapters:
    """The adapters of one opened model.

    Args:
        model: They live as long as it is open. No context may be made of it before.
        adapters: Files and scales.

    Raises:
        ArtifactError: A file is damaged or hostile, or is not of this base.
        UnsupportedError: It is no LoRA adapter.
        UsageError: A scale is no number.
    """

    def __init__(self, model: LlamaModel, adapters: Sequence[tuple[Path, float]]) -> None:
        self._paths = [path for path, _ in adapters]
        self._scales: list[float] = []
        self.scale([scale for _, scale in adapters])
        self._handles = [_load(model, path) for path in self._paths]

    @property
    def scales(self) -> tuple[tuple[Path, float], ...]:
        """Files and present scales."""
        return tuple(zip(self._paths, self._scales, strict=True))

    def scale(self, scales: Sequence[float]) -> None:
        """Set all scales; contexts follow when the adapters are put on them again.

        Raises:
            UsageError: There are more or fewer than adapters, or one is no number or beyond 1000.
        """
        if len(scales) != len(self._paths):
            raise UsageError(f"{len(scales)} scales for {len(self._paths)} adapters")
        for scale in scales:
            if not math.isfinite(scale) or abs(scale) > _MAX_SCALE:
                raise UsageError(f"an adapter's scale is {scale}; it must be from -{_MAX_SCALE:g} to {_MAX_SCALE:g}")
        self._scales = [float(scale) for scale in scales]

    def put_on(self, room: _Room) -> None:
        """Add the adapters to what a context computes."""
        chosen = [(handle, scale) for handle, scale in zip(self._handles, self._scales, strict=True) if scale]
        if self._handles:
            room.set_adapters(chosen)


def _load(model: LlamaModel, path: Path) -> object:
    check_adapter_file(path, base=model.file, base_name=str(model.path))
    handle = load_library().llama_adapter_lora_init(model.handle, str(path).encode())
    if not handle:
        raise ArtifactError(f"{path}: llama.cpp does not take the adapter: {last_error()}", mend=_MEND)
    return handle


def check_adapter_file(path: Path, *, base: GgufFile, base_name: str) -> int:
    """Check a GGUF file of a LoRA adapter against its base, before llama.cpp opens it.

    The library ends the process on a setting of another type, and on some shapes that do not fit each other.

    Args:
        path: The adapter.
        base: Of the model.
        base_name: For messages.

    Returns:
        How many weights it changes.

    Raises:
        ArtifactError: It is damaged or hostile, or not of this base.
        UnsupportedError: It is no LoRA adapter, or one that llama.cpp would apply in part only.
    """
    file = read_gguf(path)
    _check_settings(path, file, base, base_name)
    pairs: dict[str, dict[str, GgufTensor]] = {}
    for name, tensor in file.tensors.items():
        weight, _, side = name.rpartition(".")
        if side not in ("lora_a", "lora_b") or not weight.endswith(".weight"):
            raise UnsupportedError(
                f"{path}: holds the tensor {name!r}, which llama.cpp would ignore or refuse beside a base",
                mend="Merge the adapter into its base, and convert that.",
            )
        if tensor.block_type.name not in _TYPES or len(tensor.shape) != 2:
            raise ArtifactError(
                f"{path}: {name!r} is {tensor.block_type.name} of shape {list(tensor.shape)}; it must be a matrix of "
                f"{', '.join(_TYPES)}",
                mend=_MEND,
            )
        pairs.setdefault(weight, {})[side] = tensor
    if not pairs:
        raise ArtifactError(f"{path}: holds no tensors", mend=_MEND)
    for weight, pair in pairs.items():
        _check_pair(path, weight, pair, base, base_name)
    return len(pairs)


def _check_settings(path: Path, file: GgufFile, base: GgufFile, base_name: str) -> None:
    kinds = {key: file.metadata.get(key) for key in ("general.type", "adapter.type")}
    if kinds != {"general.type": "adapter", "adapter.type": "lora"}:
        raise UnsupportedError(
            f"{path}: is no LoRA adapter: its types are {', '.join(repr(kind) for kind in kinds.values())}",
            mend="Open a model on its own, without a scale.",
        )
    if file.architecture != base.architecture:
        raise ArtifactError(
            f"{path}: is for a model of kind {file.architecture!r}, but {base_name} is of kind {base.architecture!r}",
            mend="Use the base that the adapter was trained on.",
        )
    alpha = file.metadata.get("adapter.lora.alpha")
    if type(alpha) is not float or not math.isfinite(alpha):
        raise ArtifactError(f"{path}: adapter.lora.alpha is {alpha!r}, not a number", mend=_MEND)
    if any(key.startswith("adapter.alora") for key in file.metadata):
        raise UnsupportedError(f"{path}: is an activated LoRA, which starts at a phrase", mend="Train a plain LoRA.")
    _check_key_types(path, file)


def _check_key_types(path: Path, file: GgufFile) -> None:
    """The library ends the process when a number is stored in another width than it asks for."""
    header_end = min((tensor.start for tensor in file.tensors.values()), default=None)
    with (
        storage_errors(path),
        path.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        end = len(content) if header_end is None else header_end
        for key, wanted in _KEY_TYPES.items():
            needle = struct.pack("<Q", len(key)) + key.encode()
            at = content.find(needle, 0, end)
            while at >= 0:
                place = at + len(needle)
                if content[place : place + 4] != struct.pack("<I", wanted):
                    raise ArtifactError(f"{path}: {key} is stored in a type of its own", mend=_MEND)
                at = content.find(needle, place, end)


def _check_pair(path: Path, weight: str, pair: dict[str, GgufTensor], base: GgufFile, base_name: str) -> None:
    if len(pair) != 2:
        raise ArtifactError(f"{path}: {weight!r} has only {next(iter(pair))}", mend=_MEND)
    target = base.tensors.get(weight)
    if target is None:
        raise ArtifactError(
            f"{path}: changes {weight!r}, which {base_name} does not have",
            mend="Use the base that the adapter was trained on; a head that is tied to the embeddings cannot be "
            "changed beside it, merge such an adapter.",
        )
    is_embedding = weight == "token_embd.weight"
    if is_embedding and "output.weight" not in base.tensors:
        raise UnsupportedError(
            f"{path}: changes the embeddings, which are the head too in {base_name}",
            mend="Merge the adapter into its base, and convert that.",
        )
    if len(target.shape) != 2:
        raise UnsupportedError(
            f"{path}: changes {weight!r}, which has {len(target.shape)} axes",
            mend="Merge the adapter into its base, and convert that.",
        )
    columns, rows = target.shape
    a, b = pair["lora_a"].shape, pair["lora_b"].shape
    rank = b[0]
    if a != ((rank, rows) if is_embedding else (columns, rank)) or b != (rank, columns if is_embedding else rows):
        raise ArtifactError(
            f"{path}: the matrices of {weight!r} are {list(a)} and {list(b)}; the weight of {base_name} is "
            f"{list(target.shape)}",
            mend="Use the base that the adapter was trained on.",
        )
