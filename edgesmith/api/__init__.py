"""The commands as Python functions: same names, same meaning, typed results instead of text.

Each imports what it needs when it is called, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from edgesmith.api.distill import distill
from edgesmith.api.gguf import imatrix
from edgesmith.api.judge import gate, report
from edgesmith.api.language import generate
from edgesmith.api.load import load
from edgesmith.api.look import check, doctor, inspect, predict
from edgesmith.api.measure import bench, eval, verify  # noqa: A004
from edgesmith.api.prune import prune
from edgesmith.api.recipes import init, plan, run, schema
from edgesmith.api.serve import bundle, serve, unbundle
from edgesmith.api.steps import export, merge, quantize
from edgesmith.api.vocabulary import trim_vocabulary

__all__ = [
    "bench",
    "bundle",
    "check",
    "distill",
    "doctor",
    "eval",
    "export",
    "gate",
    "generate",
    "imatrix",
    "init",
    "inspect",
    "load",
    "merge",
    "plan",
    "predict",
    "prune",
    "quantize",
    "report",
    "run",
    "schema",
    "serve",
    "trim_vocabulary",
    "unbundle",
    "verify",
]
