"""Stages that make a model smaller: merge, trim the vocabulary, prune, distill, quantize."""
