"""Drift of what is asked and answered, against the artifact's own calibration rows."""

from __future__ import annotations

from serve.drift.making import make_reference, make_text_reference
from serve.drift.monitor import DriftMonitor, drift_families
from serve.drift.reference import REFERENCE_FILE, Reference, read_reference, write_reference
from serve.drift.windows import DriftSettings

__all__ = [
    "REFERENCE_FILE",
    "DriftMonitor",
    "DriftSettings",
    "Reference",
    "drift_families",
    "make_reference",
    "make_text_reference",
    "read_reference",
    "write_reference",
]
