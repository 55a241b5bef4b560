"""The commands as Python functions: same names, same meaning, typed results instead of text.

Each imports what it needs when it is called, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from edgesmith.api.judge import gate, report
from edgesmith.api.language import (
    eval_language,
    export_adapter,
    export_genai,
    export_gguf,
    generate,
    imatrix,
    quantize_gguf,
)
from edgesmith.api.load import load
from edgesmith.api.look import check, doctor, inspect, predict
from edgesmith.api.measure import bench, eval, verify  # noqa: A004
from edgesmith.api.recipes import init, plan, run, schema
from edgesmith.api.steps import export, merge, quantize

__all__ = [
    "bench",
    "check",
    "doctor",
    "eval",
    "eval_language",
    "export",
    "export_adapter",
    "export_genai",
    "export_gguf",
    "gate",
    "generate",
    "imatrix",
    "init",
    "inspect",
    "load",
    "merge",
    "plan",
    "predict",
    "quantize",
    "quantize_gguf",
    "report",
    "run",
    "schema",
    "verify",
]
