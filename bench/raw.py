"""Raw samples on the disk: gzipped text that any tool reads, the same bytes for the same samples."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import ArtifactError, UsageError
from edgesmith.files import storage_errors

__all__ = ["columns_to_bytes", "compress", "damage_errors", "pretty_json", "read_columns", "read_json"]


def compress(content: bytes) -> bytes:
    """Compress with gzip, without name and time."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def columns_to_bytes(columns: Mapping[str, NDArray[np.int64]]) -> bytes:
    """Write integer columns of equal length as gzipped CSV with a header."""
    table = np.stack(list(columns.values()), axis=1)
    text = io.StringIO()
    text.write(",".join(columns) + "\n")
    np.savetxt(text, table, fmt="%d", delimiter=",")
    return compress(text.getvalue().encode())


def read_columns(path: Path) -> dict[str, NDArray[np.int64]]:
    """Read what `columns_to_bytes` wrote.

    Raises:
        ArtifactError: The file is damaged.
        StorageError: The file cannot be read.
    """
    with damage_errors(path):
        with storage_errors(path):
            content = path.read_bytes()
        header, *rows = gzip.decompress(content).decode().splitlines()
        names = header.split(",")
        values = [[int(value) for value in row.split(",")] for row in rows]
        if any(len(row) != len(names) for row in values):
            raise ValueError(f"a row without a value for each of {header}")
        table = np.array(values, dtype=np.int64).reshape(-1, len(names))  # of two dimensions without a row, too
        return {name: table[:, index] for index, name in enumerate(names)}


def read_json(path: Path, *, mend: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UsageError: There is no such file; `mend` says what makes it.
        ArtifactError: The file is damaged.
    """
    if not path.is_file():
        raise UsageError(f"{path.parent}: holds no {path.name}", mend=mend)
    with damage_errors(path):
        with storage_errors(path):
            content = path.read_bytes()
        value = json.loads(content)
        if not isinstance(value, dict):
            raise TypeError(f"a JSON {type(value).__name__} instead of an object")
        return value


@contextmanager
def damage_errors(path: Path) -> Iterator[None]:
    """Turn whatever broken content does to a parser into an `ArtifactError` that names the file."""
    try:
        yield
    except (EOFError, OSError, ValueError, KeyError, TypeError, IndexError, zlib.error) as error:
        raise ArtifactError(
            f"{path}: is damaged ({type(error).__name__}: {error})", mend="Measure again: `edgesmith eval` or `bench`."
        ) from error


def pretty_json(value: Any) -> str:
    """Write JSON for people: indented, keys in the order given, no NaN."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
