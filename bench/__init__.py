"""Measurements and verdicts: accuracy, latency, gates, reports."""
