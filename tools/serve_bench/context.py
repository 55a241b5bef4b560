"""What every part is given."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve_bench.report import Report

__all__ = ["Context", "token_arrays"]


@dataclass
class Context:
    """A run: where it writes, how long it may take, what it serves."""

    report: Report
    folder: Path
    scale: float
    """Factor of all durations and counts; 1 for figures that are published."""
    classifier: Path
    language: Path
    arguments: argparse.Namespace

    def times(self, count: int, least: int = 1) -> int:
        """A count, scaled."""
        return max(least, round(count * self.scale))

    def seconds(self, value: float, least: float = 0.3) -> float:
        """A duration, scaled."""
        return max(least, value * self.scale)

    def say(self, text: str) -> None:
        """Tell what is being done."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def token_arrays(rows: int, length: int, *, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Inputs of a BERT: random tokens, nothing masked."""
    ids = np.random.default_rng(seed).integers(1000, 20000, (rows, length))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
