"""The files that a data file's rows name: where they are, and a hash of them all."""

from __future__ import annotations

import hashlib
import stat
from functools import lru_cache
from pathlib import Path, PurePosixPath

from edgesmith.data import read_rows
from edgesmith.files import sha256_file

__all__ = ["named_files_digest", "path_of_name"]

_MAX_PATH_CHARS = 4096


def path_of_name(path: Path, name: str) -> Path | None:
    """Where the file is that a row names, whether it is there or not.

    A data file from elsewhere can name nothing but what lies in its own folder. Links there are followed, since they
    are the doing of whoever owns the folder.

    Args:
        path: Of the data file.
        name: What a row says, relative to the data file.

    Returns:
        None if the name leads out of the data file's folder, or is none.
    """
    relative = PurePosixPath(name)
    if not name or "\0" in name or len(name) > _MAX_PATH_CHARS or relative.is_absolute() or ".." in relative.parts:
        return None
    return path.parent / relative


def named_files_digest(path: Path, column: str) -> str | None:
    """A hash of the files that a data file's rows name, so that another picture is another key.

    Args:
        path: As for `edgesmith.data.read_rows`.
        column: Whose values are paths relative to the data file.

    Returns:
        Hexadecimal; None if the first row names no file there. Files that are missing, or are not below the data
        file's folder, count as missing.

    Raises:
        DataError: The data file is damaged.
        StorageError: A file cannot be read.
    """
    if not isinstance(next(read_rows(path)).values.get(column), str):
        return None
    digest = hashlib.sha256()
    for row in read_rows(path):
        name = row.values.get(column)
        if isinstance(name, str):
            place = path_of_name(path, name)
            found = "missing" if place is None else _file_digest(place)
            digest.update(f"{name}\0{found}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    """The file's hash, computed once while it stays as it is."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return "missing"
    if not stat.S_ISREG(state.st_mode):
        return "missing"
    return _hash_of(path, (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))


@lru_cache(maxsize=1 << 18)
def _hash_of(path: Path, state: tuple[int, ...]) -> str:
    del state  # of the file as it is now
    return sha256_file(path)
