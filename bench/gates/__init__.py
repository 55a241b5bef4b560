"""Verdicts: evidence held against limits, and how a build server is told."""
