"""A ResNet on Fashion-MNIST: whole channels pruned within four budgets of multiply-accumulates, then distilled."""

from __future__ import annotations

import json
from pathlib import Path

from compress_bench.part import Part, script
from compress_bench.release import COLUMNS, run_recipe

RECIPE = "examples/fashion/recipe.yaml"
BUDGETS = ((0.5, ""), (0.75, ""), (0.35, ""), (0.25, ""), (0.5, "static-int8"))
"""Share of the multiply-accumulates that may stay, and how the result is quantized."""
MIN_ACCURACY, MAX_LOST = 0.91, 0.005


def measure_fashion(work: Path) -> Part:
    """Run the recipe within each budget."""
    script("examples/fashion/prepare.py")
    script("examples/fashion/train.py")
    part = Part("Fashion-MNIST: ResNet, one picture", ["MACs asked", "MACs left", *COLUMNS, "½ point"])
    for budget, method in BUDGETS:
        out = work / (f"{budget:g}" + (f"-{method}" if method else ""))
        settings = {"steps.0.prune.max_macs": str(budget), "gates.accuracy.max_drop": str(MAX_LOST)}
        if method:
            settings["targets.server.quantize.method"] = method
        found = run_recipe(RECIPE, out, settings)
        left = _macs_left(out)
        verdict = found.gates["accuracy"]["verdict"]
        part.rows.append([f"{budget:.0%}" + (f", {method}" if method else ""), f"{left:.1%}", *found.cells, verdict])
        if budget == 0.5 and not method:
            whole = found.baseline_accuracy
            part.limit(f"trained to ≥ {MIN_ACCURACY:.0%}", f"{whole:.2%}", whole >= MIN_ACCURACY)
            kept = None if verdict == "INCONCLUSIVE" else verdict == "PASS" and left <= budget
            part.limit("half the MACs at ≤ 0.5 point", f"{left:.1%}; {found.gates['accuracy']['reason']}", kept)
    return part


def _macs_left(out: Path) -> float:
    """The share of multiply-accumulates that pruning left."""
    steps = json.loads((out / "release.json").read_text(encoding="utf-8"))["steps"]
    counts = [step["macs"] for step in steps]
    return float(counts[-1] / counts[0])
