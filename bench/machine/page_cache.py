"""Take files out of the operating system's page cache, so that the next reader waits for the disk."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

__all__ = ["drop_from_cache", "is_cached"]


def drop_from_cache(files: Iterable[Path]) -> bool:
    """Ask the kernel to forget the contents of files, and look whether it did.

    Args:
        files: They may be read; what is not yet on the disk is written first.

    Returns:
        Whether nothing of them is in memory any more. False where the system cannot do or tell it: it is no Linux,
        another process has a file mapped, or the file system lives in memory.

    Source: posix_fadvise(2), POSIX_FADV_DONTNEED; mincore(2).
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    are_gone = True
    for file in files:
        try:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        except OSError:
            return False
        are_gone = are_gone and is_cached(file) is False
    return are_gone


def is_cached(file: Path) -> bool | None:
    """Whether any page of a file is in memory; None where the system does not say.

    Raises:
        OSError: The file cannot be read.
    """
    size = file.stat().st_size
    if not size:
        return False
    mincore = getattr(ctypes.CDLL(None, use_errno=True), "mincore", None) if os.name == "posix" else None
    if mincore is None:
        return None
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        pages = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
        failed = mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data))
        del view  # or the mapping cannot be closed
    return None if failed else bool((pages & 1).any())
