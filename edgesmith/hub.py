"""Where a recipe's checkpoint is: a folder here, or a repository of the model hub."""

from __future__ import annotations

import re
from pathlib import Path

from edgesmith.errors import MissingExtraError, UsageError

__all__ = ["locate_checkpoint"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def locate_checkpoint(reference: str, folder: Path, revision: str | None = None) -> Path:
    """Find a checkpoint's folder.

    Args:
        reference: A path, absolute or relative to `folder`, or a hub id such as `org/name`.
        folder: Of the recipe.
        revision: Commit or tag of a hub id.

    Returns:
        The folder; of a hub id the one in the hub's own cache, downloaded first where it is not there. Only
        safetensors weights and texts are fetched.

    Raises:
        UsageError: there is no such folder, and no such repository can be reached.
        MissingExtraError: the hub's client is not installed.
    """
    path = folder / Path(reference).expanduser()
    if path.exists() or not _HUB_ID.fullmatch(reference):
        if not path.is_dir():
            raise UsageError(f"{path}: no such checkpoint folder")
        return path
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{path}: no such folder, and fetching {reference!r} from the hub needs huggingface_hub",
            mend="pip install 'edgesmith[export]'",
        ) from error
    try:
        return Path(snapshot_download(reference, revision=revision, allow_patterns=_PATTERNS))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: no such folder, and the hub did not give {reference!r}: {str(error).splitlines()[0]}",
            mend="Check the path (it is relative to the recipe's folder), or log in to the hub and try again.",
        ) from error
