"""From a hidden state for each token to one vector for each text.

Axes: N rows, S tokens, H hidden. Padding (mask 0) has no part in any result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import ArtifactError, UnsupportedError
from edgesmith.tasks.folder import read_json, read_json_object

__all__ = ["POOLINGS", "Pooling", "normalize_rows", "pooling_of"]

Pooling = Literal["mean", "cls", "max", "lasttoken"]
Hidden = NDArray[np.float32]
Float = TypeVar("Float", np.float32, np.float64)

_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})


def pool_mean(hidden_NSH: Hidden, mask_NS: NDArray[Any]) -> Hidden:
    """Mean over the tokens."""
    weights_NS1 = mask_NS[:, :, None].astype(np.float32)
    return cast(Hidden, (hidden_NSH * weights_NS1).sum(axis=1) / np.maximum(weights_NS1.sum(axis=1), 1e-9))


def pool_max(hidden_NSH: Hidden, mask_NS: NDArray[Any]) -> Hidden:
    """Largest value of each feature over the tokens."""
    lowest = np.float32(np.finfo(np.float32).min)
    return cast(Hidden, np.where(mask_NS[:, :, None] > 0, hidden_NSH, lowest).max(axis=1))


def pool_cls(hidden_NSH: Hidden, mask_NS: NDArray[Any]) -> Hidden:
    """The first token's state."""
    return cast(Hidden, hidden_NSH[np.arange(len(hidden_NSH)), (mask_NS > 0).argmax(axis=1)])


def pool_lasttoken(hidden_NSH: Hidden, mask_NS: NDArray[Any]) -> Hidden:
    """The last token's state."""
    last = mask_NS.shape[1] - 1 - (mask_NS[:, ::-1] > 0).argmax(axis=1)
    return cast(Hidden, hidden_NSH[np.arange(len(hidden_NSH)), last])


POOLINGS: Mapping[str, Callable[[Hidden, NDArray[Any]], Hidden]] = {
    "mean": pool_mean,
    "cls": pool_cls,
    "max": pool_max,
    "lasttoken": pool_lasttoken,
}


def normalize_rows(vectors_NH: NDArray[Float]) -> NDArray[Float]:
    """Each row divided by its length; a row of zeros stays."""
    lengths = np.linalg.norm(vectors_NH, axis=1, keepdims=True)
    return cast("NDArray[Float]", vectors_NH / np.maximum(lengths, 1e-12).astype(vectors_NH.dtype))


def pooling_of(folder: Path) -> tuple[Pooling, bool]:
    """How a sentence-transformers folder pools, and whether it normalises; mean and no, for any other.

    Raises:
        ArtifactError: A file is damaged.
        UnsupportedError: The folder has a module beyond pooling and normalising, a pooling that is not one of
            `POOLINGS`, or a prompt that it puts before every text.
    """
    prompt = read_json_object(folder / "config_sentence_transformers.json", required=False)
    if prompt.get("default_prompt_name"):
        name = prompt["default_prompt_name"]
        raise UnsupportedError(
            f"{folder}: puts the prompt {name!r} before every text, which feature-extraction does not",
            mend="Write the prompt into the texts and remove `default_prompt_name`.",
        )
    if not (folder / "modules.json").is_file():
        return _read_pooling(folder / "1_Pooling" / "config.json"), False
    modules = read_json(folder / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ArtifactError(f"{folder / 'modules.json'}: is not a list of modules")
    kinds = {str(module.get("type")).rsplit(".", 1)[-1]: str(module.get("path", "")) for module in modules}
    if unknown := sorted(kinds.keys() - _MODULES):
        raise UnsupportedError(
            f"{folder / 'modules.json'}: has a module {unknown[0]}; feature-extraction handles "
            f"{', '.join(sorted(_MODULES))}"
        )
    path = kinds.get("Pooling", "1_Pooling")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ArtifactError(f"{folder / 'modules.json'}: the path {path!r} leaves the folder")
    return _read_pooling(folder / path / "config.json"), "Normalize" in kinds


def _read_pooling(path: Path) -> Pooling:
    config = read_json_object(path, required=False)
    stated = config.get("pooling_mode")
    old_names = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
    flags = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    modes = [stated] if isinstance(stated, str) else [old_names.get(flag, flag) for flag in flags]
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise UnsupportedError(f"{path}: pools by {' + '.join(modes)}; known are {', '.join(POOLINGS)}")
    return cast(Pooling, modes[0])
