"""What the header of a GGUF file may hold."""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["Metadata", "Value"]

Value: TypeAlias = bool | int | float | str | list[bool] | list[int] | list[float] | list[str] | bytes
"""Stored as bool, uint32, float32, string, or an array of bool, int32, float32, string or uint8."""

Metadata: TypeAlias = dict[str, Value]
