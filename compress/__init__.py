"""Stages that make a checkpoint or a graph smaller: merge, quantize."""
