"""Structured pruning: widths, heads and channels leave every tensor and the configuration.

`compress.prune.structure.prune.prune_structure` is the way in.
"""
