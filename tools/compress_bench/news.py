"""The news classifier: int8 alone, then trimmed, pruned and distilled to several sizes, through its gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compress_bench.part import ROOT, Part, edgesmith, script

MAX_TRAINING_S = 15 * 60
MIN_REDUCTION, MIN_SPEEDUP, MIN_TEXTS = 10.0, 6.0, 1300
SMALL = "examples/news/small.yaml"
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "int8": ("examples/news/recipe.yaml", {}),
    "3 layers, width 1536, 8,000 tokens, int8": (
        SMALL,
        {"steps.2.prune.num_layers": "3", "steps.2.prune.keep": "{}"},
    ),
    "2 layers, width 768, 8,000 tokens, int8": (SMALL, {}),
    "the same, 32 shared codes": (SMALL, {"targets.phone.quantize.clusters": "32"}),
    "1 layer, width 768, 4,000 tokens, int8": (
        SMALL,
        {"steps.1.trim-vocabulary.max_tokens": "4000", "steps.2.prune.num_layers": "1"},
    ),
}
DEFAULT = "2 layers, width 768, 8,000 tokens, int8"


def measure_news(work: Path) -> Part:
    """Run the recipes."""
    script("examples/news/prepare.py")
    script("examples/news/finetune.py")
    columns = ["news classifier", "model, MB", "smaller", "download, MB", "accuracy", "lost, points", "CPU a text, ms"]
    part = Part("News: MiniLM with LoRA, 5 classes", [*columns, "less CPU", "training"])
    for number, (name, (recipe, settings)) in enumerate(VARIANTS.items()):
        given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        release = edgesmith("run", ROOT / recipe, "--out", work / str(number), *given, allowed=(0, 1, 3))
        facts = _facts(work / str(number), release)
        part.rows.append([name, *facts["cells"]])
        if name == DEFAULT:
            _judge(part, facts)
    return part


def _facts(out: Path, release: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a release."""
    [target] = release["targets"]
    evidence = out / "evidence" / target["name"]
    evaluation = json.loads((evidence / "eval" / "evaluation.json").read_bytes())
    footprint = json.loads((evidence / "footprint" / "footprint.json").read_bytes())
    whole = json.loads((evidence / "baseline-footprint" / "footprint.json").read_bytes())
    gates = {gate["gate"]: gate for gate in target["gates"]}
    trained = sum(step["seconds"] for step in release["steps"] if step["name"] == "distill")
    was_cached = any(step["cached"] for step in release["steps"] if step["name"] == "distill")
    return {
        "gates": gates,
        "trained": trained,
        "was_cached": was_cached,
        "evaluation": evaluation,
        "footprint": footprint,
        "whole": whole,
        "cells": [],
    }


def _judge(part: Part, facts: dict[str, Any]) -> None:
    """Hold the default recipe against what must be reached."""
