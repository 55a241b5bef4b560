"""Traffic between the versions of a model: shares, shadows, recording, and comparison at any time."""

from __future__ import annotations

from serve.traffic.outcome import Outcome, outcome_of, refusal
from serve.traffic.settings import TrafficSettings
from serve.traffic.traffic import Traffic, VersionWatcher

__all__ = ["Outcome", "Traffic", "TrafficSettings", "VersionWatcher", "outcome_of", "refusal"]
