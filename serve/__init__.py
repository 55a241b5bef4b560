"""Serving: the thin runtime that opens an artifact, without torch and transformers."""
