"""Figures as people read them, always with their unit."""

from __future__ import annotations

__all__ = ["format_bytes", "format_seconds"]


def format_bytes(size: float) -> str:
    """Write a size with its unit, in powers of ten as disks and app stores count.

    >>> format_bytes(23_204_112)
    '23.2 MB'
    """
    for unit in ("B", "kB", "MB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def format_seconds(seconds: float) -> str:
    """Write a duration.

    >>> format_seconds(75.2), format_seconds(3.25)
    ('1 min 15 s', '3.2 s')
    """
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
