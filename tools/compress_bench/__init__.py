"""Parts of `measure_compress.py`, one a model."""
