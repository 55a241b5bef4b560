"""A step of the demo is skipped when its inputs and its outputs are what they were when it last ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["is_done", "sha256_file", "write_stamp"]


def sha256_file(path: Path) -> str:
    """Hash one file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_done(stamp: Path, inputs: Mapping[str, str]) -> bool:
    """Tell whether `stamp` records these inputs, and every output it lists is still there unaltered.

    Args:
        stamp: The file that `write_stamp` left.
        inputs: What the step depends on, by name: versions, settings, hashes of files.
    """
    try:
        record = json.loads(stamp.read_text(encoding="utf-8"))
        return record["inputs"] == dict(inputs) and all(
            sha256_file(stamp.parent / name) == digest for name, digest in record["outputs"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no stamp, or a damaged one, or an output is gone: do the step again


def write_stamp(stamp: Path, inputs: Mapping[str, str], outputs: Iterable[Path]) -> None:
    """Record the inputs and the hashes of the outputs, which lie below the stamp's own folder."""
    hashes = {path.relative_to(stamp.parent).as_posix(): sha256_file(path) for path in sorted(outputs)}
    record = {"inputs": dict(inputs), "outputs": hashes}
    stamp.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
