"""edgesmith: from a fine-tuned checkpoint to small, verified, measured and gated artifacts."""

from __future__ import annotations

__version__ = "0.1.0"
