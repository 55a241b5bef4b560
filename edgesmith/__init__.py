"""edgesmith: from a fine-tuned checkpoint to small, verified, measured and gated artifacts."""

from __future__ import annotations

import os

__version__ = "0.1.0"

# ONNX Runtime and onnxruntime-genai can report what they run to their maker: not from here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
