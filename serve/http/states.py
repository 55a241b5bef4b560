"""What a connection is doing."""

from __future__ import annotations

from typing import Final

__all__ = ["BODY", "BUSY", "CHUNKED", "CLOSING", "HEAD", "LINGER"]

HEAD: Final = 0
"""Waits for a request, or reads its head."""
BODY: Final = 1
"""Reads a body whose length is known."""
CHUNKED: Final = 2
"""Reads a body that comes in chunks."""
BUSY: Final = 3
"""A request is being answered."""
LINGER: Final = 4
"""Was refused; what it still sends is thrown away."""
CLOSING: Final = 5
"""Closes, or is closed."""
