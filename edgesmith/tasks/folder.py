"""Small JSON files of a model folder, read with typed errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesmith.errors import ArtifactError, UsageError
from edgesmith.tasks.suggest import nearest

__all__ = ["checked_columns", "read_json", "read_json_object", "read_task_json"]

MAX_JSON_BYTES = 256 << 20


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ArtifactError: It is missing, too large, not UTF-8 or not JSON.
    """
    mend = "Save model and tokenizer again with transformers' `save_pretrained`, or fetch the folder anew."
    if not path.is_file():
        raise ArtifactError(f"{path}: is missing", mend=mend)
    size_bytes = path.stat().st_size
    if size_bytes > MAX_JSON_BYTES:
        raise ArtifactError(f"{path}: is {size_bytes:,} bytes; expected at most {MAX_JSON_BYTES:,}", mend=mend)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: is damaged: {error}", mend=mend) from error


def read_json_object(path: Path, *, required: bool = True) -> dict[str, Any]:
    """Parse a JSON file that holds an object; empty if it is missing and not required.

    Raises:
        ArtifactError: As for `read_json`, or it holds something else.
    """
    if not required and not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def read_task_json(folder: Path, name: str) -> dict[str, Any] | None:
    """An artifact's `task.json`, or None where there is none.

    Raises:
        ArtifactError: It is damaged or was written for another task.
    """
    path = folder / "task.json"
    if not path.is_file():
        return None
    config = read_json_object(path)
    if config.get("task") != name:
        raise ArtifactError(
            f"{path}: is for the task {config.get('task')!r}, not {name!r}",
            mend=f"Use the task {config.get('task')!r}, or another artifact.",
        )
    return config


def checked_columns(task: str, names: tuple[str, ...], columns: Mapping[str, str] | None) -> dict[str, str]:
    """Where each column that the task knows stands in a row.

    Raises:
        UsageError: `columns` names one that the task does not know, or two share a column of the file.
    """
    given = dict(columns or {})
    for name in given:
        if name not in names:
            raise UsageError(
                f"{task} has no column {name!r}",
                mend=f"Did you mean {nearest(name, names)!r}? It knows {', '.join(names)}.",
            )
    resolved = {name: given.get(name, name) for name in names}
    for name, column in given.items():
        shared = [other for other in given if other != name and given[other] == column]
        if shared:
            raise UsageError(f"the columns {name!r} and {shared[0]!r} are both mapped to {column!r}")
    return resolved
